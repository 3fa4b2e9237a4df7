"""labelme: ROOT/NAME.json for each image, in the images' folders. Holes are kept through mask shapes.

labelme opens them where they lie beside their images: copy one to the other.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from incontext.export.class_table import CLASS_IDS, ClassTable, number_names
from incontext.export.documents import FormatError, parsing, read_json, write_json
from incontext.export.file_names import LabelFiles, find_files, label_file
from incontext.export.labelled import LabelledImage, LabelledObject
from incontext.export.losses import NO_AREA, Losses
from incontext.export.polygons import fill
from incontext.export.shapes import box_of, shapes
from incontext.types import IGNORE

_SPECIAL = {"__ignore__": IGNORE, "_background_": 0}
"""labelme's own labels, and what they mean here."""

_VERSION = "5.5.0"
_NO_AREA = ("point", "points", "line", "linestrip")


def write_image(item: LabelledImage, root: str | os.PathLike) -> None:
    """Writes one image's file. Whole or not at all."""
    write_json(Path(root) / label_file(item.file_name, ".json"), _document(item))


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset: every image's file, then which id each name has. Images stay in the files they have."""
    files, table = _label_files(Path(root)), ClassTable(class_names)
    for item in items:
        for id in item.ids:
            table.name(item, id)
        write_json(Path(root) / files.claim(item.file_name), _document(item))
    table.write_ids(root)


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads polygons, rectangles, circles and masks; later shapes lie on top. Shapes of one label and group are one
    object.

    Names get the ids of class_ids.json, else they count from 1 in alphabetical order.

    Args:
        source: one file, or a folder with files in any depth.
        images_root: not needed.

    Raises:
        FormatError: there are no files, or one is broken.
    """
    root = Path(source)
    files = [root] if root.is_file() else _files(root)
    if not files:
        raise FormatError(f"{root}: expected labelme files NAME.json, found none; check the path")
    folder = root.parent if root.is_file() else root
    found = sorted({label for file in files for label in _labels(file)} - set(_SPECIAL))
    ids, losses = number_names(found, folder), Losses("labels from labelme")
    names = {id: name for name, id in ids.items()}
    for file in files:
        with parsing(file, "a labelme file (shapes, imagePath, imageHeight, imageWidth)"):
            document = read_json(file)
            size = (int(document["imageHeight"]), int(document["imageWidth"]))
            objects = _objects_of(document["shapes"], size, ids | _SPECIAL, losses)
            name = _image_name(document, file, folder)
            item = LabelledImage.from_objects(name, size, objects, names)
        yield item
    losses.report()


def _files(root: Path) -> list[Path]:
    return [file for file in find_files(root, ".json") if file.name != CLASS_IDS]


def _image_name(document: dict, file: Path, root: Path) -> str:
    image = PurePosixPath(str(document["imagePath"]).replace("\\", "/")).name
    return (PurePosixPath(file.parent.relative_to(root).as_posix()) / image).as_posix()


def _label_files(root: Path) -> LabelFiles:
    """Keeps those that are not called as their image: no list says which is whose, so an image must not have two."""
    files = LabelFiles(".json")
    for file in _files(root):
        with suppress(FormatError), parsing(file, "a labelme file with an imagePath"):
            name, image = file.relative_to(root).as_posix(), _image_name(read_json(file), file, root)
            if name != label_file(image, ".json"):
                files.keep(image, name)
    return files


def _document(item: LabelledImage) -> dict[str, Any]:
    drawn = [
        _polygon_shape(item.name(shape.id), shape.polygon, shape.score)
        if shape.mask is None
        else _mask_shape(item.name(shape.id), shape.mask, shape.score)
        for shape in shapes(item)
    ]
    if (item.labels == IGNORE).any():
        drawn.append(_mask_shape("__ignore__", item.labels == IGNORE, None))
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": drawn,
        "imagePath": PurePosixPath(item.file_name).name,
        "imageData": None,
        "imageHeight": item.size[0],
        "imageWidth": item.size[1],
    }


def _polygon_shape(label: str, polygon: np.ndarray, score: float | None) -> dict[str, Any]:
    return _shape(label, "polygon", polygon.astype(float).tolist(), score)


def _mask_shape(label: str, mask: np.ndarray, score: float | None) -> dict[str, Any]:
    left, top, right, bottom = box_of(mask)
    file = io.BytesIO()
    Image.fromarray(mask[top:bottom, left:right].astype(np.uint8)).save(file, "PNG")
    corners = [[float(left), float(top)], [float(right - 1), float(bottom - 1)]]
    return _shape(label, "mask", corners, score) | {"mask": base64.b64encode(file.getvalue()).decode("ascii")}


def _shape(label: str, kind: str, points: list, score: float | None) -> dict[str, Any]:
    shape = {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}}
    return shape | {"mask": None} | ({} if score is None else {"score": round(score, 6)})


def _labels(file: Path) -> list[str]:
    with parsing(file, "a labelme file with shapes"):
        return [str(shape["label"]) for shape in read_json(file)["shapes"]]


def _objects_of(
    shapes: list[dict], size: tuple[int, int], ids: Mapping[str, int], losses: Losses
) -> list[LabelledObject]:
    objects: dict[tuple, LabelledObject] = {}
    for place, shape in enumerate(shapes):
        kind = shape.get("shape_type") or "polygon"
        if kind in _NO_AREA:
            losses.add(NO_AREA)
            continue
        label, group, score = str(shape["label"]), shape.get("group_id"), shape.get("score")
        mask = _mask_of(kind, shape, size)
        key = (label, "group", group) if group is not None else (label, "shape", place)
        if key in objects:
            mask = mask | objects[key].mask
        objects[key] = LabelledObject(ids[label], mask, None if score is None else float(score))
    return list(objects.values())


def _mask_of(kind: str, shape: dict, size: tuple[int, int]) -> np.ndarray:
    points = np.asarray(shape["points"], np.float64)
    if kind in ("polygon", "oriented_rectangle"):
        return fill([points], size)
    if points.shape != (2, 2):
        raise ValueError(f"{len(points)} points in a shape of type {kind!r}")
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return fill([[(left, top), (right, top), (right, bottom), (left, bottom)]], size)
    if kind == "circle":
        y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
        (centre_x, centre_y), radius = points[0], np.hypot(*(points[1] - points[0]))
        return (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2
    if kind != "mask":
        raise ValueError(f"a shape of type {kind!r}")
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
        crop = np.asarray(picture).astype(bool)
    left, top = points[0].round().astype(int)
    mask = np.zeros(size, bool)
    place = mask[top : top + crop.shape[0], left : left + crop.shape[1]]
    if min(left, top) < 0 or place.shape != crop.shape:
        raise ValueError(f"a mask of size {crop.shape} at row {top}, column {left} in an image of size {size}")
    place[:] = crop
    return mask
