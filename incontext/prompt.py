"""Examples and prompt packs made ready to condition a model.

How they join is told in `incontext.pack.joining`. A pass shows those examples, learned or real, that hold one of its
ids, and those that hold nothing, on purpose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from incontext.canvas import spatial_grid
from incontext.example_crops import crop_examples
from incontext.image import normalise, resize_image, resize_labels
from incontext.model.seggpt import PromptCache
from incontext.pack import PackError, PromptPack
from incontext.pack.joining import agreed, join_by_name, linked_ids, mean_of, share_passes
from incontext.pack.prompt_pack import ENSEMBLES
from incontext.pack.tokens import stack_tokens
from incontext.palette import Palette
from incontext.tiling import object_width, too_thin
from incontext.types import Example, ids_in

__all__ = ["ENSEMBLES", "Prompt", "Source", "check_sources", "resize_hints"]

Source = Example | PromptPack
"""What a prompt is made of."""

ONE_BY_ONE_MOST = 12
"""Up to how many ids are painted one by one, where that is wanted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What conditions the model: examples and packs, and the colours of their ids.

    Attributes:
        examples: in the user's order.
        palettes: the colours of the ids. Each id is in one of them.
        names: id -> name, from all sources.
        packs: with the ids that they have here.
        apart: encode each source for itself and keep that for as long as the source lives, where the model allows
            it: for prompts that share most of their sources with others, as a video's do.
        one_by_one: whether ids that share a palette are painted each by itself, too.
    """

    examples: tuple[Example, ...]
    palettes: tuple[Palette, ...]
    names: Mapping[int, str]
    packs: tuple[PromptPack, ...] = ()
    apart: bool = False
    one_by_one: bool = False

    @classmethod
    def build(
        cls,
        sources: Iterable[Source],
        ids_per_pass: int,
        palette: Callable[[tuple[int, ...]], Palette] | None = None,
        ids: Iterable[int] = (),
        one_by_one: bool = False,
    ) -> Prompt:
        """Merges the ids and names of examples and packs and shares the ids out among passes.

        Args:
            sources: examples, each with its own ids; one id means the same in all of them. And packs, whose
                ids join them by name.
            ids_per_pass: how many ids get a colour in one pass of the model.
            palette: gives the ids of one pass their colours. By default those of a pack that has them to
                itself, else `Palette.for_ids`.
            ids: further ids, which no source shows.
            one_by_one: see the class. More than `ONE_BY_ONE_MOST` ids are not, which would take too long.

        Raises:
            TypeError: for something else than examples and packs.
            ValueError: if there are no ids, or one id has two names.
        """
        sources = check_sources(sources)
        examples = tuple(each for each in sources if isinstance(each, Example))
        names: dict[int, str] = {}
        for example in examples:
            for id, name in example.names.items():
                if names.setdefault(id, name) != name:
                    raise ValueError(
                        f"expected one meaning for each id, got {names[id]!r} and {name!r} for id {id}; "
                        "renumber the ids of one of the examples"
                    )
        shown = {id for example in examples for id in example.ids}
        packs = join_by_name([each for each in sources if isinstance(each, PromptPack)], names, shown)
        of_packs = {id for pack in packs for id in pack.ids}
        palettes = share_passes({*shown, *(set(ids) - of_packs)}, packs, ids_per_pass, palette)
        if not palettes:
            raise ValueError(
                "expected at least one id (a label of 1 or more) in the examples, got only background; "
                "give examples that show what to find"
            )
        names = {**{id: name for pack in packs for id, name in pack.names.items()}, **names}
        few = sum(len(each.ids) for each in palettes) <= ONE_BY_ONE_MOST
        return cls(examples, palettes, names, packs, one_by_one=one_by_one and few)

    @cached_property
    def passes(self) -> tuple[Palette, ...]:
        """What the model paints, pass by pass: each palette and then, one by one, its ids in the same colours.

        The passes of packs are painted as they were tuned, together alone. So are those with an id that is told of by
        what is known of the query, and no example shows: alone it might have nothing to go by.
        """
        of_packs, shown = {id for pack in self.packs for id in pack.ids}, self._shown_ids
        passes: list[Palette] = []
        for palette in self.palettes:
            passes.append(palette)
            alone = not of_packs.intersection(palette.ids) and (not shown or shown.issuperset(palette.ids))
            if self.one_by_one and alone and len(palette.ids) > 1:
                passes += [Palette((id,), palette.colours[k : k + 1]) for k, id in enumerate(palette.ids)]
        return tuple(passes)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, sorted."""
        return tuple(sorted(id for palette in self.palettes for id in palette.ids))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The packs, then the examples."""
        return (*self.packs, *self.examples)

    def kind_for(self, asked: str | None, default: str) -> str:
        """The type token: the one asked for, else what the packs were made for, else a default.

        Raises:
            PackError: packs differ in it, and none is asked for.
        """
        return asked or (agreed(self.packs, "kind") if self.packs else default)

    def ensemble_for(self, asked: str | None) -> str:
        """How examples work together: as asked for, else as the packs', else "feature".

        Raises:
            PackError: packs differ in it, and none is asked for.
        """
        return asked or (agreed(self.packs, "ensemble") if self.packs else "feature")

    def tile_for(self, asked: int | str | None) -> int | str | None:
        """The side of tiles: as asked for; with packs all but a number means theirs, which may be None.

        Raises:
            PackError: packs differ in it, and none is asked for.
        """
        return agreed(self.packs, "tile") if self.packs and asked in (None, "auto", "thin") else asked

    @property
    def temperature(self) -> float | None:
        """The packs' temperature of confidences, of several the geometric mean; None where examples join in."""
        if self.examples or not self.packs:
            return None
        return mean_of(self.packs, "temperature")

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of what is shown, by which queries are laid out. A pack of tiles counts as larger than a
        tile: queries are shown at its scale even where they would fit into one."""
        tiled = [(pack.tile + 1, pack.tile + 1) for pack in self.packs if pack.tile is not None]
        return (*tiled, *(each.size for each in self.examples))

    @cached_property
    def object_width(self) -> float | None:
        """Pixels; see `incontext.tiling.object_width`."""
        return object_width([each.labels for each in self.examples])

    def too_thin(self, image_size: tuple[int, int]) -> bool:
        """Whether examples alone are shown, and whole images hide all of their objects (`tiling.too_thin`).

        Args:
            image_size: (h, w) of the model's input.
        """
        if image_size not in self._thin:
            hidden = not self.packs and too_thin((each.labels for each in self.examples), image_size)
            self._thin[image_size] = hidden
        return self._thin[image_size]

    @cached_property
    def _thin(self) -> dict[tuple[int, int], bool]:
        return {}

    def shown(self, index: int) -> tuple[Example, ...]:
        """The examples of one pass: those with an id of its palette, and those that show background only, on
        purpose.

        An example of other ids would be all black in this pass, and would speak for the background.
        """
        wanted = set(self.passes[index].ids)
        return tuple(each for each in self.examples if each.is_background or wanted.intersection(each.ids))

    def shown_packs(self, index: int) -> tuple[PromptPack, ...]:
        """The packs that have an id in one pass."""
        wanted = set(self.passes[index].ids)
        return tuple(pack for pack in self.packs if wanted.intersection(pack.ids))

    def groups(self) -> list[tuple[frozenset[int], tuple[Example, ...], tuple[PromptPack, ...]]]:
        """Ids with the examples and packs that know of them: the background of others may hold them."""
        groups = []
        for ids in linked_ids([self._shown_ids, *(pack.ids for pack in self.packs)]):
            packs = tuple(pack for pack in self.packs if ids.intersection(pack.ids))
            groups.append((frozenset(ids), self.examples if ids & self._shown_ids else (), packs))
        return groups

    @cached_property
    def _shown_ids(self) -> set[int]:
        """The ids that examples show."""
        return {id for example in self.examples for id in example.ids}

    def canvases(
        self, index: int, size: tuple[int, int], *, ensemble: str = "feature", tile: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """The images and painted masks of packs and examples, as the model takes them.

        Pixels that are `IGNORE` are painted black, as the model knows no third state.

        Args:
            index: which of `passes`.
            size: (H, W) of the model's input. Images are stretched to it (bicubic), masks too (nearest).
            ensemble: "feature" keeps N examples apart, "spatial" lays them out in a grid.
            tile: cut the examples by tiles of this side; see `incontext.example_crops`. Packs are as they are.

        Returns:
            Images and targets, each float32 (1, N, 3, H, W), normalised; None if no example is shown in this
            pass.

        Raises:
            PackError: a pack's images have another size.
        """
        parts = [pack.canvases(self.passes[index]) for pack in self.shown_packs(index)]
        for pack in self.packs:
            if pack.size != tuple(size):
                raise PackError(f"the pack {pack.name!r} holds images of {pack.size}, the model takes {tuple(size)}")
        if (drawn := self._draw(index, size, tile)) is not None:
            parts.append(drawn)
        if not parts:
            return None
        images, targets = (torch.cat(each)[None] for each in zip(*parts, strict=True))
        if ensemble == "spatial":
            images, targets = spatial_grid(images, "bicubic"), spatial_grid(targets, "nearest")
        return images, targets

    def tokens(self, index: int, *, ensemble: str = "feature") -> Tensor | None:
        """What packs add to the encoded examples of one pass; see `PromptPack.tokens`.

        Returns:
            float16 (n, layers, 2, heads, l, d), for the examples of the packs, which `canvases` puts first; None
            where no pack has any.

        Raises:
            PackError: the ensemble is "spatial", which mixes the examples that tokens belong to.
        """
        palette = self.passes[index]
        shown = self.shown_packs(index)
        tokens = stack_tokens([(len(pack.kept(palette)), pack.kept_tokens(palette)) for pack in shown])
        if tokens is not None and ensemble != "feature":
            raise PackError(f"expected the feature ensemble with a pack that has learned tokens, got {ensemble!r}")
        return tokens

    def cache(self, index: int, *, ensemble: str, kind: str) -> PromptCache | None:
        """The encoded prompt of one pass, where a pack has brought it along and nothing else is shown."""
        packs = self.shown_packs(index)
        if self.shown(index) or len(packs) != 1:
            return None
        return packs[0].cache(self.passes[index], ensemble=ensemble, kind=kind)

    def _draw(self, index: int, size: tuple[int, int], tile: int | None) -> tuple[Tensor, Tensor] | None:
        """The examples alone: images and targets, each (n, 3, H, W); None if none is shown."""
        palette, shown = self.passes[index], self.shown(index)
        if not shown:
            return None
        if tile is None:
            pairs = [self._resized(each, size) for each in shown]
            ids = {id for each in shown for id in each.ids}
        else:
            pairs = crop_examples([(each.image, each.labels) for each in shown], palette.ids, tile)
            ids = {id for _, mask in pairs for id in ids_in(mask)}
            pairs = [(resize_image(image, size), resize_labels(mask, size)) for image, mask in pairs]
        images, labels = (np.stack(each) for each in zip(*pairs, strict=True))
        if any(palette is each for each in self.palettes):  # once for each id
            if lost := ids.intersection(palette.ids).difference(ids_in(labels)):
                _log.warning(
                    "ids %s are too thin to be seen in the examples at %d x %d pixels; tiles may show them",
                    sorted(lost),
                    *size,
                )
        return normalise(images), normalise(palette.paint(labels))

    def _resized(self, example: Example, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """An example's image and labels at a size; every pass shows the same."""
        if (example, size) not in self._small:
            small = resize_image(example.image, size), resize_labels(example.labels, size)
            self._small[example, size] = small
        return self._small[example, size]

    @cached_property
    def _small(self) -> dict[tuple[Example, tuple[int, int]], tuple[np.ndarray, np.ndarray]]:
        return {}


def check_sources(sources: Source | Iterable[Source]) -> tuple[Source, ...]:
    """Returns examples and packs as a tuple.

    Raises:
        TypeError: for something else.
    """
    sources = (sources,) if isinstance(sources, (Example, PromptPack)) else tuple(sources)
    for each in sources:
        if not isinstance(each, (Example, PromptPack)):
            raise TypeError(
                f"expected examples or packs, got {type(each).__name__}; make them with Example.open(image, mask), "
                "Example(image, labels) or PromptPack.load(path)"
            )
    return sources


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
