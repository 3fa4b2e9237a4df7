"""Which past frames a tracker remembers: pure policies.

A policy never sees a frame or a model. It goes by moments: what is known of a frame, in a few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from incontext.image import resize_image

DEFAULT_SIZE = 8
"""Past frames remembered beside those that the user painted (SegGPT, arXiv 2304.03284, section 4.3)."""

GIVEN_LIMIT = 8
"""Painted frames remembered, but for the first of each id, which always stays."""

_CELLS = (12, 12)


@dataclass(frozen=True, eq=False)
class Moment:
    """What a policy knows of one frame.

    Attributes:
        index: the frame's number; no two moments of a memory share it.
        ids: which objects are seen in it.
        certainty: 0..1, the mean over these objects; 1 where the user painted. Not the least: of many objects one
            is always uncertain.
        look: float32 (K,), what the objects look like and where they are; see `look_of`.
        given: whether the user painted it.
        echo: 0..1, how well this frame leads back: what it tells, as the only example, of a painted frame,
            in IoU, over what that frame tells of itself. None where nobody asked, or nothing was painted.
    """

    index: int
    ids: frozenset[int]
    certainty: float
    look: np.ndarray
    given: bool = False
    echo: float | None = None


class MemoryPolicy(Protocol):
    """Decides what enters memory and what leaves it.

    Attributes:
        size: how many moments are remembered at most, beside the given ones.
    """

    size: int

    def asks(self, moments: Sequence[Moment], new: Moment) -> bool:
        """Whether `keep` is to be told the echo of a new moment, which takes time to measure."""
        ...

    def keep(self, moments: Sequence[Moment], new: Moment) -> tuple[Moment, ...]:
        """What is remembered after a new moment.

        Args:
            moments: what is remembered, in the order in which it entered; none of it given by the user.
            new: the frame that was just segmented.

        Returns:
            At most `size` of these, in the order in which they entered.
        """
        ...


@dataclass(frozen=True)
class Fifo:
    """The last `size` frames, whatever they show: the published way (SegGPT, section 3.3)."""

    size: int = DEFAULT_SIZE

    def __post_init__(self) -> None:
        _check_size(self.size)

    def asks(self, moments: Sequence[Moment], new: Moment) -> bool:
        """Never."""
        return False

    def keep(self, moments: Sequence[Moment], new: Moment) -> tuple[Moment, ...]:
        """See `MemoryPolicy.keep`."""
        return (*moments, new)[-self.size :] if self.size else ()


@dataclass(frozen=True)
class Selective:
    """The last certain frames, and older ones that lead back to what the user painted and show what others do not.

    The last frames are most like the next one. An older frame is worth its place if it is right, since its mistakes
    would be repeated in all frames after it: a model may be certain and wrong, and whether it finds a painted frame
    again by what it made of this one, it cannot know beforehand. And if it is new, for a frame that looks like one
    that is remembered would cost time and tell nothing. Where memory is full, the older moment goes that is most like
    another one, but not the only one that shows some object, so that an object that leaves is known again when it
    returns.

    Until there is a certain frame the last one stands in for it: of many objects a model may never be certain.

    Attributes:
        size: how many moments are remembered.
        recent: how many of them are the last certain frames, whatever they show; by default half, rounded up.
        certainty: the least certainty of a moment that enters, 0..1.
        echo: the least echo of one that stays, 0..1.
        novelty: the least distance of one that stays to the other older ones, 0..1; see `distance`.
        every: only frames whose number is a multiple of this may stay.
    """

    size: int = DEFAULT_SIZE
    recent: int | None = None
    certainty: float = 0.6
    echo: float = 0.8
    novelty: float = 0.1
    every: int = 4

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.recent is None:
            object.__setattr__(self, "recent", (self.size + 1) // 2)
        if not 0 <= self.recent <= self.size:
            raise ValueError(f"recent: expected 0 to {self.size} past frames, got {self.recent}")
        for name in ("certainty", "echo", "novelty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a value in 0..1, got {getattr(self, name)}")
        if self.every < 1:
            raise ValueError(f"every: expected 1 or more, got {self.every}")

    def asks(self, moments: Sequence[Moment], new: Moment) -> bool:
        """Of frames that may stay when they are no longer recent."""
        return self.size > self.recent and self._enters(new) and self._stays(self._older(moments), new)

    def keep(self, moments: Sequence[Moment], new: Moment) -> tuple[Moment, ...]:
        """See `MemoryPolicy.keep`."""
        moments = tuple(moments)
        if not self.size or not new.ids:
            return moments
        if not self._enters(new):  # better than nothing, until there is a certain one
            return moments if any(map(self._enters, moments)) or not self.recent else (new,)
        moments = tuple(filter(self._enters, moments))
        older = self._older(moments)
        recent = (*moments[len(older) :], new)
        if len(recent) > self.recent:
            leaving, *recent = recent
            if self.size > self.recent and self._stays(older, leaving):
                older = (*older, leaving)
        if len(older) + self.recent > self.size:
            others = (*older, *recent)
            weighed = older if self.recent else older[:-1]  # the newest of all stays
            least = min(weighed, key=lambda moment: _worth(moment, others))
            older = tuple(moment for moment in older if moment is not least)
        return (*older, *recent)

    def _older(self, moments: Sequence[Moment]) -> tuple[Moment, ...]:
        return tuple(moments[: max(0, len(moments) - self.recent)])

    def _enters(self, moment: Moment) -> bool:
        return bool(moment.ids) and moment.certainty >= self.certainty

    def _stays(self, older: Sequence[Moment], moment: Moment) -> bool:
        if moment.index % self.every or (moment.echo is not None and moment.echo < self.echo):
            return False
        return all(each.ids != moment.ids or distance(each, moment) >= self.novelty for each in older)


POLICIES = {"selective": Selective, "fifo": Fifo}
"""Name -> policy; each is made with its size."""


def pin(given: Sequence[Moment], limit: int = GIVEN_LIMIT) -> tuple[Moment, ...]:
    """Which painted frames stay in memory: for each id the first that shows it, and the newest, `limit` in all.

    There are more only where more than `limit` are needed to show every id.

    Args:
        given: painted moments, in the order in which they entered.
        limit: how many.

    Returns:
        Some of them, in the same order.
    """
    seen: set[int] = set()
    first = set()
    for place, moment in enumerate(given):
        if moment.ids - seen or place == 0:
            first.add(place)
            seen |= moment.ids
    rest = [place for place in range(len(given)) if place not in first]
    room = max(0, limit - len(first))
    kept = first.union(rest[len(rest) - room :] if room else ())
    return tuple(given[place] for place in sorted(kept))


def mean_certainty(scores: Mapping[int, float]) -> float:
    """How certain a frame is as a whole: the mean over the ids that are seen in it, 0 without any."""
    return sum(scores.values()) / len(scores) if scores else 0.0


def look_of(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the objects look like and where they are, in a few numbers.

    Args:
        image: uint8 (H, W, 3).
        labels: int (H, W).

    Returns:
        float32 (864,) in 0..1: the objects' colours, on black, and their silhouette, on a grid of 12 x 12 cells.
    """
    objects = labels[..., None] > 0
    colours = resize_image(np.where(objects, image, 0).astype(np.uint8), _CELLS)
    silhouette = resize_image(np.where(objects, np.uint8(255), np.uint8(0)).repeat(3, axis=2), _CELLS)
    return np.concatenate([colours.ravel(), silhouette.ravel()]).astype(np.float32) / 255


def distance(a: Moment, b: Moment) -> float:
    """How differently two moments look, 0..1: |a - b| / (|a| + |b|). 0 is the same; where no part of the objects'
    places is shared, it is above 0.7."""
    size = float(np.linalg.norm(a.look) + np.linalg.norm(b.look))
    return float(np.linalg.norm(a.look - b.look)) / size if size else 0.0


def _worth(moment: Moment, memory: Sequence[Moment]) -> tuple[bool, float, int]:
    """Sorts moments by what would be lost without them; of equals, the one that entered first is worth less."""
    others = [other for other in memory if other is not moment]
    alone = not moment.ids <= frozenset().union(*(other.ids for other in others))
    return alone, min(distance(moment, other) for other in others), memory.index(moment)


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"size: expected a number of past frames from 0 on, got {size!r}")
