"""Intersection over union, and the two ways to average it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from incontext.types import IGNORE


def iou(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Intersection over union of two masks.

    Args:
        prediction: bool (H, W).
        truth: bool (H, W).
        valid: bool (H, W), the pixels that count; all by default.

    Returns:
        0..1, or nan where both masks are empty.
    """
    _same_size(prediction, truth)
    both, either = prediction & truth, prediction | truth
    if valid is not None:
        both, either = both & valid, either & valid
    union = int(np.count_nonzero(either))
    return np.count_nonzero(both) / union if union else math.nan


class Tally:
    """Counts of intersection and union over many images.

    Pixels whose truth is `IGNORE` never count. Two averages come out of the same counts:

    `class_mean` is the mIoU of the few-shot literature (PASCAL-5i, COCO-20i): intersections and unions
    are summed over all images, class by class, and the classes' ratios are averaged. Big objects weigh
    more than small ones, and painting a class where it is absent costs as much as missing as many pixels
    of it. Classes that never occur in the truth are left out.

    `image_mean` averages within each image over the classes that occur there in the truth or in the
    prediction, then over
    images: each image weighs the same. A class that is painted where it is absent counts as 0. Images
        where nothing is asked for and nothing painted are left out.
    """

    def __init__(self) -> None:
        self._both: dict[int, int] = {}
        self._either: dict[int, int] = {}
        self._truth: dict[int, int] = {}
        self._images: list[float] = []

    def add(self, prediction: np.ndarray, truth: np.ndarray, ids: Iterable[int]) -> dict[int, float]:
        """Counts one image.

        Args:
            prediction: int (H, W) labels.
            truth: int (H, W) labels; `IGNORE` where unknown.
            ids: the ids that were asked for; others are background on either side.

        Returns:
            id -> IoU in this image, nan where the id is in neither.

        Raises:
            ValueError: the sizes differ.
        """
        _same_size(prediction, truth)
        valid = truth != IGNORE
        prediction, truth = prediction[valid], truth[valid]
        found = {}
        for id in ids:
            painted, there = prediction == id, truth == id
            area = int(np.count_nonzero(there))
            both = int(np.count_nonzero(painted & there))
            either = int(np.count_nonzero(painted)) + area - both
            self._both[id] = self._both.get(id, 0) + both
            self._either[id] = self._either.get(id, 0) + either
            self._truth[id] = self._truth.get(id, 0) + area
            found[id] = both / either if either else math.nan
        counted = [v for v in found.values() if not math.isnan(v)]
        if counted:
            self._images.append(sum(counted) / len(counted))
        return found

    @property
    def per_class(self) -> dict[int, float]:
        """id -> IoU over all images, for the ids that occur in the truth."""
        return {id: self._both[id] / self._either[id] for id in sorted(self._truth) if self._truth[id]}

    @property
    def class_mean(self) -> float:
        """Mean over classes of the summed IoU; nan before anything was counted."""
        return _mean(list(self.per_class.values()))

    @property
    def image_mean(self) -> float:
        """Mean over images of the mean over classes; nan before anything was counted."""
        return _mean(self._images)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _same_size(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"expected a prediction of the truth's size (H, W) {truth.shape}; got {prediction.shape}; "
            "resize labels with the nearest neighbour before scoring"
        )
