"""Masks in pieces: a sign of a mistake that needs no second prediction.

A model that has understood what to look for finds it in one piece, as the examples show it; a model that goes by colour
alone also marks what happens to have the same colour elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from einops import reduce
from scipy import ndimage

from incontext.types import Example, ids_in

_SIDE = 256
"""Longest side, in blocks of pixels, at which pieces are told apart; gaps within a block join them."""


def wholeness(labels: np.ndarray, usual: Mapping[int, float] | None = None) -> dict[int, float]:
    """How whole each mask is: id -> the part of its area that lies in its largest connected piece, 0..1.

    Args:
        labels: int (H, W).
        usual: id -> 0..1, how whole masks of it are (see `usual_wholeness`), by which the result is raised to a power:
            where an id is a single object, pieces tell much, and where it is many, nothing. 1 for ids not named.
    """
    usual = usual or {}
    step = -(-max(labels.shape) // _SIDE)
    padding = [(0, -side % step) for side in labels.shape]
    shares = {}
    for id in ids_in(labels):
        mask = np.pad(labels == id, padding).view(np.uint8)
        areas = reduce(mask, "(h y) w -> h w", partial(np.sum, dtype=np.int32), y=step)  # rows first: many times faster
        areas = reduce(areas, "h (w x) -> h w", "sum", x=step)
        pieces, _ = ndimage.label(areas)
        share = np.bincount(pieces.ravel(), areas.ravel())[1:].max() / areas.sum()
        shares[id] = float(share ** usual.get(id, 1.0))
    return shares


def usual_wholeness(examples: Iterable[Example]) -> dict[int, float]:
    """How whole masks are in examples: id -> the mean over those that show it, 0..1."""
    found: dict[int, list[float]] = {}
    for example in examples:
        for id, share in wholeness(example.labels).items():
            found.setdefault(id, []).append(share)
    return {id: float(np.mean(shares)) for id, shares in found.items()}


def mean_wholeness(shares: Mapping[int, float]) -> float | None:
    """Of all masks of an image, from `wholeness`; None where there is none."""
    return sum(shares.values()) / len(shares) if shares else None
