"""Semantic segmentation over a whole data set: mIoU and pixel accuracy, as the ADE20K benchmark counts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from incontext.labelled_folders import ImageSet, Item, SetError, find_sets, list_images, read_names
from incontext.types import IGNORE


@dataclass(frozen=True)
class SemanticData:
    """Labelled images of one list of classes.

    Attributes:
        items: the images.
        names: class id -> name; may be empty.
        void: whether 0 means "not labelled" rather than background, as in ADE20K. Such pixels do not count.
    """

    items: tuple[Item, ...]
    names: dict[int, str] = field(default_factory=dict)
    void: bool = False


class Confusion:
    """Counts of pixels by true and found class, over many images."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], int] = {}

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Counts one image.

        Args:
            prediction: int (H, W).
            truth: int (H, W); `IGNORE` where nothing is known.

        Raises:
            ValueError: the sizes differ.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"expected a prediction of the truth's size (H, W) {truth.shape}, got {prediction.shape}")
        known = truth != IGNORE
        pairs, counts = np.unique(np.stack([truth[known], prediction[known]]), axis=1, return_counts=True)
        for (true, found), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            self._pairs[true, found] = self._pairs.get((true, found), 0) + count

    @property
    def ious(self) -> dict[int, float]:
        """Class -> IoU over all images, 0..1."""
        ious = {}
        for id in self.classes:
            true = sum(count for (t, _), count in self._pairs.items() if t == id)
            found = sum(count for (_, f), count in self._pairs.items() if f == id)
            both = self._pairs.get((id, id), 0)
            ious[id] = both / (true + found - both)
        return ious

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that are true or found somewhere."""
        return tuple(sorted({id for pair in self._pairs for id in pair}))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the known pixels whose class is right; nan before anything was counted."""
        total = sum(self._pairs.values())
        return sum(count for (t, f), count in self._pairs.items() if t == f) / total if total else math.nan


@dataclass(frozen=True)
class SemanticScore:
    """Attributes: miou, pixel_accuracy: 0..1. ious: class -> IoU. images: how many."""

    miou: float
    pixel_accuracy: float
    ious: dict[int, float]
    images: int


def open_semantic(root: Path, split: str = "validation") -> SemanticData:
    """Finds a data set: ADE20K's layout (images/SPLIT, annotations/SPLIT; 0 is void), or one labelled folder.

    Raises:
        SetError: it is neither.
    """
    images, annotations = root / "images" / split, root / "annotations" / split
    if annotations.is_dir():
        masks = {path.stem: path for path in list_images(annotations)}
        items = tuple(Item(p.stem, p, masks[p.stem]) for p in list_images(images) if p.stem in masks)
        if not items:
            raise SetError(f"{images}: expected pictures with annotations of the same name, found none")
        return SemanticData(items, read_names(root / "classes.txt"), void=True)
    sets = [found for found in find_sets(root) if isinstance(found, ImageSet)]
    if len(sets) != 1:
        raise SetError(
            f"{root}: expected images/{split} + annotations/{split}, or one set as images + masks; "
            f"got {len(sets)} sets; give one of them"
        )
    return SemanticData(sets[0].items, sets[0].names)


def evaluate_semantic(
    data: SemanticData, predict: Callable[[np.ndarray], np.ndarray], items: Iterable[Item] | None = None
) -> SemanticScore:
    """Segments all images and counts.

    Args:
        data: the data set.
        predict: image uint8 (H, W, 3) -> class ids int (H, W); 0 for background or nothing.
        items: those of `data` to take; all, by default.

    Returns:
        The score. Its mean is over the classes that are true or found somewhere; background is one of them, unless 0
        is void: then it is no class, and a labelled pixel that is found 0 is simply wrong.
    """
    counts, images = Confusion(), 0
    for item in data.items if items is None else items:
        image, truth = item.open_pair()
        if data.void:
            truth = np.where(truth == 0, IGNORE, truth)
        counts.add(predict(image), truth)
        images += 1
    ious = {id: value for id, value in counts.ious.items() if id or not data.void}
    miou = sum(ious.values()) / len(ious) if ious else math.nan
    return SemanticScore(miou, counts.pixel_accuracy, ious, images)
