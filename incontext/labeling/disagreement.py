"""A second opinion for free: the same prompt in other colours.

SegGPT should go by what a colour marks, never by the colour itself. Where several recolourings of one prompt end in
different labels, the model does not know; and that shows mistakes that it makes with full confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from incontext.predictor import Predictor
from incontext.prompt import Prompt
from incontext.types import Example, Segmentation


def recoloured(predictor: Predictor, count: int = 4, *, seed: int = 0) -> list[Predictor]:
    """Predictors that differ from a given one in their colours only. They share its model.

    Args:
        predictor: whose model and settings they take.
        count: how many.
        seed: of their colours; the same seed gives the same colours.
    """
    return [predictor.varied(seed=seed * 10_007 + number, palette=None) for number in range(1, count + 1)]


def disagreement(
    predictors: Predictor | Sequence[Predictor],
    image: Any,
    examples: Sequence[Example],
    recolourings: int = 4,
    **options: Any,
) -> np.ndarray:
    """Where recolourings of a prompt disagree on an image.

    Args:
        predictors: one, which is recoloured; or those of `recoloured`, which keep their prompts from image to
            image.
        image: path, PIL image or array.
        examples: as for `Predictor.predict`.
        recolourings: how many, where one predictor is given; at least 2. Each costs one prediction.
        options: passed to `Predictor.predict`.

    Returns:
        float32 (H, W); see `disagreement_map`.

    Raises:
        ValueError: there are fewer than two recolourings.
    """
    if isinstance(predictors, Predictor):
        predictors = recoloured(predictors, recolourings)
    if isinstance(examples, Prompt):
        raise TypeError("examples: expected examples, got a prompt, whose colours are fixed; give what it was made of")
    return disagreement_map([each.predict(image, examples, **options) for each in predictors])


def disagreement_map(segmentations: Sequence[Segmentation]) -> np.ndarray:
    """Pixel by pixel, the part of all pairs of segmentations that give it different labels.

    Args:
        segmentations: of one image, at least two.

    Returns:
        float32 (H, W): 0 where all agree, 1 where no two do.

    Raises:
        ValueError: there are fewer than two.
    """
    pairs = _pairs(segmentations)
    differing = np.zeros(segmentations[0].size, np.float32)
    for first, second in pairs:
        differing += first.labels != second.labels
    return differing / len(pairs)


def disagreement_score(segmentations: Sequence[Segmentation]) -> float:
    """How much segmentations of one image disagree as a whole, 0..1; the highest are to be looked at first.

    One minus the IoU of two of them, averaged over ids that either holds and over all pairs. It weighs masks, not
    pixels: a small object that comes and goes counts like a large one.

    Raises:
        ValueError: there are fewer than two.
    """
    distances = []
    for first, second in _pairs(segmentations):
        ids = sorted({*first.ids, *second.ids})
        ious = [_iou(first.labels == id, second.labels == id) for id in ids]
        distances.append(1 - sum(ious) / len(ious) if ious else 0.0)
    return float(np.mean(distances))


def agreements(segmentation: Segmentation, others: Sequence[Segmentation]) -> dict[int, float]:
    """How far recolourings confirm each mask: id -> its mean IoU with the same id's masks in them, 0..1."""
    return {
        id: float(np.mean([_iou(segmentation.labels == id, other.labels == id) for other in others]))
        for id in segmentation.ids
    }


def _pairs(segmentations: Sequence[Segmentation]) -> list[tuple[Segmentation, Segmentation]]:
    if len(segmentations) < 2:
        raise ValueError(f"expected at least two segmentations to compare, got {len(segmentations)}")
    return list(combinations(segmentations, 2))


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)
