"""COCO instances: ROOT/annotations.json, masks as compressed RLE with `score`, or as polygons.

Class ids are category ids; image and annotation ids count from 1 in the order of the images, so the same images
in the same order give the same ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from incontext.export.class_table import ClassTable
from incontext.export.documents import FormatError, find_document, parsing, read_json, write_json
from incontext.export.labelled import LabelledImage, LabelledObject, largest_first
from incontext.export.losses import IGNORED, Losses
from incontext.export.polygons import trace
from incontext.types import IGNORE

FILE = "annotations.json"


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset, every mask as RLE."""
    _finish(items, root, class_names, polygons=False)


def finish_polygons(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset, masks as polygons; those with holes, which COCO's polygons cannot hold, as RLE."""
    _finish(items, root, class_names, polygons=True)


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads instances: polygons and RLE, compressed or not. Where objects overlap, the smaller lies on top.

    A category with id 0, which would be background here, makes all ids one larger. Crowds count as objects.

    Args:
        source: the JSON file, or a folder with annotations.json.
        images_root: not needed.

    Raises:
        FormatError: the file is broken, or an annotation has no mask.
    """
    path = find_document(source, FILE)
    with parsing(path, "COCO instances (images, annotations, categories)"):
        document = read_json(path)
        names = category_names(document["categories"])
        shift = shift_of(document["categories"])
        images = {
            image["id"]: (str(image["file_name"]), (int(image["height"]), int(image["width"])))
            for image in document["images"]
        }
        annotations: dict[Any, list[dict]] = {key: [] for key in images}
        for annotation in document["annotations"]:
            if annotation["image_id"] not in images:
                raise FormatError(f"{path}: expected an image with id {annotation['image_id']}, found none")
            annotations[annotation["image_id"]].append(annotation)
    for key, (name, size) in images.items():
        with parsing(path, f"masks of {name}"):
            objects = [_object_of(annotation, size, shift, path) for annotation in annotations[key]]
            objects = largest_first(thing for thing in objects if thing.mask.any())
            item = LabelledImage.from_objects(name, size, objects, names)
        yield item


def encode(mask: np.ndarray) -> dict[str, Any]:
    """bool (H, W) -> COCO's compressed RLE, as JSON holds it."""
    from pycocotools import mask as masks

    rle = masks.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """A segmentation of COCO -> bool (H, W).

    Args:
        segmentation: polygons, or RLE whose counts are a string or numbers.
        size: (H, W) of the image.

    Raises:
        ValueError: it is neither, or it has another size.
    """
    from pycocotools import mask as masks

    if isinstance(segmentation, list):
        # pycocotools takes four numbers for a box.
        polygons = [[float(value) for value in polygon] for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros(size, bool)
        return masks.decode(masks.merge(masks.frPyObjects(polygons, *size))).astype(bool)
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"a mask of size {segmentation['size']} in an image of size {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1] or min(counts, default=0) < 0:
            raise ValueError(f"runs of {sum(counts)} pixels in an image of {size[0] * size[1]}")
        runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return runs.reshape(size, order="F")
    return masks.decode({"size": list(size), "counts": counts}).astype(bool)


def category_names(categories: list[dict]) -> dict[int, str]:
    """Class id -> name of COCO's categories."""
    return {int(category["id"]) + shift_of(categories): str(category["name"]) for category in categories}


def shift_of(categories: list[dict]) -> int:
    """What is added to category ids so that they begin above 0, which is background here."""
    return max(0, 1 - min((int(category["id"]) for category in categories), default=1))


def _finish(
    items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str], polygons: bool
) -> None:
    table, losses = ClassTable(class_names), Losses("COCO")
    images: list[dict] = []
    annotations: list[dict] = []
    for item in items:
        height, width = item.size
        images.append({"id": len(images) + 1, "file_name": item.file_name, "width": width, "height": height})
        losses.add(IGNORED, (item.labels == IGNORE).any())
        for thing in item.objects():
            table.name(item, thing.id)
            annotations.append(_annotation(thing, len(annotations) + 1, len(images), polygons))
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in table.items()]
    document = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    write_json(Path(root) / FILE, document)
    losses.report()


def _annotation(thing: LabelledObject, id: int, image_id: int, polygons: bool) -> dict[str, Any]:
    from pycocotools import mask as masks

    rle = encode(thing.mask)
    segmentation: Any = rle
    if polygons:
        parts = trace(thing.mask)
        if not any(part.holes for part in parts):
            segmentation = [part.outline.ravel().tolist() for part in parts]
    score = {} if thing.score is None else {"score": round(thing.score, 6)}
    return {
        "id": id,
        "image_id": image_id,
        "category_id": thing.id,
        "segmentation": segmentation,
        "area": int(masks.area(rle)),
        "bbox": [float(value) for value in masks.toBbox(rle)],
        "iscrowd": 0,
        **score,
    }


def _object_of(annotation: dict, size: tuple[int, int], shift: int, path: Path) -> LabelledObject:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise FormatError(
            f"{path}: expected a mask in annotation {annotation.get('id')}, got a box only; "
            "export instance segmentation instead of detection"
        )
    score = annotation.get("score")
    mask = decode(segmentation, size)
    return LabelledObject(int(annotation["category_id"]) + shift, mask, None if score is None else float(score))
