"""What tuning learns from: the user's images as views of the model's input size, a part of them held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from incontext.image import resize_image, resize_labels
from incontext.pack.compiling import class_names, slots_of
from incontext.tiling import Layout, pad
from incontext.training.augment import crop, jitter, random_box
from incontext.types import IGNORE, Example

IGNORED = 255
"""Pixels in views that count neither as background nor as a class."""

_SPARE = 2  # images are kept at up to this many times the model's input, so that crops are sharp
_TRIES = 8  # windows of a large image that are looked at for one that shows something


@dataclass(frozen=True, eq=False)
class Views:
    """Images and masks of the model's input size.

    Attributes:
        images: uint8 (M, h, w, 3).
        slots: uint8 (M, h, w): 0 background, k the k-th class, `IGNORED`.
    """

    images: np.ndarray
    slots: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Sequence[int] | slice) -> Views:
        return Views(self.images[index], self.slots[index])

    def shown(self, index: int) -> frozenset[int]:
        """The classes (1..K) in one view."""
        return frozenset(np.unique(self.slots[index]).tolist()) - {0, IGNORED}


@dataclass(frozen=True, eq=False)
class Augmentation:
    """How training views differ from the images.

    Attributes:
        crops: share of views that show a part of an image, 0..1. With tiles all do.
        mirror: whether half of the views are mirrored. Not where classes tell left from right.
        jitter: how much colours change; 0 not at all, 1 as in training.
    """

    crops: float
    mirror: bool
    jitter: float


class TuneData:
    """A user's images, split into what is learned from and what is held out.

    Attributes:
        names: id -> name, of all classes; masks count classes in this order.
        size: (h, w) of a view.
        tile: side of the squares that views show, in the images' pixels; None where they show whole images.
        held: fixed views of the images that are held out.
        digest: tells other data, or another split, from these.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        name: str,
        size: tuple[int, int],
        tile: int | None,
        held_out: float,
        seed: int,
    ) -> None:
        """
        Args:
            examples: taken one by one, so that a generator need not hold them all.
            name: of classes without a name; see `class_names`.
            size: (h, w) of the model's input.
            tile: see the attribute.
            held_out: share of the images, 0..1; at least one.
            seed: of the split.

        Raises:
            ValueError: there are fewer than two images, or none shows an id.
        """
        self.size, self.tile = size, tile
        kept, digest = [], hashlib.sha256(f"{size} {tile} {held_out} {seed}".encode())
        for example in examples:
            digest.update(repr((example.size, sorted(example.names.items()))).encode())
            digest.update(np.ascontiguousarray(example.image))
            digest.update(np.ascontiguousarray(example.labels))
            kept.append(self._shrink(example))
        self.names = class_names(kept, name)
        if len(kept) < 2 or not self.names:
            raise ValueError(
                f"expected at least two labelled images (one to learn from, one to be held out), got {len(kept)} "
                f"with the ids {sorted(self.names)}"
            )
        ids = tuple(self.names)
        maps = [np.where(e.labels == IGNORE, IGNORED, slots_of(e.labels, ids)).astype(np.uint8) for e in kept]
        order = np.random.default_rng(seed).permutation(len(kept))
        count = min(len(kept) - 1, max(1, round(held_out * len(kept))))
        held, learned = sorted(order[:count]), sorted(order[count:])
        self.held = self._whole([(kept[k].image, maps[k]) for k in held])
        self._sources = [(kept[k].image, maps[k]) for k in learned]
        self._showing = [
            [k for k, (_, slots) in enumerate(self._sources) if (slots == slot).any()]
            for slot in range(1, len(ids) + 1)
        ]
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        """How many images there are to learn from."""
        return len(self._sources)

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The images to learn from, uint8 (H, W, 3), with classes 1..K, 0, and negative where nothing is known."""
        return [(image, np.where(slots == IGNORED, -1, slots.astype(np.int32))) for image, slots in self._sources]

    def draw(self, rng: np.random.Generator, count: int, wanted: Sequence[int], how: Augmentation) -> Views:
        """Draws training views.

        Args:
            rng: decides everything.
            count: how many.
            wanted: classes (1..K). Half of the views are of images that show one of them, where there are any.
            how: the views are changed.
        """
        showing = sorted({k for slot in wanted for k in self._showing[slot - 1]})
        chosen = [
            int(rng.choice(showing)) if showing and rng.random() < 0.5 else int(rng.integers(len(self)))
            for _ in range(count)
        ]
        return _stack([self._view(rng, *self._sources[k], how) for k in chosen])

    def candidates(self, rng: np.random.Generator, count: int) -> Views:
        """Draws views of different images as they are, which may serve as examples: up to `count`, or as many as
        it takes to show every class."""
        order = [int(k) for k in rng.permutation(len(self))]
        rarest_first = sorted(self._showing, key=len)
        needed = [next(k for k in order if k in group) for group in rarest_first if group]
        chosen = list(dict.fromkeys([*needed, *order]))[: max(count, len(set(needed)))]
        return _stack([self._plain(rng, *self._sources[k]) for k in chosen])

    def _shrink(self, example: Example) -> Example:
        """An example no larger than views need."""
        most = tuple(_SPARE * side for side in self.size)
        size = tuple(min(side, limit) for side, limit in zip(example.size, most, strict=True))
        if self.tile is not None or size == example.size:
            return example
        return Example(resize_image(example.image, size), resize_labels(example.labels, size), example.names)

    def _whole(self, sources: Sequence[tuple[np.ndarray, np.ndarray]]) -> Views:
        """Everything in some images: each as a whole, or all of its tiles."""
        views = []
        for image, slots in sources:
            size = slots.shape
            layout = Layout.whole(size) if self.tile is None else Layout.tiled(size, self.tile, 0.0)
            views += [self._fit(*pair) for pair in zip(layout.cut(image), layout.cut(slots), strict=True)]
        return _stack(views)

    def _fit(self, image: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return resize_image(image, self.size), resize_labels(slots, self.size)

    def _window(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[slice, slice]:
        corner = [int(rng.integers(0, side - self.tile + 1)) for side in size]
        return tuple(slice(start, start + self.tile) for start in corner)

    def _plain(self, rng: np.random.Generator, image: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The whole image, or the fullest of a few tiles."""
        if self.tile is None:
            return self._fit(image, slots)
        image, slots = pad(image, self.tile), pad(slots, self.tile)
        windows = [self._window(rng, slots.shape) for _ in range(_TRIES)]
        best = max(windows, key=lambda each: ((slots[each] > 0) & (slots[each] != IGNORED)).mean())
        return self._fit(image[best], slots[best])

    def _view(
        self, rng: np.random.Generator, image: np.ndarray, slots: np.ndarray, how: Augmentation
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.tile is not None:
            image, slots = pad(image, self.tile), pad(slots, self.tile)
            window = self._window(rng, slots.shape)
            image, slots = image[window], slots[window]
        part = self.tile is None and rng.random() < how.crops
        height, width = slots.shape
        box = random_box(rng, slots.shape) if part else (0.0, 0.0, float(width), float(height))
        view, (found,) = crop(image, [slots], box, self.size)
        if how.mirror and rng.random() < 0.5:
            view, found = view[:, ::-1], found[:, ::-1]
        return (jitter(rng, view, how.jitter) if how.jitter else view), found


def _stack(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Views:
    return Views(np.stack([image for image, _ in pairs]), np.stack([slots for _, slots in pairs]))
