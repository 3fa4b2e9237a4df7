"""CVAT for images 1.1: ROOT/annotations.xml, polygons where they are exact, else masks.

A mask's `rle` holds the lengths of runs, background first, row by row through its box.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from incontext.export.class_table import ClassTable, number_names
from incontext.export.documents import find_document, parsing, read_xml, write_xml
from incontext.export.labelled import LabelledImage, LabelledObject
from incontext.export.losses import IGNORED, NO_AREA, Losses
from incontext.export.polygons import fill
from incontext.export.raster import display_colour
from incontext.export.shapes import Shape, box_of, shapes
from incontext.types import IGNORE

FILE = "annotations.xml"

_NO_AREA = ("polyline", "points", "cuboid", "skeleton")


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset."""
    table, losses = ClassTable(class_names), Losses("CVAT")
    images: list[Element] = []
    for item in items:
        height, width = item.size
        attributes = {"id": str(len(images)), "name": item.file_name, "width": str(width), "height": str(height)}
        image = Element("image", attributes)
        losses.add(IGNORED, (item.labels == IGNORE).any())
        for shape in shapes(item):
            image.append(_element_of(shape, table.name(item, shape.id)))
        images.append(image)
    document = Element("annotations")
    SubElement(document, "version").text = "1.1"
    document.append(_meta(len(images), table))
    document.extend(images)
    table.write_ids(root)
    write_xml(Path(root) / FILE, document)
    losses.report()


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads polygons, masks, boxes and ellipses; what has a higher z_order lies on top, then what comes later.

    Names get the ids of class_ids.json, else they count from 1 in the order of the task's labels.

    Args:
        source: the XML file, or a folder with annotations.xml.
        images_root: not needed.

    Raises:
        FormatError: the file is broken, or of a video task.
    """
    path, losses = find_document(source, FILE), Losses("labels from CVAT")
    document = read_xml(path)
    with parsing(path, "CVAT for images 1.1"):
        if document.tag != "annotations" or document.find("track") is not None:
            raise ValueError("another document, or tracks of a video; export the task as 'CVAT for images 1.1'")
        used = [shape.get("label") for shape in document.iterfind("image/*") if shape.get("label")]
        ids = number_names([*(name.text for name in document.iterfind("meta//label/name") if name.text), *used], path)
    names = {id: name for name, id in ids.items()}
    for image in document.iterfind("image"):
        with parsing(path, f"shapes of {image.get('name')}"):
            size = (int(image.attrib["height"]), int(image.attrib["width"]))
            objects = []
            for element in sorted(image, key=lambda element: int(element.get("z_order", "0"))):
                if element.tag in _NO_AREA:
                    losses.add(NO_AREA)
                elif element.tag != "tag":
                    objects.append(LabelledObject(ids[element.attrib["label"]], _mask_of(element, size)))
            item = LabelledImage.from_objects(image.attrib["name"], size, objects, names)
        yield item
    losses.report()


def encode_runs(mask: np.ndarray) -> str:
    """bool (h, w) -> "3, 5, 7": lengths of runs row by row, background first."""
    flat = mask.ravel()
    bounds = np.flatnonzero(np.diff(flat, prepend=False))
    return ", ".join(map(str, np.diff(bounds, prepend=0, append=flat.size)))


def decode_runs(text: str, size: tuple[int, int]) -> np.ndarray:
    """The way back from `encode_runs`: bool of the given size.

    Raises:
        ValueError: the runs don't fill it.
    """
    runs = np.array([int(run) for run in text.split(",")])
    if runs.min() < 0 or runs.sum() > size[0] * size[1]:
        raise ValueError(f"runs of {runs.sum()} pixels in a box of {size[0] * size[1]}")
    flat = np.zeros(size[0] * size[1], bool)
    flat[: runs.sum()] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size)


def _meta(count: int, table: ClassTable) -> Element:
    meta = Element("meta")
    task = SubElement(meta, "task")
    for tag, text in (("name", "incontext"), ("size", str(count)), ("mode", "annotation"), ("z_order", "False")):
        SubElement(task, tag).text = text
    labels = SubElement(task, "labels")
    for id, name in table.items():
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*display_colour(id))
        SubElement(label, "type").text = "any"
        SubElement(label, "attributes")
    return meta


def _element_of(shape: Shape, label: str) -> Element:
    attributes = {"label": label, "source": "auto", "occluded": "0", "z_order": "0"}
    if shape.mask is None:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in shape.polygon)
        return Element("polygon", attributes | {"points": points})
    left, top, right, bottom = box_of(shape.mask)
    box = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    rle = encode_runs(shape.mask[top:bottom, left:right])
    return Element("mask", attributes | {"rle": rle} | {key: str(value) for key, value in box.items()})


def _mask_of(element: Element, size: tuple[int, int]) -> np.ndarray:
    value = element.attrib
    if element.tag == "polygon":
        return fill([[[float(number) for number in point.split(",")] for point in value["points"].split(";")]], size)
    if element.tag == "box":
        box = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
        low, high = (np.array([float(value[x]), float(value[y])]) for x, y in (("xtl", "ytl"), ("xbr", "ybr")))
        return fill([_turned(low + box * (high - low), (low + high) / 2, float(value.get("rotation", 0)))], size)
    if element.tag == "ellipse":
        centre = np.array([float(value["cx"]), float(value["cy"])])
        angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        rim = np.stack([float(value["rx"]) * np.cos(angles), float(value["ry"]) * np.sin(angles)], axis=1)
        return fill([_turned(centre + rim, centre, float(value.get("rotation", 0)))], size)
    if element.tag != "mask":
        raise ValueError(f"a shape <{element.tag}>")
    left, top, width, height = (int(float(value[key])) for key in ("left", "top", "width", "height"))
    mask = np.zeros(size, bool)
    place = mask[top : top + height, left : left + width]
    if min(left, top) < 0 or place.shape != (height, width):
        raise ValueError(f"a mask of size {(height, width)} at row {top}, column {left} in an image of size {size}")
    place[:] = decode_runs(value["rle"], (height, width))
    return mask


def _turned(corners: np.ndarray, centre: np.ndarray, degrees: float) -> np.ndarray:
    """Corners (n, 2) turned clockwise as seen."""
    angle = np.deg2rad(degrees)
    across = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return centre + (corners - centre) @ across
