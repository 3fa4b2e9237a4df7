"""Which parts of large examples are shown where queries are shown in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from incontext.tiling import Layout, pad

MAX_CROPS = 4
"""How many crops stand for all large examples, unless there are more examples, or showing every id takes
more."""

_ENOUGH = 0.1
"""A crop that shows less than this part of what the first one showed is not worth its time."""


def crop_examples(
    examples: Sequence[tuple[np.ndarray, np.ndarray]], ids: Sequence[int], tile: int, limit: int = MAX_CROPS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Chooses the tiles that stand for examples.

    An example that fits into a tile gives one. Of larger ones, one after the other, that tile is taken which
    shows most of what has not been shown yet of the ids, preferably beside some background; until there are
    `limit` (or one for each large example, if that is more) and every id has been shown. A large example
    without any of the ids gives its middle.

    Args:
        examples: (image uint8 (H, W, 3), labels int (H, W)) pairs.
        ids: the ids that matter.
        tile: side in pixels.
        limit: how many tiles of large examples suffice.

    Returns:
        (image, labels) pairs of tile x tile pixels, those of one example together, in the examples' order.
    """
    padded = [(pad(image, tile), pad(labels, tile)) for image, labels in examples]
    corners: list[list[tuple[int, int]]] = [[] for _ in padded]
    seen: set[int] = set()
    large: dict[int, _Blocks] = {}
    for index, (_, labels) in enumerate(padded):
        if labels.shape == (tile, tile) or not np.isin(labels, ids).any():
            corners[index].append(tuple((side - tile) // 2 for side in labels.shape))
            seen |= set(ids) & set(np.unique(labels).tolist())
        else:
            large[index] = _Blocks(labels, ids, tile)
    totals = sum((blocks.counts.sum(axis=(1, 2)) for blocks in large.values()), start=np.zeros(len(ids)))
    seen |= {id for id, total in zip(ids, totals, strict=True) if total == 0}
    wanted, first, taken = max(limit, len(large)), 0.0, 0
    while large:
        # Past the wanted number only ids that no crop shows yet count.
        pays = np.array([taken < wanted or id not in seen for id in ids]) / np.maximum(totals, 1)
        best, index, window = max(
            (
                (blocks.gain(window, pays), index, window)
                for index, blocks in large.items()
                for window in blocks.windows
            ),
            key=lambda choice: choice[0],
        )
        first = first or best
        if best == 0 or (best < _ENOUGH * first and seen.issuperset(ids)):
            break
        seen |= large[index].take(window)
        corners[index].append(window.corner)
        taken += 1
    return [
        (image[top : top + tile, left : left + tile], labels[top : top + tile, left : left + tile])
        for (image, labels), places in zip(padded, corners, strict=True)
        for top, left in places
    ]


class _Window(NamedTuple):
    corner: tuple[int, int]
    rows: slice  # in blocks
    columns: slice


class _Blocks:
    """Pixels of each id in small blocks of one large example, less those in tiles already taken.

    Attributes:
        counts: (K, h, w), pixels of each id that no taken tile shows.
        windows: the tiles to choose from, half overlapping.
    """

    def __init__(self, labels: np.ndarray, ids: Sequence[int], tile: int) -> None:
        self.ids, self.side, self.area = ids, max(1, tile // 32), tile**2
        self.size = labels.shape
        self.counts = np.stack([self._count(labels == id) for id in ids])
        self.background = self._count(labels == 0)
        self.windows = [
            _Window((top, left), self._inside(top, tile, self.size[0]), self._inside(left, tile, self.size[1]))
            for top, left in Layout.tiled(self.size, tile, 0.5).corners
        ]

    def gain(self, window: _Window, pays: np.ndarray) -> float:
        """What a tile would add: new pixels of each id times what one pays (K,), at half price without
        background."""
        new = (self.counts[:, window.rows, window.columns].sum(axis=(1, 2)) * pays).sum()
        empty = self.background[window.rows, window.columns].sum() / self.area
        return float(new) * (0.5 + min(float(empty), 0.5))

    def take(self, window: _Window) -> set[int]:
        """Counts a tile's pixels as shown; returns the ids on it."""
        place = self.counts[:, window.rows, window.columns]
        found = place.any(axis=(1, 2))
        place[:] = 0
        return {id for id, here in zip(self.ids, found, strict=True) if here}

    def _count(self, mask: np.ndarray) -> np.ndarray:
        rows, columns = (-(-side // self.side) for side in self.size)
        y, x = np.nonzero(mask)
        return np.bincount(y // self.side * columns + x // self.side, minlength=rows * columns).reshape(rows, columns)

    def _inside(self, start: int, tile: int, length: int) -> slice:
        """The blocks that lie wholly within a tile; the last block of the image may be a part of one."""
        stop = start + tile
        return slice(-(-start // self.side), -(-stop // self.side) if stop == length else stop // self.side)
