"""Where a person should look: frames in which something about an object is odd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from incontext.video.tracked_frame import TrackedFrame

_APART = 5  # frames within which one object gives one doubt, the strongest
_SHRUNK = 1 / 3  # of the area, from one frame to the next
_WEAK = 0.3  # doubts below it are not worth a look


@dataclass(frozen=True)
class Doubt:
    """A frame to look at.

    Attributes:
        frame: its number.
        place: 0 for the first frame that was tracked, then 1.
        id: the object.
        reason: "lost", "returned", "jumped", "resized", "uncertain", or "does not lead back" (see `TrackedFrame.echo`).
        strength: 0..1.
    """

    frame: int
    place: int
    id: int
    reason: str
    strength: float


class Watch:
    """Sees the frames of a video one after the other, and remembers the oddest. It does not grow with the video."""

    def __init__(self, limit: int = 30) -> None:
        """
        Args:
            limit: how many doubts are kept.
        """
        self.limit = limit
        self._doubts: list[Doubt] = []
        self._last: np.ndarray | None = None
        self._areas: dict[int, int] = {}  # of the last frame; 0 for one that is not seen

    @property
    def doubts(self) -> list[Doubt]:
        """The strongest first."""
        return sorted(self._doubts, key=lambda doubt: (-doubt.strength, doubt.frame, doubt.id))

    def see(self, frame: TrackedFrame) -> None:
        """Takes in the next frame."""
        areas = {id: frame.extents[id].area if id in frame.extents else 0 for id in frame.followed}
        for id, area in areas.items():
            doubt = self._judge(frame, id, area)
            if doubt is not None and doubt.strength >= _WEAK:
                self._add(doubt)
        self._last, self._areas = frame.labels, areas

    def _judge(self, frame: TrackedFrame, id: int, area: int) -> Doubt | None:
        before = self._areas.get(id)
        certainty = frame.certainty.get(id, 0.0) if area else 1.0
        uncertain = Doubt(frame.index, frame.place, id, "uncertain", 1 - certainty)
        if area and frame.echo is not None and frame.echo < certainty:
            uncertain = Doubt(frame.index, frame.place, id, "does not lead back", 1 - frame.echo)
        if before is None or not (before or area):
            return uncertain
        if not area:
            return Doubt(frame.index, frame.place, id, "lost", 0.9)
        if not before:
            return Doubt(frame.index, frame.place, id, "returned", 0.8)
        ratio = min(area, before) / max(area, before)
        resized = Doubt(frame.index, frame.place, id, "resized", (1 - ratio) * (ratio < _SHRUNK))
        shared = 1.0
        if self._last.shape == frame.labels.shape:
            here, there = frame.labels == id, self._last == id
            shared = (here & there).sum() / min(area, before)
        jumped = Doubt(frame.index, frame.place, id, "jumped", float(1 - shared))
        return max(resized, jumped, uncertain, key=lambda doubt: doubt.strength)

    def _add(self, doubt: Doubt) -> None:
        near = [each for each in self._doubts if each.id == doubt.id and abs(each.place - doubt.place) <= _APART]
        if any(each.strength >= doubt.strength for each in near):
            return
        self._doubts = [each for each in self._doubts if each not in near] + [doubt]
        if len(self._doubts) > self.limit:
            self._doubts = self.doubts[: self.limit]
