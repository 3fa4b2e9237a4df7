"""A small dataset with whatever formats stumble over, and short ways to write it and read it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from incontext.export import FORMATS, LabelledImage
from incontext.types import IGNORE

NAMES = {3: "cell, round", 7: "Kern Ä “x” & <y>", 12: "12", 40: "never seen"}
"""Ids with gaps; names with commas, spaces, marks and digits."""


def items(holes: bool = True, ignored: bool = True) -> list[LabelledImage]:
    """Four images: two of one stem in different folders, one without objects, one with a name to trip over."""
    made = []
    for number, name in enumerate(["a.jpg", "sub/a.jpg", "sub/b c, d.png", "ü/é.x.jpg"]):
        labels = np.zeros((31, 47), np.int32)
        if number != 2:
            labels[3:15, 4:20] = 3
            labels[15:20, 4:9] = 7  # touches it
            labels[0, 46] = labels[30, 0] = 7  # one pixel, in corners
            labels[20:22, 40:42] = labels[22:24, 42:44] = 12  # two squares that meet in a corner
            if holes:
                labels[6:9, 8:12] = 0
                labels[7, 9] = 7  # an object in a hole
            if ignored and number == 1:
                labels[25:, 30:] = IGNORE
        made.append(LabelledImage(name, labels, NAMES, {3: 0.5, 7: 0.25}))
    return made


def write(format: str, root: Path, dataset: list[LabelledImage]) -> Path:
    """Writes a dataset, and images of its sizes into root/images."""
    FORMATS[format].finish(iter(dataset), root, NAMES)
    for item in dataset:
        path = root / "images" / item.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", item.size[::-1]).save(path)
    return root


def read(format: str, root: Path) -> dict[str, LabelledImage]:
    """Reads a dataset: file name -> labels."""
    found = list(FORMATS[format].read(root))
    assert len({item.file_name for item in found}) == len(found)
    return {item.file_name: item for item in found}


def masks(item: LabelledImage) -> set[tuple[int, bytes]]:
    """The objects of an image, in no order: class id and pixels."""
    return {(thing.id, thing.mask.tobytes()) for thing in item.objects()}
