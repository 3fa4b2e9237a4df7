"""Mix-context stitching (SegGPT paper, section 3.1): views of several contexts side by side, under one colour map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from incontext.training.augment import crop, random_box
from incontext.training.pack import IGNORE_ID

GRIDS = ((1, 2), (2, 1), (2, 2))
"""(rows, columns) of images in a stitched view."""


def join_labels(labels: Sequence[np.ndarray], counts: Sequence[int], largest: int) -> tuple[list[np.ndarray], int]:
    """Numbers the things of several contexts as one.

    Args:
        labels: of each context uint8 (..., H, W): 0, 1..count, 255 ignored.
        counts: of each context, how many things it has.
        largest: the most things that are kept. What comes after them becomes background: a distractor.

    Returns:
        The labels, and how many things there are in all.
    """
    joined, total = [], 0
    for ids, count in zip(labels, counts, strict=True):
        kept = min(count, largest - total)
        table = np.zeros(256, np.uint8)
        table[IGNORE_ID] = IGNORE_ID
        table[1 : kept + 1] = total + np.arange(1, kept + 1)
        joined.append(table[ids])
        total += kept
    return joined, total


def stitch_view(
    rng: np.random.Generator,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    grid: tuple[int, int],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Lays images out in a grid, in a random order, and takes a random crop of it.

    Args:
        rng: source of randomness.
        images: rows * columns images, uint8 (h, w, 3) of one size.
        labels: their labels, uint8 (h, w).
        grid: (rows, columns).
        size: (H, W) of the result.

    Returns:
        The view and its labels.
    """
    rows, columns = grid
    order = rng.permutation(rows * columns).reshape(rows, columns)
    image, ids = (
        np.concatenate([np.concatenate([parts[index] for index in row], axis=1) for row in order], axis=0)
        for parts in (images, labels)
    )
    view, (view_ids,) = crop(image, [ids], random_box(rng, ids.shape, area=(0.6, 1.0)), size)
    return view, view_ids
