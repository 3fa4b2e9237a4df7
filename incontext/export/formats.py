"""The formats of datasets, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from incontext.export import coco, cvat, indexed, label_studio, labelme, panoptic, voc, yolo
from incontext.export.class_table import CLASS_IDS
from incontext.export.labelled import LabelledImage


def _write_nothing(item: LabelledImage, root: str | os.PathLike) -> None:
    """For formats whose files belong to the dataset as a whole."""


@dataclass(frozen=True)
class Format:
    """One format: how a dataset is written and read.

    Attributes:
        name: what users call it.
        layout: its files below a dataset's folder ROOT, for people.
        document: the file in ROOT that is written last, so that a dataset is there if it is.
        finish: `finish(items, root, class_names)` writes the whole dataset, each file whole or not at all, and warns
            of what the format cannot hold. `items` are taken one at a time; class_names is class id -> name, and
            classes that only items know are added.
        read: `read(source, images_root=None)` gives the dataset's images one at a time; `source` is ROOT or the
            format's one document. Broken files raise `FormatError`.
        write_image: `write_image(item, root)` writes the files of one image as soon as it is there, where a format
            has such; `finish` is needed all the same.
    """

    name: str
    layout: str
    document: str
    finish: Callable[[Iterable[LabelledImage], str | os.PathLike, Mapping[int, str]], None]
    read: Callable[..., Iterator[LabelledImage]]
    write_image: Callable[[LabelledImage, str | os.PathLike], None] = _write_nothing


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("coco", "annotations.json, masks as RLE", coco.FILE, coco.finish, coco.read),
        Format("coco-polygons", "annotations.json, polygons where exact", coco.FILE, coco.finish_polygons, coco.read),
        Format("coco-panoptic", "panoptic.json, panoptic/NAME.png", panoptic.FILE, panoptic.finish, panoptic.read),
        Format("yolo", "data.yaml, labels/NAME.txt; loses holes", yolo.FILE, yolo.finish, yolo.read),
        Format("voc", "SegmentationClass/NAME.png, Annotations/NAME.xml, ...", voc.FILE, voc.finish, voc.read),
        Format("png", "masks/NAME.png, classes.txt", indexed.FILE, indexed.finish, indexed.read, indexed.write_image),
        Format("labelme", "NAME.json", CLASS_IDS, labelme.finish, labelme.read, labelme.write_image),
        Format("cvat", "annotations.xml (CVAT for images 1.1)", cvat.FILE, cvat.finish, cvat.read),
        Format(
            "label-studio", "tasks.json, label_config.xml", label_studio.FILE, label_studio.finish, label_studio.read
        ),
    )
}
