"""Segmentations to a dataset and back, in one call."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from incontext.export.formats import FORMATS, Format
from incontext.export.labelled import LabelledImage, split_instances
from incontext.types import Segmentation


def write_dataset(
    segmentations: Segmentation | Iterable[Segmentation],
    out: str | os.PathLike,
    *,
    file_name: str | os.PathLike | Sequence[str | os.PathLike],
    format: str = "coco",
    instances: bool = False,
    images_root: str | os.PathLike | None = None,
) -> None:
    """Writes segmentations as a dataset, or adds them to the one in `out`.

    Images that the dataset has already are replaced. Classes are the same where their names are; new ones keep their
    id where that is free. Adding reads and writes the whole dataset, so give many images at once: they are taken one
    at a time.

        write_dataset(predictor.predict_many(paths, examples), "out", file_name=paths, format="coco")

    Args:
        segmentations: one or many.
        out: the dataset's folder; made where it is missing.
        file_name: the image's path below the folder of images, or one for each segmentation.
        format: a name in `FORMATS`.
        instances: make every connected part of a class an object of its own. SegGPT tells classes apart, not objects
            that touch.
        images_root: the folder of images, for adding to a format that needs it to be read (YOLO).

    Raises:
        ValueError: there is no such format, or not one file name for each segmentation.
        FormatError: the dataset in `out` is broken.
    """
    form = _format(format)
    if isinstance(segmentations, Segmentation):
        segmentations = [segmentations]
    if isinstance(file_name, (str, os.PathLike)):
        file_name = [file_name]
    names = [Path(name).as_posix() for name in file_name]
    # All is read before anything is written, since an image may get the file of another; packed, so that it fits.
    old: list[bytes] = []
    classes: dict[int, str] = {}
    for item in form.read(out, images_root) if (Path(out) / form.document).is_file() else ():
        classes.update(item.names)
        if item.file_name not in names:
            old.append(zlib.compress(pickle.dumps(item), 1))

    def items() -> Iterator[LabelledImage]:
        for packed in old:
            yield pickle.loads(zlib.decompress(packed))
        for name, segmentation in zip(names, segmentations, strict=True):
            item = LabelledImage(name, segmentation.labels, segmentation.names, segmentation.scores)
            item = _with_ids_of(item, classes)
            yield split_instances(item) if instances else item

    form.finish(items(), out, {})


def read_dataset(
    source: str | os.PathLike, *, format: str = "coco", images_root: str | os.PathLike | None = None
) -> Iterator[LabelledImage]:
    """Reads a dataset's labels, one image at a time.

    Args:
        source: the dataset's folder, or the format's one document.
        format: a name in `FORMATS`.
        images_root: the folder of images, for formats that don't tell sizes or whole file names.

    Raises:
        ValueError: there is no such format.
        FormatError: a file is missing or broken.
    """
    return _format(format).read(source, images_root)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _with_ids_of(item: LabelledImage, classes: dict[int, str]) -> LabelledImage:
    """Gives an image's classes the ids that their names have in a dataset; `classes` takes the new ones up."""
    known = {name: id for id, name in classes.items()}
    mapping: dict[int, int] = {}
    for id in item.ids:
        name = item.name(id)
        if name not in known:
            known[name] = id if id not in classes else max(classes) + 1
            classes[known[name]] = name
        mapping[id] = known[name]
    if all(old == new for old, new in mapping.items()):
        return item
    return replace(
        item,
        labels=_renumbered(item.labels, mapping),
        names={new: item.name(old) for old, new in mapping.items()},
        scores={mapping[id]: score for id, score in item.scores.items() if id in mapping},
    )


def _renumbered(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    renumbered = labels.copy()
    for old, new in mapping.items():
        renumbered[labels == old] = new
    return renumbered
