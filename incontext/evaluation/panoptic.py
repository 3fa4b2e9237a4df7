"""Panoptic quality: every pixel belongs to one segment, and segments are matched by more than half their union.

A true and a found segment of one class match if their IoU is above 0.5, which can hold for one pair only. PQ is the sum
of the IoUs of the pairs over TP + FP / 2 + FN / 2; it is SQ (mean IoU of the pairs) times RQ (their F-measure); each
is averaged over classes (Kirillov et al., CVPR 2019). Void and crowds are treated as COCO's evaluation does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from incontext.export.panoptic import rgb_to_id

_VOID = 0


@dataclass(frozen=True)
class Segment:
    """What a segment is: its class, and whether it is a crowd, which need not be found."""

    category: int
    crowd: bool = False


@dataclass(frozen=True)
class Quality:
    """Attributes: pq, sq, rq: 0..1. classes: over how many they are averaged."""

    pq: float
    sq: float
    rq: float
    classes: int


@dataclass
class _Count:
    iou: float = 0.0
    matched: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def quality(self) -> tuple[float, float, float]:
        half = self.matched + (self.wrong + self.missed) / 2
        return self.iou / half, self.iou / self.matched if self.matched else 0.0, self.matched / half


class PanopticTally:
    """Counts matched, wrong and missed segments over many images, class by class."""

    def __init__(self) -> None:
        self._counts: dict[int, _Count] = {}

    def add(
        self,
        prediction: np.ndarray,
        found: Mapping[int, int],
        truth: np.ndarray,
        segments: Mapping[int, Segment],
    ) -> None:
        """Counts one image.

        Args:
            prediction: int (H, W), segment ids; 0 is void.
            found: segment id of the prediction -> class.
            truth: int (H, W), segment ids; 0 is void.
            segments: segment id of the truth -> what it is.

        Raises:
            ValueError: the sizes differ, or a segment of the prediction has no class.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"expected a prediction of the truth's size (H, W) {truth.shape}, got {prediction.shape}")
        pairs, counts = np.unique(np.stack([truth.ravel(), prediction.ravel()]), axis=1, return_counts=True)
        shared = dict(zip(map(tuple, pairs.T.tolist()), counts.tolist(), strict=True))
        true_areas, found_areas = _areas(truth), _areas(prediction)
        unknown = sorted(set(found_areas) - set(found))
        if unknown:
            raise ValueError(f"expected a class for each segment, got none for {unknown}")
        matched_true, matched_found = set(), set()
        for (t, f), both in shared.items():
            if t not in segments or f not in found_areas or segments[t].crowd or segments[t].category != found[f]:
                continue
            union = true_areas[t] + found_areas[f] - both - shared.get((_VOID, f), 0)
            if both / union > 0.5:
                count = self._of(found[f])
                count.matched += 1
                count.iou += both / union
                matched_true.add(t)
                matched_found.add(f)
        crowds = {segment.category: t for t, segment in segments.items() if segment.crowd}
        for t, segment in segments.items():
            if t not in matched_true and not segment.crowd:
                self._of(segment.category).missed += 1
        for f, area in found_areas.items():
            excused = shared.get((_VOID, f), 0)
            if found[f] in crowds:
                excused += shared.get((crowds[found[f]], f), 0)
            if f not in matched_found and excused / area <= 0.5:
                self._of(found[f]).wrong += 1

    def quality(self, classes: Collection[int] | None = None) -> Quality:
        """Means over the classes that occurred, true or found; of these classes only, where they are given."""
        rows = [count.quality for id, count in self._counts.items() if classes is None or id in classes]
        means = np.mean(rows, axis=0).tolist() if rows else [math.nan] * 3
        return Quality(*means, len(rows))

    @property
    def per_class(self) -> dict[int, Quality]:
        """Class -> its own numbers."""
        return {id: Quality(*count.quality, 1) for id, count in sorted(self._counts.items())}

    def _of(self, category: int) -> _Count:
        return self._counts.setdefault(category, _Count())


@dataclass(frozen=True)
class PanopticItem:
    """One image of a COCO panoptic data set, with its segments."""

    name: str
    image: Path
    picture: Path
    segments: Mapping[int, Segment]

    def open_segments(self) -> np.ndarray:
        """Segment ids, int (H, W)."""
        with Image.open(self.picture) as picture:
            return rgb_to_id(np.asarray(picture.convert("RGB")))


@dataclass(frozen=True)
class PanopticData:
    """Attributes: items; names: class id -> name; things: the classes that are countable."""

    items: tuple[PanopticItem, ...]
    names: dict[int, str]
    things: frozenset[int]


def open_panoptic(file: Path, images: Path | None = None) -> PanopticData:
    """Opens COCO's panoptic layout: FILE.json, the folder FILE/ of pictures that code segment ids, and images.

    Args:
        file: such as annotations/panoptic_val2017.json.
        images: the folder of images; by default ../val2017 beside panoptic_val2017.json's folder, or the file's own
            folder, or `images` beside it.

    Raises:
        ValueError: it is not that layout.
    """
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in whole["images"]}
        categories = {entry["id"]: entry for entry in whole["categories"]}
        items = tuple(_items(whole["annotations"], files, file.with_suffix(""), images or _images_of(file)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected COCO's panoptic JSON, got something else: {error!r}") from error
    return PanopticData(
        items,
        {id: entry["name"] for id, entry in categories.items()},
        frozenset(id for id, entry in categories.items() if entry.get("isthing", 1)),
    )


def segments_of(labels: np.ndarray, things: Collection[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Segments from class labels: one for each connected part of a thing, one for each other class.

    Args:
        labels: int (H, W), 0 is void.
        things: the classes whose parts are objects of their own.

    Returns:
        Segment ids int32 (H, W), and segment id -> class.
    """
    segments, found = np.zeros(labels.shape, np.int32), {}
    for id in np.unique(labels[labels > 0]).tolist():
        parts, count = ndimage.label(labels == id) if id in things else ((labels == id).astype(np.int32), 1)
        segments[parts > 0] = parts[parts > 0] + len(found)
        found.update({len(found) + part: id for part in range(1, count + 1)})
    return segments, found


def _areas(segments: np.ndarray) -> dict[int, int]:
    ids, counts = np.unique(segments, return_counts=True)
    return {id: count for id, count in zip(ids.tolist(), counts.tolist(), strict=True) if id != _VOID}


def _items(annotations: list, files: Mapping, pictures: Path, images: Path) -> Iterator[PanopticItem]:
    for entry in annotations:
        segments = {
            info["id"]: Segment(info["category_id"], bool(info.get("iscrowd", 0))) for info in entry["segments_info"]
        }
        name = files[entry["image_id"]]
        yield PanopticItem(name, images / name, pictures / entry["file_name"], segments)


def _images_of(file: Path) -> Path:
    split = file.stem.removeprefix("panoptic_")
    candidates = [file.parent.parent / split, file.parent / split, file.parent / "images", file.parent]
    return next(folder for folder in candidates if folder.is_dir())
