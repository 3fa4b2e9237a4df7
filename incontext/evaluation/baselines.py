"""Two methods that learn nothing. A model that is worth its weights is clearly above both.

Both have the predictor's interface, `predict(image, examples, ensemble=...) -> Segmentation`, so
whatever runs a model runs them too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from incontext.image import open_image, resize_image, resize_labels
from incontext.palette import Palette
from incontext.types import IGNORE, Example, Segmentation


class CopyBaseline:
    """Copies the example's mask, resized to the query. Several examples vote per pixel; a tie goes to
    the earlier one."""

    name = "copy"

    def predict(self, image, examples: Sequence[Example], *, ensemble: str | None = None) -> Segmentation:
        """Segments one query.

        Args:
            image: whatever `open_image` takes; only its size matters.
            examples: at least one.
            ensemble: ignored.

        Returns:
            Labels of the query's size; the confidence is the share of votes.

        Raises:
            ValueError: no examples.
        """
        image = open_image(image)
        ids = _ids(examples)
        copies = np.stack([resize_labels(e.labels, image.shape[:2]) for e in examples])
        votes = np.stack([(copies == id).sum(axis=0) for id in (0, *ids)]).astype(np.float32)
        for place, copy in enumerate(copies):  # less than a vote: it decides ties only
            for i, id in enumerate((0, *ids)):
                votes[i] += (copy == id) * 0.5 ** (place + 2)
        labels = np.array((0, *ids), np.int32)[votes.argmax(axis=0)]
        return _segmentation(labels, votes.max(axis=0) / np.maximum(votes.sum(axis=0), 1e-6), examples)


class NearestBaseline:
    """Gives each pixel of the query the label of the most similar pixel of the examples, in colour and
    position.

    Args:
        working: longest side, in pixels, at which pixels are compared.
        position: weight of the position (0..1 across the image) against the colour (0..1 per channel).
    """

    name = "nearest"

    def __init__(self, working: int = 96, position: float = 0.5) -> None:
        self.working = working
        self.position = position

    def predict(self, image, examples: Sequence[Example], *, ensemble: str | None = None) -> Segmentation:
        """Segments one query.

        Args:
            image: whatever `open_image` takes.
            examples: at least one; all their pixels are candidates.
            ensemble: ignored.

        Returns:
            Labels of the query's size; the confidence falls with the distance.

        Raises:
            ValueError: no examples.
        """
        image = open_image(image)
        _ids(examples)
        features, labels = [], []
        for e in examples:
            size = self._size(e.size)
            at = resize_labels(e.labels, size).ravel()
            features.append(self._features(resize_image(e.image, size))[at != IGNORE])
            labels.append(at[at != IGNORE])
        labels = np.concatenate(labels)
        size = self._size(image.shape[:2])
        if not labels.size:
            raise ValueError("expected examples with labelled pixels; every pixel is marked as ignored")
        distance, index = cKDTree(np.concatenate(features)).query(self._features(resize_image(image, size)))
        found = resize_labels(labels[index].reshape(size), image.shape[:2])
        confidence = resize_labels(np.exp(-4 * distance.astype(np.float32)).reshape(size), image.shape[:2])
        return _segmentation(found, confidence, examples)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        shrink = min(1.0, self.working / max(size))
        return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))

    def _features(self, image: np.ndarray) -> np.ndarray:
        """(H * W, 5): r, g, b in 0..1 and weighted y, x."""
        height, width = image.shape[:2]
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        where = self.position * np.stack([y, x], axis=-1)
        return np.concatenate([image / 255.0, where], axis=-1).reshape(-1, 5)


BASELINES = (CopyBaseline, NearestBaseline)


def _ids(examples: Sequence[Example]) -> tuple[int, ...]:
    if not examples:
        raise ValueError("expected at least one example, got none")
    return tuple(sorted({id for e in examples for id in e.ids}))


def _segmentation(labels: np.ndarray, confidence: np.ndarray, examples: Sequence[Example]) -> Segmentation:
    ids = _ids(examples)
    found = [id for id in ids if (labels == id).any()]
    return Segmentation(
        labels=labels.astype(np.int32),
        confidence=confidence.astype(np.float32),
        painting=Palette.for_ids(ids).paint(labels),
        scores={id: float(confidence[labels == id].mean()) for id in found},
        names={id: name for e in examples for id, name in e.names.items()},
    )
