"""Masks to polygons and back, exactly.

Outlines run along the borders between pixels: the pixel in column x and row y is the square from (x, y) to
(x + 1, y + 1). Filling an outline by its pixels' centres gives the mask back. Diagonal neighbours are connected,
as in `split_instances`, so an outline may pass through one corner twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # (x, y) of right, down, left, up


@dataclass(frozen=True, eq=False)
class Part:
    """One connected part of a mask.

    Attributes:
        outline: int32 (n, 2): x, y of its corners, clockwise as seen, in 0..W and 0..H.
        holes: the outlines of its holes, the other way round.
    """

    outline: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


def trace(mask: np.ndarray) -> list[Part]:
    """Finds the outlines of a mask: bool (H, W) -> its parts, from top to bottom."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    mask = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    parts, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    starts, directions, owners = _border(mask, parts)
    successors = _successors(starts, directions, mask.shape[1] + 1)
    outlines: list[np.ndarray | None] = [None] * (count + 1)
    holes: list[list[np.ndarray]] = [[] for _ in range(count + 1)]
    turns = directions[successors] != directions  # an edge that ends in a corner
    following, turning = successors.tolist(), turns.tolist()
    seen = bytearray(len(following))
    for first in range(len(following)):
        if seen[first]:
            continue
        corners, edge = [], first
        while not seen[edge]:
            seen[edge] = True
            if turning[edge]:
                corners.append(following[edge])
            edge = following[edge]
        y, x = np.divmod(starts[corners], mask.shape[1] + 1)
        ring = np.stack([x + left - 1, y + top - 1], axis=1).astype(np.int32)
        if _signed_area(ring) > 0:
            outlines[owners[first]] = ring
        else:
            holes[owners[first]].append(ring)
    return [Part(outlines[k], tuple(holes[k])) for k in range(1, count + 1)]


def fill(outlines: Iterable[np.ndarray | Sequence], size: tuple[int, int]) -> np.ndarray:
    """Which pixels' centres are inside an odd number of outlines.

    Args:
        outlines: each (n, 2): x, y in pixels, any numbers; what leaves the picture is cut off. An outline and
            its holes together give a part with holes.
        size: (H, W).

    Returns:
        bool (H, W).

    Raises:
        ValueError: an outline has fewer than three corners, or numbers that aren't finite.
    """
    rings = [np.asarray(outline, np.float64) for outline in outlines]
    for ring in rings:
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError(f"an outline of at least three finite corners (x, y) is needed, got shape {ring.shape}")
    mask = np.zeros(size, bool)
    if not rings:
        return mask
    corners = np.concatenate(rings)
    left, top = np.floor(corners.min(axis=0).clip(0, size[::-1])).astype(int)
    right, bottom = np.ceil(corners.max(axis=0).clip(0, size[::-1])).astype(int)
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    for ring in rings:
        _count_crossings(crossings, ring - (left, top))
    mask[top:bottom, left:right] = crossings.cumsum(axis=1)[:, :-1] % 2 == 1
    return mask


def _count_crossings(crossings: np.ndarray, ring: np.ndarray) -> None:
    """Adds 1, in each row, at the first pixel whose centre is right of where an edge crosses it.

    Args:
        crossings: int (h, w + 1), changed in place.
        ring: (n, 2): x, y.
    """
    height, width = crossings.shape
    begin, end = ring, np.roll(ring, -1, axis=0)
    swap = (begin[:, 1] > end[:, 1])[:, None]
    begin, end = np.where(swap, end, begin), np.where(swap, begin, end)
    first, last = (np.ceil(y - 0.5).clip(0, height).astype(np.int64) for y in (begin[:, 1], end[:, 1]))
    counts = last - first
    edges = np.repeat(np.arange(len(ring)), counts)  # one entry for each edge and row that it crosses
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - last, counts)
    begin, end = begin[edges], end[edges]
    along = (rows + 0.5 - begin[:, 1]) / (end[:, 1] - begin[:, 1])
    x = begin[:, 0] + along * (end[:, 0] - begin[:, 0])
    np.add.at(crossings, (rows, np.ceil(x - 0.5).clip(0, width - 1).astype(np.int64)), 1)


def _border(mask: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pixel edges between mask and background, with the mask on their right.

    Args:
        mask: bool (h, w), False along its rim.
        parts: int (h, w), the part of each pixel.

    Returns:
        For each edge, from top to bottom: the corner where it starts as y * (w + 1) + x, its direction (index
        into `_STEPS`), and its part.
    """
    width = mask.shape[1] + 1
    # Going right, the neighbour outside is above and the edge starts at the pixel's own corner; and so on.
    sides = (((-1, 0), (0, 0)), ((0, 1), (0, 1)), ((1, 0), (1, 1)), ((0, -1), (1, 0)))
    found = []
    for direction, (outside, corner) in enumerate(sides):
        y, x = np.nonzero(mask & ~np.roll(mask, (-outside[0], -outside[1]), axis=(0, 1)))
        found.append(((y + corner[0]) * width + x + corner[1], np.full(len(y), direction), parts[y, x]))
    starts, directions, owners = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.argsort(starts, kind="stable")
    return starts[order], directions[order], owners[order]


def _successors(starts: np.ndarray, directions: np.ndarray, width: int) -> np.ndarray:
    """The edge that goes on where each ends: left if there is one, which joins diagonal neighbours; else ahead,
    else right."""
    edge_at = np.full((starts.max() + width + 2, 4), -1)
    edge_at[starts, directions] = np.arange(len(starts))
    ends = starts + _STEPS[directions, 0] + _STEPS[directions, 1] * width
    successors = np.full(len(starts), -1)
    for turn in (1, 0, -1):
        successors = np.where((at := edge_at[ends, (directions + turn) % 4]) >= 0, at, successors)
    return successors


def _signed_area(ring: np.ndarray) -> int:
    """Of corners (n, 2): positive where they go clockwise as seen."""
    x, y = ring.astype(np.int64).T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())
