"""What a tracker knows between two frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from incontext.types import Example
from incontext.video.memory import Moment
from incontext.video.slots import Slots


@dataclass(frozen=True, eq=False)
class TrackerState:
    """All that a tracker knows between two frames. It does not grow with the video.

    Attributes:
        index: the number of the last frame, or None before the first.
        slots: the ids and their colours.
        moments: what is remembered, in the order in which it entered.
        shown: index of a moment -> the frame and its labels, at the model's input size.
    """

    index: int | None = None
    slots: Slots = field(default_factory=Slots)
    moments: tuple[Moment, ...] = ()
    shown: Mapping[int, Example] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RestoredMoment:
    """A remembered frame, as it can be read again.

    Attributes:
        index: the frame's number.
        image: uint8 (H, W, 3).
        labels: int32 (H, W): what the frame tells, no more than 0 and the ids of the moment.
        certainty, given, echo: as in `Moment`.
    """

    index: int
    image: np.ndarray
    labels: np.ndarray
    certainty: float
    given: bool
    echo: float | None = None
