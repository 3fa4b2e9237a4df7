"""J and F of video object segmentation, equal to the numbers of the DAVIS 2017 toolkit.

J (region similarity) is intersection over union. F (boundary accuracy) is the harmonic mean of the precision and the
recall of outlines: the share of the painted outline that is near the true one, and the other way round. Near means
within a disk of 0.008 of the picture's diagonal, rounded up to whole pixels (Perazzi et al., CVPR 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

TOLERANCE = 0.008
"""The toolkit's tolerance of outlines, as a share of the picture's diagonal."""

_GOOD = 0.5  # recall counts the frames above it
_BINS = 4  # decay is the first quarter's mean less the last quarter's


@dataclass(frozen=True)
class Statistics:
    """One measure over the frames of one object.

    Attributes:
        mean: 0..1.
        recall: share of the frames above 0.5, 0..1.
        decay: mean of the first quarter of the frames less that of the last, -1..1; near 0 is good.
    """

    mean: float
    recall: float
    decay: float


def region(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union; 1 where both masks are empty.

    Args:
        prediction: bool (H, W).
        truth: bool (H, W).

    Returns:
        0..1.

    Raises:
        ValueError: the sizes differ.
    """
    _check(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary(prediction: np.ndarray, truth: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """F: how well the outlines agree.

    Args:
        prediction: bool (H, W).
        truth: bool (H, W).
        tolerance: how far apart outlines may lie, as a share of the diagonal.

    Returns:
        0..1; 1 where neither mask has an outline, 0 where only one has.

    Raises:
        ValueError: the sizes differ.
    """
    _check(prediction, truth)
    reach = math.ceil(tolerance * math.hypot(*truth.shape))
    painted, true = (np.argwhere(outline(mask)) for mask in (prediction, truth))
    if not len(painted) or not len(true):
        return float(len(painted) == len(true))
    precision, recall = _share_near(painted, true, reach), _share_near(true, painted, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels where a mask differs from its neighbour to the right, below, or right below: bool (H, W).

    Outlines lie half a pixel towards the origin from the edge, one pixel wide; the picture's rim is none.
    """
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _share_near(points: np.ndarray, others: np.ndarray, reach: int) -> float:
    """Share of points (N, 2) that have one of the others (M, 2) within `reach` pixels.

    A point is in the others' dilation by a disk exactly if its nearest neighbour is no farther than the disk's radius.
    Squared distances of pixels are whole numbers, so rounding decides nothing.
    """
    distance, _ = cKDTree(others).query(points, distance_upper_bound=reach + 0.5)
    return float(np.count_nonzero(distance <= reach + 1e-6)) / len(points)


def statistics(values: Sequence[float]) -> Statistics:
    """Mean, recall and decay of one measure.

    Args:
        values: one for each frame, in order, 0..1.

    Returns:
        The statistics; nan where there are no frames.
    """
    if not len(values):
        return Statistics(math.nan, math.nan, math.nan)
    values = np.asarray(values, float)
    # Quarters share their end frames; halves round up. Both as in the toolkit.
    ends = np.round(np.linspace(1, len(values), _BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return Statistics(float(values.mean()), float((values > _GOOD).mean()), float(first.mean() - last.mean()))


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"expected a mask of the truth's size (H, W) {truth.shape}, got {prediction.shape}; "
            "save results at the size of the frames"
        )
