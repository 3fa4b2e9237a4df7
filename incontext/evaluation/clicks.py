"""Interactive segmentation with simulated clicks and no examples.

The first click goes to the middle of the object; each further one to the middle of the largest error region of what the
model has found, positive where the object is missed, negative where too much is found. The middle is the point
farthest from the region's rim and from the picture's (Sofiiuk et al., RITM, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from incontext.clicks import Click
from incontext.evaluation.metrics import iou
from incontext.labelled_folders import Item

OBJECT, NOT_OBJECT = 1, 0
TARGETS = (0.8, 0.9)
"""IoU values whose number of clicks is counted."""

Predict = Callable[[np.ndarray, Sequence[Click]], np.ndarray]
"""Image uint8 (H, W, 3) and all clicks so far -> labels int (H, W)."""


@dataclass(frozen=True)
class ClickRun:
    """The IoU of one object after each click.

    Attributes:
        name: image and id.
        ious: after 1, 2, ... clicks. A run ends early where nothing is wrong any more.
        clicks: that were made.
    """

    name: str
    ious: tuple[float, ...]
    clicks: tuple[Click, ...]

    def after(self, count: int) -> float:
        """IoU after this many clicks; a run that ended early keeps its last."""
        return self.ious[min(count, len(self.ious)) - 1]

    def needed(self, target: float) -> int | None:
        """How many clicks reached an IoU; None if none did."""
        return next((k for k, value in enumerate(self.ious, start=1) if value >= target), None)


def next_click(found: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> Click | None:
    """The middle of the largest error region.

    Args:
        found: bool (H, W), all False before the first click.
        truth: bool (H, W).
        valid: bool (H, W), pixels that count.

    Returns:
        The click, or None where nothing is wrong.
    """
    best: tuple[int, np.ndarray, int] | None = None
    for wrong, id in ((truth & ~found & valid, OBJECT), (found & ~truth & valid, NOT_OBJECT)):
        parts, count = ndimage.label(wrong)
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            if best is None or sizes.max() > best[0]:
                best = int(sizes.max()), parts == 1 + int(sizes.argmax()), id
    if best is None:
        return None
    depth = ndimage.distance_transform_edt(np.pad(best[1], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click(int(column), int(row), best[2])


def run_clicks(
    name: str,
    image: np.ndarray,
    truth: np.ndarray,
    predict: Predict,
    *,
    count: int,
    valid: np.ndarray | None = None,
) -> ClickRun:
    """Clicks on one object until it is found or `count` is reached.

    Args:
        name: of the run.
        image: uint8 (H, W, 3).
        truth: bool (H, W), not empty.
        predict: the model.
        count: most clicks.
        valid: bool (H, W), pixels that count; all by default.
    """
    valid = np.ones(truth.shape, bool) if valid is None else valid
    found, clicks, ious = np.zeros(truth.shape, bool), [], []
    while len(clicks) < count:
        click = next_click(found, truth, valid)
        if click is None:
            break
        clicks.append(click)
        found = predict(image, clicks) == OBJECT
        ious.append(iou(found, truth, valid))
    return ClickRun(name, tuple(ious), tuple(clicks))


def click_objects(items: Iterable[Item], *, objects: int, least: float = 0.01) -> Iterator[tuple[str, Item, int]]:
    """What to click on: (name, item, id), the largest segments of each image.

    Args:
        items: images with masks; the ids of one image need not mean anything in another.
        objects: most of one image.
        least: share of the image that a segment covers at least.
    """
    for item in items:
        labels = item.open_labels()
        ids, counts = np.unique(labels[labels > 0], return_counts=True)
        large = [(-count, id) for id, count in zip(ids.tolist(), counts.tolist(), strict=True)]
        for count, id in sorted(large)[:objects]:
            if -count >= least * labels.size:
                yield f"{item.name}#{id}", item, id


def mean_iou(runs: Sequence[ClickRun], count: int) -> float:
    """Mean IoU after this many clicks; nan without runs."""
    return sum(run.after(count) for run in runs) / len(runs) if runs else math.nan


def clicks_needed(runs: Sequence[ClickRun], target: float, most: int) -> float:
    """NoC: mean number of clicks to reach an IoU; runs that never do count as `most`. nan without runs."""
    return sum(run.needed(target) or most for run in runs) / len(runs) if runs else math.nan
