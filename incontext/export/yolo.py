"""YOLO segmentation: ROOT/labels/NAME.txt with a normalised polygon in each line, and ROOT/data.yaml.

A polygon has no holes, so holes are filled, and an object in several parts becomes several objects. The images
belong into ROOT/images, in the same folders as the labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from incontext.export.class_table import ClassTable, number_names
from incontext.export.documents import FormatError, parsing, read_text, write_text
from incontext.export.file_names import ImageFinder, LabelFiles, find_files, label_file, relative_stem
from incontext.export.labelled import LabelledImage, LabelledObject, largest_first
from incontext.export.losses import HOLES, IGNORED, PARTS, SHARED, Losses
from incontext.export.polygons import fill, trace
from incontext.image import open_image
from incontext.types import IGNORE

FILE = "data.yaml"

_YAML = """# Put the images, or a link to them, into images/, in the same folders as labels/.
train: images
val: images
nc: {count}
names: {names}
"""


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset: labels, then data.yaml. Warns how many holes were filled, and what else was lost."""
    root, files, table, losses = Path(root), LabelFiles(".txt"), ClassTable(class_names), Losses("YOLO")
    for item in items:
        labels = label_file(item.file_name, ".txt")
        if files.claim(item.file_name) != labels:  # YOLO finds labels by the image's stem, so there is no other name
            losses.add(SHARED)
            continue
        losses.add(IGNORED, (item.labels == IGNORE).any())
        lines = []
        for thing in largest_first(item.objects()):
            parts = trace(thing.mask)
            losses.add(HOLES, sum(len(part.holes) for part in parts))
            if item.instances is not None:
                losses.add(PARTS, len(parts) - 1)
            rank = table.rank(item, thing.id)
            lines += [f"{rank} {_normalised(part.outline, item.size)}\n" for part in parts]
        write_text(root / "labels" / labels, "".join(lines))
    table.write_ids(root)
    write_text(root / FILE, _data_yaml([name for _, name in table.items()]))
    losses.report()


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads polygons; where they overlap, the smaller lies on top. Images without a label file are passed over.

    Args:
        source: the folder that holds labels/ and data.yaml.
        images_root: the images, which tell the size; ROOT/images by default.

    Raises:
        FormatError: there are no labels, an image is missing, or a line is no polygon.
    """
    root = Path(source)
    names = _read_names(root / FILE)
    ids = number_names(names.values(), root)
    images, labels = Path(images_root or root / "images"), root / "labels"
    files, finder = find_files(labels, ".txt"), ImageFinder(images)
    if not files:
        raise FormatError(f"{root}: expected labels as labels/NAME.txt, found none; check the path")
    for file in files:
        stem = relative_stem(file, labels)
        name = finder.find(stem)
        if name is None:
            raise FormatError(
                f"{file}: expected its image {images / stem}.*, which tells the size, found none; move or link the "
                f"images to {images}"
            )
        with parsing(file, "a class and a polygon in each line"):
            size = open_image(images / name).shape[:2]
            lines = [line.split() for line in read_text(file).splitlines()]
            objects = largest_first(_object_of(line, size, names, ids) for line in lines if line)
            item = LabelledImage.from_objects(
                name, size, [thing for thing in objects if thing.mask.any()], {id: text for text, id in ids.items()}
            )
        yield item


def _normalised(outline: np.ndarray, size: tuple[int, int]) -> str:
    """int (n, 2) -> "x y x y ..." in 0..1, exact to a hundredth of a pixel and better."""
    return " ".join(f"{value:.8g}" for value in (outline / (size[1], size[0])).ravel())


def _data_yaml(names: list[str]) -> str:
    import yaml

    listing = yaml.safe_dump(dict(enumerate(names)), allow_unicode=True, width=10**6, default_flow_style=False)
    return (
        _YAML.format(count=len(names), names="\n" + "".join(f"  {line}\n" for line in listing.splitlines())).rstrip()
        + "\n"
    )


def _read_names(path: Path) -> dict[int, str]:
    """Rank -> name of data.yaml."""
    import yaml

    with parsing(path, "class names under 'names'"):
        try:
            names = yaml.safe_load(read_text(path))["names"]
        except yaml.YAMLError as error:
            raise FormatError(f"{path}: expected YAML, got a damaged or other file ({error})") from error
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(rank): str(name) for rank, name in pairs}


def _object_of(
    line: list[str], size: tuple[int, int], names: Mapping[int, str], ids: Mapping[str, int]
) -> LabelledObject:
    if len(line) < 7 or len(line) % 2 == 0:
        raise ValueError(f"{len(line)} values in a line; boxes have no outline, so export segmentation, not detection")
    rank = int(line[0])
    if rank not in names:
        raise ValueError(f"class {rank}, which data.yaml does not name")
    corners = np.array(line[1:], np.float64).reshape(-1, 2) * (size[1], size[0])
    return LabelledObject(ids[names[rank]], fill([corners], size))
