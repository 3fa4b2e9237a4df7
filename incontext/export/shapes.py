"""Objects as annotation programs draw them: a polygon where that is exact, else a mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from incontext.export.labelled import LabelledImage
from incontext.export.polygons import Part, fill, trace


@dataclass(frozen=True, eq=False)
class Shape:
    """One object to draw.

    Attributes:
        id: class id.
        score: 0..1, or None.
        polygon: int32 (n, 2): x, y of its corners in pixels; None where it has holes or several parts.
        mask: bool (H, W); None where the polygon says it all.
    """

    id: int
    score: float | None
    polygon: np.ndarray | None = None
    mask: np.ndarray | None = None


def shapes(item: LabelledImage) -> Iterator[Shape]:
    """An image's objects; where they were not told apart, every connected part of a class."""
    for thing in item.objects():
        parts = trace(thing.mask)
        if len(parts) == 1 and not parts[0].holes:
            yield Shape(thing.id, thing.score, polygon=parts[0].outline)
        elif item.instances is not None:
            yield Shape(thing.id, thing.score, mask=thing.mask)
        else:
            yield from (_shape_of(part, thing.id, thing.score, item.size) for part in parts)


def _shape_of(part: Part, id: int, score: float | None, size: tuple[int, int]) -> Shape:
    if not part.holes:
        return Shape(id, score, polygon=part.outline)
    return Shape(id, score, mask=fill([part.outline, *part.holes], size))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Where a mask is: (left, top, right, bottom), the last two one past its last pixel. It must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
