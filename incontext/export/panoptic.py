"""COCO panoptic: ROOT/panoptic.json and ROOT/panoptic/NAME.png, where a segment's id is R + 256 G + 65536 B.

Id 0 is what has no label: background and ignored pixels alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from incontext.export.class_table import ClassTable
from incontext.export.coco import category_names, shift_of
from incontext.export.documents import find_document, parsing, read_json, write_json
from incontext.export.file_names import LabelFiles
from incontext.export.labelled import LabelledImage
from incontext.export.losses import IGNORED, Losses
from incontext.export.raster import write_image as write_picture
from incontext.export.shapes import box_of
from incontext.image import open_image
from incontext.types import IGNORE

FILE = "panoptic.json"


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset: pictures, then the JSON. Classes are things if objects were told apart, else stuff."""
    root, files, table, losses = Path(root), LabelFiles(".png"), ClassTable(class_names), Losses("COCO panoptic")
    images: list[dict] = []
    annotations: list[dict] = []
    things = False
    for item in items:
        height, width = item.size
        things |= item.instances is not None
        losses.add(IGNORED, (item.labels == IGNORE).any())
        segments, infos = np.zeros(item.size, np.int32), []
        for number, thing in enumerate(item.objects(), start=1):
            segments[thing.mask] = number
            table.name(item, thing.id)
            infos.append(_segment_info(number, thing.id, thing.mask, thing.score))
        picture = files.claim(item.file_name)
        write_picture(root / "panoptic" / picture, id_to_rgb(segments))
        images.append({"id": len(images) + 1, "file_name": item.file_name, "width": width, "height": height})
        annotations.append({"image_id": len(images), "file_name": picture, "segments_info": infos})
    categories = [{"id": id, "name": name, "supercategory": "", "isthing": int(things)} for id, name in table.items()]
    document = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    write_json(root / FILE, document)
    losses.report()


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads segments.

    A category with id 0 makes all ids one larger, as for `incontext.export.coco.read`.

    Args:
        source: NAME.json with its pictures in the folder NAME beside it, or a folder with panoptic.json.
        images_root: not needed.

    Raises:
        FormatError: a file is missing or broken, or a picture has a segment that the JSON lacks.
    """
    path = find_document(source, FILE)
    with parsing(path, "COCO panoptic (images, annotations with segments_info, categories)"):
        document = read_json(path)
        names, shift = category_names(document["categories"]), shift_of(document["categories"])
        images = {image["id"]: image for image in document["images"]}
        entries = [
            (images[annotation["image_id"]], annotation, path.with_suffix("") / annotation["file_name"])
            for annotation in document["annotations"]
        ]
    for image, annotation, picture in entries:
        with parsing(picture, "segments of an image with a file_name, height and width"):
            item = _read_image(image, annotation, picture, names, shift)
        yield item


def id_to_rgb(segments: np.ndarray) -> np.ndarray:
    """Ids (H, W) in 0..2^24 - 1 -> uint8 (H, W, 3)."""
    return np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def rgb_to_id(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> ids int32 (H, W)."""
    return picture.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _segment_info(number: int, id: int, mask: np.ndarray, score: float | None) -> dict:
    left, top, right, bottom = box_of(mask)
    return {
        "id": number,
        "category_id": id,
        "area": int(mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
        **({} if score is None else {"score": round(score, 6)}),
    }


def _read_image(image: dict, annotation: dict, picture: Path, names: Mapping[int, str], shift: int) -> LabelledImage:
    segments = rgb_to_id(open_image(picture))
    if segments.shape != (image["height"], image["width"]):
        raise ValueError(f"size {segments.shape} for an image of {image['height']} x {image['width']} (H x W)")
    present, places = np.unique(segments, return_inverse=True)
    infos = {int(info["id"]): info for info in annotation["segments_info"]}
    unknown = [int(id) for id in present if id and int(id) not in infos]
    if unknown:
        raise ValueError(f"segments {unknown[:8]} that segments_info lacks")
    numbers = np.where(present > 0, np.cumsum(present > 0), 0)
    infos = [infos[int(id)] for id in present if id]
    classes = {k: int(info["category_id"]) + shift for k, info in enumerate(infos, start=1)}
    scores = {k: float(info["score"]) for k, info in enumerate(infos, start=1) if "score" in info}
    instances = numbers[places].reshape(segments.shape)
    labels = np.array([0, *classes.values()], np.int32)[instances]
    return LabelledImage(
        image["file_name"], labels, names, instances=instances, instance_classes=classes, instance_scores=scores
    )
