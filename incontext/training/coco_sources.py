"""COCO's JSON as a source of packed images: instances (polygons or RLE) and panoptic maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from incontext.picture_file import decode
from incontext.training.pack import IGNORE_ID, LARGEST_ID
from incontext.training.sources import Item, Maps, stack_objects


@dataclass(frozen=True)
class CocoObjects:
    """Reads maps from the objects that a COCO file lists for an image.

    Attributes:
        objects: entries of "annotations".
        classes: category id -> packed class id.
    """

    objects: Sequence[Mapping[str, Any]]
    classes: Mapping[int, int]

    def __call__(self, size: tuple[int, int]) -> Maps:
        ignored, masks, classes = np.zeros(size, bool), [], []
        for each in self.objects:
            mask = _decode(each["segmentation"], size)
            if each.get("iscrowd"):  # many things in one region: painting it as one thing would teach a falsehood
                ignored |= mask
            else:
                masks.append(mask)
                classes.append(self.classes[each["category_id"]])
        return stack_objects(masks, classes, ignored, size)


@dataclass(frozen=True)
class PanopticMap:
    """Reads maps from a panoptic PNG, whose colours are segment ids.

    Attributes:
        path: the PNG.
        segments: entries of "segments_info".
        classes: category id -> packed class id.
        things: the categories whose segments are single objects.
    """

    path: Path
    segments: Sequence[Mapping[str, Any]]
    classes: Mapping[int, int]
    things: frozenset[int]

    def __call__(self, size: tuple[int, int]) -> Maps:
        pixels, _ = decode(self.path)
        ids = np.asarray(pixels.convert("RGB")).astype(np.int32) @ np.int32([1, 256, 256**2])
        if ids.shape != size:
            raise ValueError(f"{self.path}: expected the image's size {size}, got {ids.shape} (height, width)")
        labels, instances, count = np.zeros(size, np.uint8), np.zeros(size, np.uint8), 0
        for segment in self.segments:
            mask = ids == segment["id"]
            crowd = bool(segment.get("iscrowd"))
            labels[mask] = IGNORE_ID if crowd else self.classes[segment["category_id"]]
            if crowd:
                instances[mask] = IGNORE_ID
            elif segment["category_id"] in self.things:
                count += 1
                instances[mask] = count if count <= LARGEST_ID else IGNORE_ID
        return labels, instances


def coco_items(name: str, annotations: str | Path, images: str | Path) -> list[Item]:
    """Reads a COCO instance file. Images without objects are left out.

    Args:
        name: of the set.
        annotations: the JSON file.
        images: the folder that its file names are relative to.

    Raises:
        ValueError: if it is no such file, an image is missing, there are more than 254 categories, or no pycocotools.
    """
    _rle()
    content, classes = _read(Path(annotations), ("images", "annotations", "categories"))
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for each in content["annotations"]:
        if "segmentation" not in each:
            raise ValueError(
                f"{annotations}: annotation {each.get('id')} has no segmentation; boxes alone are no masks"
            )
        objects.setdefault(each["image_id"], []).append(each)
    return [
        Item(name, Path(each["file_name"]).stem, _image(images, each), CocoObjects(objects[each["id"]], classes))
        for each in content["images"]
        if each["id"] in objects
    ]


def panoptic_items(name: str, annotations: str | Path, maps: str | Path, images: str | Path) -> list[Item]:
    """Reads a COCO panoptic file.

    Args:
        name: of the set.
        annotations: the JSON file.
        maps: the folder of its PNGs.
        images: the folder that its image file names are relative to.

    Raises:
        ValueError: as for `coco_items`.
    """
    content, classes = _read(Path(annotations), ("images", "annotations", "categories"))
    things = frozenset(each["id"] for each in content["categories"] if each.get("isthing", 1))
    images_by_id = {each["id"]: each for each in content["images"]}
    items = []
    for each in content["annotations"]:
        if "segments_info" not in each:
            raise ValueError(f"{annotations}: expected panoptic annotations with segments_info, got {sorted(each)}")
        image = _image(images, images_by_id[each["image_id"]])
        read = PanopticMap(Path(maps) / each["file_name"], each["segments_info"], classes, things)
        items.append(Item(name, image.stem, image, read))
    return items


def _read(path: Path, keys: Sequence[str]) -> tuple[dict[str, Any], dict[int, int]]:
    """Returns the content of a COCO file, and category id -> class id: itself, if all fit into a byte."""
    content = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: expected COCO annotations with {list(keys)}, found no {missing}")
    ids = sorted(each["id"] for each in content["categories"])
    if len(ids) > LARGEST_ID:
        raise ValueError(
            f"{path}: a set of a pack holds at most {LARGEST_ID} categories, got {len(ids)}; split the file"
        )
    fit = not ids or (ids[0] >= 1 and ids[-1] <= LARGEST_ID)
    return content, {id: id if fit else number for number, id in enumerate(ids, start=1)}


def _image(folder: str | Path, entry: Mapping[str, Any]) -> Path:
    path = Path(folder) / entry["file_name"]
    if not path.exists():
        raise ValueError(f"{path}: the annotations name this image, but it is not there; is {folder} the right folder?")
    return path


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons, uncompressed or compressed RLE -> bool (H, W)."""
    rle = _rle()
    height, width = size
    if isinstance(segmentation, list):
        parts = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not parts:
            return np.zeros(size, bool)
        segmentation = rle.merge(rle.frPyObjects(parts, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"a mask of size {segmentation['size']} does not fit its image of size {list(size)}")
    return rle.decode(segmentation).astype(bool)


def _rle() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ValueError("reading COCO masks takes pycocotools: pip install pycocotools") from error
    return mask
