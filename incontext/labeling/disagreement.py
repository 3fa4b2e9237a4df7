"""A second opinion: the same prompt in other colours, and mirrored.

SegGPT should go by what a colour marks, never by the colour itself, and left and right should not matter where examples
and query are mirrored together. Where such views of one question end in different masks, the model does not know; and
that shows mistakes that it makes with full confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from incontext.image import open_image
from incontext.predictor import Predictor
from incontext.prompt import Prompt, Source, check_sources
from incontext.types import Example, Segmentation


@dataclass(frozen=True, eq=False)
class View:
    """Another way to ask the same question.

    Attributes:
        predictor: with colours of its own.
        mirrored: whether it is shown examples and query mirrored. Packs cannot be: with one among the sources,
            nothing is.
    """

    predictor: Predictor
    mirrored: bool = False
    # An example is mirrored once: predictors know the prompts that they have encoded by their examples.
    _mirror_images: WeakKeyDictionary[Example, Example] = field(default_factory=WeakKeyDictionary, repr=False)

    def predict(self, image: Any, sources: Source | Sequence[Source], **options: Any) -> Segmentation:
        """What this view finds in an image, the right way round.

        Args:
            image: path, PIL image or array.
            sources: examples and packs, as for `Predictor.predict`.
            options: passed to `Predictor.predict`.

        Raises:
            TypeError: the sources are a prompt, whose colours are fixed.
        """
        if isinstance(sources, Prompt):
            raise TypeError("sources: expected examples or packs, got a prompt, whose colours are fixed; give its own")
        sources = check_sources(sources)
        if not self.mirrored or not all(isinstance(each, Example) for each in sources):
            return self.predictor.predict(image, sources, **options)
        mirrored = [self._mirror(each) for each in sources]
        found = self.predictor.predict(_flip(open_image(image)), mirrored, **options)
        parts = (_flip(part) for part in (found.labels, found.confidence, found.painting))
        return Segmentation(*parts, found.scores, found.names)

    def _mirror(self, example: Example) -> Example:
        if example not in self._mirror_images:
            mirrored = Example(_flip(example.image), _flip(example.labels), example.names)
            self._mirror_images[example] = mirrored
        return self._mirror_images[example]


def views(predictor: Predictor, count: int = 2, *, seed: int = 0) -> list[View]:
    """Views of what a predictor is asked, each in other colours; the first, the third and so on are mirrored.

    They share the predictor's model. Each takes the time of one more prediction; keep them from image to image, as they
    keep their prompts.

    Args:
        predictor: whose model and settings they take.
        count: how many.
        seed: of their colours; the same seed gives the same colours.
    """
    seeds = (seed * 10_007 + number for number in range(1, count + 1))
    return [View(predictor.varied(seed=each, palette=None), not k % 2) for k, each in enumerate(seeds)]


def disagreement_map(segmentations: Sequence[Segmentation]) -> np.ndarray:
    """Pixel by pixel, the part of all pairs of segmentations that give it different labels.

    Args:
        segmentations: of one image, at least two: a result and its views.

    Returns:
        float32 (H, W): 0 where all agree, 1 where no two do.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(segmentations) < 2:
        raise ValueError(f"expected at least two segmentations to compare, got {len(segmentations)}")
    pairs = list(combinations(segmentations, 2))
    differing = np.zeros(segmentations[0].size, np.float32)
    for first, second in pairs:
        differing += first.labels != second.labels
    return differing / len(pairs)


def disagreement_score(found: Segmentation, others: Sequence[Segmentation]) -> float:
    """How far views contradict a result as a whole, 0..1; the highest are to be looked at first.

    One minus what they share of what either claims (see `agreements`), averaged over the ids that the result or a view
    holds. It weighs masks, not pixels: a small object that comes and goes counts like a large one.

    Args:
        found: the result.
        others: what its views found, at least one.

    Raises:
        ValueError: there is none.
    """
    ids = sorted({id for each in (found, *others) for id in each.ids})
    shared = [_shared(found, others, id) for id in ids]
    return 1 - sum(shared) / len(shared) if shared else 0.0


def agreements(found: Segmentation, others: Sequence[Segmentation]) -> dict[int, float]:
    """How far views confirm each mask: id -> the area that all agree on, as a part of the area that any claims, 0..1.

    Raises:
        ValueError: there is no view.
    """
    return {id: _shared(found, others, id) for id in found.ids}


def _shared(found: Segmentation, others: Sequence[Segmentation], id: int) -> float:
    if not others:
        raise ValueError("others: expected at least one view to compare with, got none")
    masks = [each.labels == id for each in (found, *others)]
    return np.count_nonzero(np.logical_and.reduce(masks)) / np.count_nonzero(np.logical_or.reduce(masks))


def _flip(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[:, ::-1])
