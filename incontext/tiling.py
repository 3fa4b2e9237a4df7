"""Large images in overlapping tiles: how large they are, where they lie, how their paintings blend.

A tile is a square of the image's own pixels, scaled to the model's input. Objects must look as large in the
example as in the tile, so with tiles the examples are cut by the same square (`incontext.example_crops`): a
pixel of the example counts as large as a pixel of the query. What is smaller than a tile is mirrored at its
edges up to the size of one, never stretched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from incontext.types import ids_in

AUTO_PATCHES = 2
"""With tile="auto" the thinnest object is to span this many patches of the model's input."""

AUTO_SLACK = 1.5
"""With tile="auto" images up to this many times the tile are shown whole: tiles would cost more than they
show."""

THIN_TILES = 8
"""With tile="thin" there are at most so many tiles along a side of the largest example."""

_SEEN = 1.5  # pixels of the model's input, below which the width of an object is not seen


@dataclass(frozen=True)
class Layout:
    """How one image is shown to the model: whole, or in tiles.

    Attributes:
        size: (H, W) of the image.
        tile: side of a tile in the image's pixels; None where the image is shown whole.
        corners: (top, left) of every tile, row by row; ((0, 0),) for the whole image.
    """

    size: tuple[int, int]
    tile: int | None
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Layout:
        """One view of the whole image, stretched to the model's input as SegGPT does."""
        return cls(size, None, ((0, 0),))

    @classmethod
    def tiled(cls, size: tuple[int, int], tile: int, overlap: float) -> Layout:
        """Tiles that cover the image, evenly spaced.

        Args:
            size: (H, W).
            tile: side in pixels.
            overlap: the least part of a tile that the next one repeats, 0 to below 1.
        """
        rows, columns = (tile_starts(side, tile, overlap) for side in size)
        return cls(size, tile, tuple((top, left) for top in rows for left in columns))

    def cut(self, image: np.ndarray, fill: int | None = None) -> list[np.ndarray]:
        """Cuts (H, W) or (H, W, 3) into its tiles, (tile, tile, ...) each, or returns the whole as the only
        one.

        Args:
            image: array of the layout's size.
            fill: what lies beyond the edges of an image that is smaller than a tile; its mirror image, by
                default.
        """
        if self.tile is None:
            return [image]
        image = pad(image, self.tile, fill)
        return [image[top : top + self.tile, left : left + self.tile] for top, left in self.corners]

    def join(self, paintings: Tensor) -> Tensor:
        """Puts the paintings of all tiles together at the image's size. That of a whole image stays as it is.

        Overlapping tiles are averaged under a sine-squared window, which falls to almost nothing at the
        tile's edge: there the model sees half an object, and a visible seam would begin there.

        Args:
            paintings: float (n, 3, h, w), one for each of `corners`.

        Returns:
            float (3, H, W); of a whole image (3, h, w).
        """
        if self.tile is None:
            return paintings[0]
        tile = self.tile
        height, width = (max(side, tile) for side in self.size)
        ramp = torch.sin((torch.arange(tile, device=paintings.device) + 0.5) * (math.pi / tile)).square()
        window = ramp[:, None] * ramp
        total = paintings.new_zeros(3, height, width)
        weight = paintings.new_zeros(height, width)
        for painting, (top, left) in zip(paintings, self.corners, strict=True):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            total[place] += window * resize_painting(painting[None], (tile, tile))[0]
            weight[place] += window
        return (total / weight)[:, : self.size[0], : self.size[1]]


