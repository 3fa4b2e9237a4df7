"""One frame of a tracked video, as it is written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Extent:
    """Where one object is in one frame, in pixels.

    Attributes:
        area: how many pixels.
        box: (left, top, width, height).
        centre: (x, y), the mean of its pixels.
    """

    area: int
    box: tuple[int, int, int, int]
    centre: tuple[float, float]


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """A frame and what was found in it.

    Attributes:
        place: 0 for the first frame that was tracked, then 1, whatever their numbers in the video.
        index: its number in the video.
        time: seconds from the first frame that was tracked.
        image: uint8 (H, W, 3).
        labels: int32 (H, W), 0 and ids.
        followed: the ids that are followed, seen here or not.
        certainty: id -> 0..1, for those that are seen.
        echo: how well the frame leads back to a painted one, where it was asked; see `incontext.video.memory.Moment`.
    """

    place: int
    index: int
    time: float
    image: np.ndarray
    labels: np.ndarray
    followed: tuple[int, ...]
    certainty: Mapping[int, float]
    echo: float | None = None

    @cached_property
    def extents(self) -> dict[int, Extent]:
        """id -> where it is, for those that are seen, by their ids."""
        y, x = np.nonzero(self.labels > 0)
        ids, slots, areas = np.unique(self.labels[y, x], return_inverse=True, return_counts=True)
        centres = [np.bincount(slots, along, len(ids)) / areas for along in (x, y)]
        low = [np.full(len(ids), side) for side in self.labels.shape[::-1]]
        high = [np.full(len(ids), -1) for _ in range(2)]
        for axis, along in enumerate((x, y)):
            np.minimum.at(low[axis], slots, along)
            np.maximum.at(high[axis], slots, along)
        return {
            int(id): Extent(
                int(areas[k]),
                (
                    int(low[0][k]),
                    int(low[1][k]),
                    int(high[0][k] - low[0][k] + 1),
                    int(high[1][k] - low[1][k] + 1),
                ),
                (float(centres[0][k]), float(centres[1][k])),
            )
            for k, id in enumerate(ids)
        }


@dataclass(frozen=True)
class TrackedVideo:
    """What all writers need to know beforehand.

    Attributes:
        name: of the video, for people and file names.
        size: (H, W).
        rate: frames a second among those that were tracked.
        labels: for each frame that was to be tracked, what its results are called.
        names: id -> name.
    """

    name: str
    size: tuple[int, int]
    rate: float
    labels: tuple[str, ...]
    names: Mapping[int, str]

    def title(self, id: int) -> str:
        """An id with its name, where it has one."""
        return f"{id} {self.names[id]}" if id in self.names else str(id)

    def classes(self, ids: tuple[int, ...]) -> dict[int, tuple[int, str]]:
        """id -> (class number from 1, class name): objects of one name are of one class, those without are "object"."""
        numbers: dict[str, int] = {}
        found = {}
        for id in sorted(ids):
            name = self.names.get(id, "object")
            found[id] = (numbers.setdefault(name, len(numbers) + 1), name)
        return found
