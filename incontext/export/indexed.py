"""Indexed PNGs with their lists: the layout of `incontext.labelled_folders`, so that it can be trained on.

ROOT/masks/NAME.png        class ids; 0 background, 255 ignored (16 bits: 65535)
ROOT/masks_inst/NAME.png   objects, where they were told apart
ROOT/classes.txt           a line "ID NAME" for each class
ROOT/images.csv            which mask belongs to which image
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from incontext.export.class_table import ClassTable
from incontext.export.documents import FormatError, parsing, read_text, write_text
from incontext.export.file_names import ImageFinder, LabelFiles, find_files, label_file, relative_stem
from incontext.export.labelled import LabelledImage
from incontext.export.raster import write_indexed
from incontext.image import open_labels
from incontext.labelled_folders import read_names

FILE = "images.csv"

_COLUMNS = ("image", "mask")


def write_image(item: LabelledImage, root: str | os.PathLike) -> None:
    """Writes one image's masks. Whole or not at all, each."""
    _write_masks(item, Path(root), label_file(item.file_name, ".png"))


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset: masks, then the lists."""
    root, files, table = Path(root), LabelFiles(".png"), ClassTable(class_names)
    rows = []
    for item in items:
        mask = files.claim(item.file_name)
        _write_masks(item, root, mask)
        rows.append((item.file_name, mask))
        for id in item.ids:
            table.name(item, id)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
    write_classes(root / "classes.txt", dict(table.items()))
    write_text(root / FILE, text.getvalue())


def write_classes(path: str | os.PathLike, names: Mapping[int, str]) -> None:
    """Writes a line "ID NAME" for each class; line breaks within a name become spaces."""
    write_text(path, "".join(f"{id} {' '.join(names[id].splitlines())}\n" for id in sorted(names)))


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads masks; whatever `incontext.open_labels` reads is welcome.

    Args:
        source: the folder that holds masks/.
        images_root: the images, to learn their suffixes where there is no images.csv; ROOT/images by default.

    Raises:
        FormatError: there are no masks, or a list or mask is broken.
    """
    root = Path(source)
    with parsing(root / "classes.txt", "a line 'ID NAME' for each class"):
        names = read_names(root / "classes.txt")
    for file_name, mask in _list(root, Path(images_root or root / "images")):
        with parsing(root / "masks" / mask, "a mask"):
            labels = open_labels(root / "masks" / mask)
            objects = root / "masks_inst" / mask
            # Read as numbers: an image of one object is no black and white drawing.
            instances = open_labels(objects).clip(min=0) if objects.is_file() else None
            item = LabelledImage(file_name, labels, names, instances=instances)
        yield item


def _write_masks(item: LabelledImage, root: Path, name: str) -> None:
    if item.instances is None:
        (root / "masks_inst" / name).unlink(missing_ok=True)  # of an earlier mask, whose objects were told apart
    write_indexed(root / "masks" / name, item.labels)
    if item.instances is not None:
        write_indexed(root / "masks_inst" / name, item.instances)


def _list(root: Path, images: Path) -> list[tuple[str, str]]:
    """(image, mask) for each mask, both relative to their folders."""
    if (root / FILE).is_file():
        with parsing(root / FILE, f"the columns {', '.join(_COLUMNS)}"):
            rows = csv.DictReader(io.StringIO(read_text(root / FILE), newline=""))
            pairs = [(row["image"], row["mask"]) for row in rows]
            if not all(image and mask for image, mask in pairs):
                raise ValueError("a row without an image or a mask")
            return pairs
    stems = [relative_stem(path, root / "masks") for path in find_files(root / "masks", ".png")]
    if not stems:
        raise FormatError(f"{root}: expected masks as masks/NAME.png, found none; check the path")
    finder = ImageFinder(images)
    return [(finder.find(stem) or f"{stem}.png", f"{stem}.png") for stem in stems]
