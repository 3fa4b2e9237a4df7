"""Examples made ready to condition a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from incontext.canvas import spatial_grid
from incontext.example_crops import crop_examples
from incontext.image import normalise, resize_image, resize_labels
from incontext.palette import Palette, split_ids
from incontext.tiling import object_width
from incontext.types import Example

ENSEMBLES = ("feature", "spatial")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What conditions the model: examples, and the colours of their ids.

    Attributes:
        examples: in the user's order.
        palettes: one for each pass of the model. Each id is in one of them.
        names: id -> name, from all examples.
    """

    examples: tuple[Example, ...]
    palettes: tuple[Palette, ...]
    names: Mapping[int, str]

    @classmethod
    def build(
        cls,
        examples: Iterable[Example],
        ids_per_pass: int,
        palette: Callable[[tuple[int, ...]], Palette] = Palette.for_ids,
        ids: Iterable[int] = (),
    ) -> Prompt:
        """Merges the examples' ids and names and shares the ids out among passes.

        Args:
            examples: each with its own ids. One id means the same in all of them.
            ids_per_pass: how many ids get a colour in one pass.
            palette: gives the ids of one pass their colours.
            ids: further ids, which no example shows.

        Raises:
            TypeError: for something else than examples.
            ValueError: if there are no ids, or one id has two names.
        """
        examples = check_examples(examples)
        names: dict[int, str] = {}
        for example in examples:
            for id, name in example.names.items():
                if names.setdefault(id, name) != name:
                    raise ValueError(
                        f"expected one meaning for each id, got {names[id]!r} and {name!r} for id {id}; "
                        "renumber the ids of one of the examples"
                    )
        all_ids = sorted({*ids, *(id for example in examples for id in example.ids)})
        if not all_ids:
            raise ValueError(
                "expected at least one id (a label of 1 or more) in the examples, got only background; "
                "give examples that show what to find"
            )
        return cls(examples, tuple(palette(part) for part in split_ids(all_ids, ids_per_pass)), names)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all passes, sorted."""
        return tuple(sorted(id for palette in self.palettes for id in palette.ids))

    @cached_property
    def object_width(self) -> float | None:
        """Pixels; see `incontext.tiling.object_width`."""
        return object_width([each.labels for each in self.examples])

    def shown(self, index: int) -> tuple[Example, ...]:
        """The examples of one pass: those with an id of its palette, and those that show background only, on
        purpose.

        An example of other ids would be all black in this pass, and would speak for the background.
        """
        wanted = set(self.palettes[index].ids)
        return tuple(each for each in self.examples if not each.ids or wanted.intersection(each.ids))

    def canvases(
        self, index: int, size: tuple[int, int], *, ensemble: str = "feature", tile: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """The examples' images and painted masks, as the model takes them.

        Pixels that are `IGNORE` are painted black, as the model knows no third state.

        Args:
            index: which pass.
            size: (H, W) of the model's input. Images are stretched to it (bicubic), masks too (nearest).
            ensemble: "feature" keeps N examples apart, "spatial" lays them out in a grid.
            tile: cut the examples by tiles of this side; see `incontext.example_crops`.

        Returns:
            Images and targets, each float32 (1, N, 3, H, W), normalised; None if no example is shown in this
            pass.
        """
        palette = self.palettes[index]
        pairs: Sequence[tuple[np.ndarray, np.ndarray]] = [(each.image, each.labels) for each in self.shown(index)]
        if not pairs:
            return None
        if tile is not None:
            pairs = crop_examples(pairs, palette.ids, tile)
        images = np.stack([resize_image(image, size) for image, _ in pairs])
        labels = np.stack([resize_labels(mask, size) for _, mask in pairs])
        lost = {id for _, mask in pairs for id in np.unique(mask).tolist()} & set(palette.ids) - set(
            np.unique(labels).tolist()
        )
        if lost:
            _log.warning(
                "ids %s are too thin to be seen in the examples at %d x %d pixels; tiles would show them",
                sorted(lost),
                *size,
            )
        images, targets = normalise(images)[None], normalise(palette.paint(labels))[None]
        if ensemble == "spatial":
            images, targets = spatial_grid(images, "bicubic"), spatial_grid(targets, "nearest")
        return images, targets


def check_examples(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Returns examples as a tuple.

    Raises:
        TypeError: for something else.
    """
    examples = (examples,) if isinstance(examples, Example) else tuple(examples)
    for each in examples:
        if not isinstance(each, Example):
            raise TypeError(
                f"expected examples, got {type(each).__name__}; make them with Example.open(image, mask) or "
                "Example(image, labels)"
            )
    return examples


def resize_hints(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a partly painted mask so that no painted pixel is lost: a click must survive any reduction.

    Args:
        labels: int (H, W); negative where nothing is painted.
        size: (H, W) to resize to.

    Returns:
        The same type. Where painted pixels fall together, ids win over background, larger ids over smaller.
    """
    y, x = np.nonzero(labels >= 0)
    painted = np.full(size, -1, labels.dtype)
    np.maximum.at(painted, (y * size[0] // labels.shape[0], x * size[1] // labels.shape[1]), labels[y, x])
    return np.where(painted >= 0, painted, resize_labels(labels, size))  # the latter fills what enlarging leaves out