@dataclass(frozen=True)
class Tiling:
    """When images are tiled, and how.

    Attributes:
        tile: side of a tile in pixels, or None for never.
        slack: images are shown whole while neither they nor any example exceed `slack` tiles.
        overlap: see `Layout.tiled`.
    """

    tile: int | None = None
    slack: float = 1.0
    overlap: float = 0.25

    def layout(self, size: tuple[int, int], example_sizes: Iterable[tuple[int, int]]) -> Layout:
        """How to show an image of a size, given the sizes of its examples.

        A query that fits into a tile is still shown as a tile if an example does not: at the examples' scale.
        """
        if (
            self.tile is None
            or max(*size, *(side for pair in example_sizes for side in pair)) <= self.slack * self.tile
        ):
            return Layout.whole(size)
        return Layout.tiled(size, self.tile, self.overlap)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along one side, evenly spaced from 0 to length - tile; [0] where one tile is
    enough."""
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / max(1.0, tile * (1 - overlap)))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)]


def pad(image: np.ndarray, tile: int, fill: int | None = None) -> np.ndarray:
    """Grows (H, W) or (H, W, 3) to at least tile x tile pixels: mirrored, or filled, below and to the
    right."""
    missing = [(0, max(0, tile - side)) for side in image.shape[:2]] + [(0, 0)] * (image.ndim - 2)
    if not any(after for _, after in missing):
        return image
    if fill is None:
        return np.pad(image, missing, mode="symmetric")
    return np.pad(image, missing, constant_values=fill)


def resize_painting(paintings: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes paintings (n, 3, h, w) to another (H, W): bilinear, which cannot overshoot a colour."""
    if tuple(paintings.shape[-2:]) == tuple(size):
        return paintings
    return F.interpolate(paintings, size=size, mode="bilinear", align_corners=False, antialias=True)


def auto_tile(width: float | None, image_size: tuple[int, int], patch_size: int) -> int | None:
    """The side of a tile at which the thinnest objects still span `AUTO_PATCHES` patches.

    Never below the model's input size: magnified pixels show nothing new. None where there are no objects.

    Args:
        width: of the thinnest objects, in the images' pixels; see `object_width`.
        image_size: (H, W) of the model's input.
        patch_size: in pixels of the model's input.
    """
    side = max(image_size)
    return None if width is None else max(side, math.floor(width * side / (AUTO_PATCHES * patch_size)))


def thin_tile(
    width: float | None, image_size: tuple[int, int], patch_size: int, sizes: Sequence[tuple[int, int]], overlap: float
) -> int | None:
    """The side of a tile where nobody asked for tiles: as `auto_tile`, or larger, so that there are not too many.

    Args:
        width, image_size, patch_size: as for `auto_tile`.
        sizes: (H, W) of the examples.
        overlap: see `Layout.tiled`.
    """
    tile = auto_tile(width, image_size, patch_size)
    if tile is None:
        return None
    longest = max(side for size in sizes for side in size)
    return max(tile, math.ceil(longest / (1 + (THIN_TILES - 1) * (1 - overlap))))


def object_width(masks: Sequence[np.ndarray]) -> float | None:
    """How wide, in pixels, the objects of the thinnest id are: the mean length of its runs of pixels, along
    rows or along columns, whichever is shorter. None without objects.

    A disc of diameter d has 0.8 d, a line about its thickness; many small objects are as small as one of
    them.
    """
    total: dict[int, np.ndarray] = {}
    for labels in masks:
        for id, counts in _runs(labels).items():
            total[id] = total.get(id, 0) + counts
    return min((_width(counts) for counts in total.values()), default=None)


def object_widths(labels: np.ndarray) -> list[float]:
    """How wide, in pixels, the objects of each id of a mask are; see `object_width`."""
    return [_width(counts) for counts in _runs(labels).values()]


def too_thin(masks: Iterable[np.ndarray], image_size: tuple[int, int]) -> bool:
    """Whether all objects of all masks are thinner than a model sees them in whole images.

    Args:
        masks: int (H, W) each.
        image_size: (h, w) of the model's input.
    """
    widths = (
        width * ((image_size[0] / labels.shape[0]) * (image_size[1] / labels.shape[1])) ** 0.5
        for labels in masks
        for width in object_widths(labels)
    )
    return next(widths, _SEEN) < _SEEN and all(width < _SEEN for width in widths)  # the first wide one decides


def _runs(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Of each id: its pixels, and its runs of pixels along rows and along columns."""
    counts = {}
    for id in ids_in(labels):
        mask = labels == id
        along_rows = mask[:, 0].sum() + (mask[:, 1:] & ~mask[:, :-1]).sum()
        along_columns = mask[0].sum() + (mask[1:] & ~mask[:-1]).sum()
        counts[id] = np.array([mask.sum(), along_rows, along_columns])
    return counts


def _width(counts: np.ndarray) -> float:
    return float(counts[0] / counts[1:].max())
