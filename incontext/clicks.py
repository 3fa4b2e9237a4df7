"""Clicks on a picture: points that say which object is meant, or that something is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from incontext.types import IGNORE


@dataclass(frozen=True)
class Click:
    """A point on a picture.

    Attributes:
        x, y: column and row of a pixel, from the upper left, from 0 on.
        id: of the object that it lies on; 0 says that it lies on none.
    """

    x: int
    y: int
    id: int = 1


def paint_clicks(clicks: Sequence[Click], size: tuple[int, int], radii: tuple[float, float]) -> np.ndarray:
    """Clicks as known labels: int32 (H, W), `IGNORE` elsewhere.

    Where several clicks reach, the nearest counts; at the same distance, the later one.

    Args:
        clicks: in order.
        size: (H, W).
        radii: of a click along rows and columns, in pixels; an ellipse here is a disk for the model, which sees
            the picture stretched. A click covers one pixel at least.

    Raises:
        ValueError: there is no click, one lies outside of the picture, or has an id below 0.
    """
    if not clicks:
        raise ValueError("clicks: expected at least one, got none")
    known = np.full(size, IGNORE, np.int32)
    nearest = np.ones(size)  # distances to the clicks that are known there, in radii; none reaches farther than 1
    rows, columns = np.indices(size, sparse=True)
    for click in clicks:
        if not (0 <= click.y < size[0] and 0 <= click.x < size[1]):
            raise ValueError(f"clicks: expected points inside of {size[1]} x {size[0]} pixels, got {click.x},{click.y}")
        if click.id < 0:
            raise ValueError(f"clicks: expected ids from 0 ('not this') on, got {click.id}")
        away = ((rows - click.y) / radii[0]) ** 2 + ((columns - click.x) / radii[1]) ** 2
        reached = away <= nearest
        known[reached], nearest[reached] = click.id, away[reached]
    return known


def click_radii(size: tuple[int, int], model_size: tuple[int, int], patch: int) -> tuple[float, float]:
    """Radii, along rows and columns of a picture of size (H, W), of a disk that is half a patch wide for the model: as
    large as a click in training."""
    return tuple(patch / 4 * side / seen for side, seen in zip(size, model_size, strict=True))
