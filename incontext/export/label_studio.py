"""Label Studio: ROOT/tasks.json with predictions, polygons where they are exact, else brush masks.

ROOT/label_config.xml is the labelling interface to make the project with. Images are served from a local storage
whose folder is that of the images; `data.image` names each by its path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from incontext.export.brush_rle import decode_brush, encode_brush
from incontext.export.class_table import ClassTable, number_names
from incontext.export.documents import find_document, parsing, read_json, write_json, write_text
from incontext.export.labelled import LabelledImage, LabelledObject
from incontext.export.losses import IGNORED, NO_AREA, Losses
from incontext.export.polygons import fill
from incontext.export.raster import display_colour
from incontext.export.shapes import Shape, shapes
from incontext.image import open_image
from incontext.types import IGNORE

FILE = "tasks.json"

_LABELS = {"brushlabels": "BrushLabels", "polygonlabels": "PolygonLabels"}
_AREAS = (*_LABELS, "rectanglelabels", "ellipselabels")


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset and its labelling interface."""
    table, losses = ClassTable(class_names), Losses("Label Studio")
    tasks = []
    for item in items:
        losses.add(IGNORED, (item.labels == IGNORE).any())
        results = [_result(shape, table.name(item, shape.id), item.size, k) for k, shape in enumerate(shapes(item), 1)]
        scores = list(item.scores.values())
        score = {"score": round(min(scores), 6)} if scores else {}
        data = {
            "image": "/data/local-files/?d=" + quote(item.file_name),
            "file_name": item.file_name,
            "width": item.size[1],
            "height": item.size[0],
        }
        tasks.append({"data": data, "predictions": [{"model_version": "incontext", **score, "result": results}]})
    table.write_ids(root)
    write_text(Path(root) / "label_config.xml", _config(table))
    write_json(Path(root) / FILE, tasks)
    losses.report()


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads each task's last annotation that was not cancelled, or else its last prediction.

    Polygons, brush masks, rectangles and ellipses; later ones lie on top. Names get the ids of class_ids.json, else
    they count from 1 in alphabetical order.

    Args:
        source: an export in JSON, or a folder with tasks.json.
        images_root: the images, for the size of those without any result.

    Raises:
        FormatError: the file is broken, or an image's size is not known.
    """
    path, losses = find_document(source, FILE), Losses("labels from Label Studio")
    with parsing(path, "Label Studio's tasks in JSON (not JSON-MIN)"):
        tasks = read_json(path)
        found = {label for task in tasks for result in _results(task) for label in _labels_of(result)}
        ids = number_names(sorted(found), path)
    names = {id: name for name, id in ids.items()}
    for task in tasks:
        with parsing(path, f"results of task {task.get('id', task.get('data'))}"):
            name = _file_name(task["data"])
            size = _size(task, name, images_root)
            objects = []
            for result in _results(task):
                if result["type"] in _AREAS:
                    (label,) = _labels_of(result)
                    score = result.get("score")
                    score = None if score is None else float(score)
                    objects.append(LabelledObject(ids[label], _mask_of(result, size), score))
                elif result["type"].endswith("labels"):
                    losses.add(NO_AREA)
            item = LabelledImage.from_objects(name, size, objects, names)
        yield item
    losses.report()


def _result(shape: Shape, label: str, size: tuple[int, int], number: int) -> dict[str, Any]:
    if shape.mask is None:
        percent = shape.polygon * (100 / size[1], 100 / size[0])
        kind, value = "polygonlabels", {"points": percent.tolist(), "closed": True}
    else:
        kind, value = "brushlabels", {"format": "rle", "rle": encode_brush(shape.mask)}
    return {
        "id": f"object-{number}",
        "type": kind,
        "from_name": kind.removesuffix("labels"),
        "to_name": "image",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": value | {kind: [label]},
        **({} if shape.score is None else {"score": round(shape.score, 6)}),
    }


def _config(table: ClassTable) -> str:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    for kind, tag in _LABELS.items():
        labels = ElementTree.SubElement(view, tag, name=kind.removesuffix("labels"), toName="image")
        for id, name in table.items():
            colour = "#{:02x}{:02x}{:02x}".format(*display_colour(id))
            ElementTree.SubElement(labels, "Label", value=name, background=colour)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _results(task: dict) -> list[dict]:
    annotations = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    chosen = annotations or [one for one in task.get("predictions") or () if isinstance(one, dict)]
    return chosen[-1]["result"] if chosen else []


def _labels_of(result: dict) -> list[str]:
    return [str(label) for label in result["value"].get(result["type"], ())] if result["type"] in _AREAS else []


def _file_name(data: dict) -> str:
    """The image's path: as written here, or out of the address that it is served from."""
    if "file_name" in data:
        return data["file_name"]
    address = urlsplit(str(next(data[key] for key in ("image", "img", "url") if key in data)))
    served = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    path = PurePosixPath(served.lstrip("/"))
    if path.parts[:2] == ("data", "upload"):  # uploads are called DIGITS-NAME
        return path.name.partition("-")[2] or path.name
    return str(path)


def _size(task: dict, name: str, images_root: str | os.PathLike | None) -> tuple[int, int]:
    for result in _results(task):
        if "original_width" in result:
            return int(result["original_height"]), int(result["original_width"])
    data = task["data"]
    if "width" in data and "height" in data:
        return int(data["height"]), int(data["width"])
    if images_root is None:
        raise ValueError(f"no size of {name}, which has no result; give the folder of images")
    return open_image(Path(images_root) / name).shape[:2]


def _mask_of(result: dict, size: tuple[int, int]) -> np.ndarray:
    kind, value = result["type"], result["value"]
    if kind == "brushlabels":
        return decode_brush(value["rle"], size)
    scale = np.array([size[1], size[0]]) / 100
    if kind == "polygonlabels":
        return fill([np.asarray(value["points"], np.float64) * scale], size)
    place = np.array([value["x"], value["y"]], np.float64) * scale
    if kind == "rectanglelabels":
        extent = np.array([value["width"], value["height"]], np.float64) * scale
        corners, pivot = place + np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * extent, place
    else:
        angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        radii = np.array([value["radiusX"], value["radiusY"]], np.float64) * scale
        corners, pivot = place + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii, place
    angle = np.deg2rad(float(value.get("rotation", 0)))  # clockwise about the top left corner, or the centre
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return fill([pivot + (corners - pivot) @ turn], size)
