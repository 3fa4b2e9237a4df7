"""Where packed images come from: items that know how to read themselves, and the project's own folder layout.

Foreign layouts become items too: `coco_sources` reads COCO's JSON, `devkit_sources` the folders of VOC, ADE and DAVIS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from incontext.image import open_labels
from incontext.labelled_folders import SetMasks, VideoSet, find_sets
from incontext.training.pack import IGNORE_ID, LARGEST_ID
from incontext.types import IGNORE

Maps = tuple[np.ndarray | None, np.ndarray | None]
"""Class ids and instance ids of one image, each uint8 (H, W) with 255 for ignored pixels, or None."""


class ReadMaps(Protocol):
    """Reads the maps of an image of `size` (H, W)."""

    def __call__(self, size: tuple[int, int]) -> Maps: ...


@dataclass(frozen=True)
class Item:
    """One image that is to be packed.

    Attributes:
        set: the set that it belongs to.
        name: its own name within the set.
        image: the file.
        read: reads its maps, when it is packed.
        video: the video that it is a frame of, or empty. Items of a video follow each other in time.
        segments: its ids mean nothing in another image or video; see `Traits`.
    """

    set: str
    name: str
    image: Path
    read: ReadMaps
    video: str = ""
    segments: bool = False


@dataclass(frozen=True)
class MaskFiles:
    """Reads maps from files of ids.

    Attributes:
        labels, instances: the files, or None.
        all_labels, all_instances: those of the whole set, which tell what 255 means; without them each file does.
    """

    labels: Path | None
    instances: Path | None = None
    all_labels: SetMasks | None = None
    all_instances: SetMasks | None = None

    def __call__(self, size: tuple[int, int]) -> Maps:
        labels = None if self.labels is None else read_ids(self.labels, size, self.all_labels)
        instances = None if self.instances is None else read_ids(self.instances, size, self.all_instances)
        return labels, instances


@dataclass(frozen=True)
class Numbered:
    """Reads the maps of a set whose masks number the instances of one class.

    Attributes:
        read: reads the numbers as if they were class ids.
    """

    read: ReadMaps

    def __call__(self, size: tuple[int, int]) -> Maps:
        numbers, _ = self.read(size)
        if numbers is None:
            return None, None
        return np.where(numbers == IGNORE_ID, IGNORE_ID, numbers > 0).astype(np.uint8), numbers


def list_sets(root: str | Path) -> dict[str, list[Item]]:
    """Finds the sets below a folder, laid out as `incontext.labelled_folders` says, with or without masks.

    Args:
        root: folder of sets, or one set.

    Returns:
        The name of each set -> its items, sorted. Frames of a video are named VIDEO-STEM; their ids number the objects
        of that video, unless classes.txt names them.

    Raises:
        ValueError: if there is no set.
    """
    sets: dict[str, list[Item]] = {}
    for found in find_sets(root, unlabelled=True):
        videos = found.videos if isinstance(found, VideoSet) else (("", found.items),)
        instances = SetMasks(tuple(each.instances for _, items in videos for each in items if each.instances))
        sets[found.name] = [
            Item(
                found.name,
                f"{video}-{each.name}" if video else each.name,
                each.image,
                MaskFiles(each.mask, each.instances, each.masks, instances),
                video,
                segments=bool(video) and not found.names,
            )
            for video, items in videos
            for each in items
        ]
    return sets


def read_ids(path: Path, size: tuple[int, int], masks: SetMasks | None = None) -> np.ndarray:
    """Reads a mask as uint8 (H, W): 255 is ignored, but where all masks hold 0 and 255 alone 255 is an object.

    Args:
        path: the file.
        size: (H, W) of its image.
        masks: all masks of its set; those of other layouts are read one by one.

    Raises:
        ValueError: if it holds colours, ids above 254, or has another size than its image's (H, W).
    """
    with Image.open(path) as file:
        if len(file.getbands()) != 1:
            # Colours get their ids file by file, which would tie unlike things together across a set.
            raise ValueError(f"{path}: expected one channel of ids 0..254, got mode {file.mode}; save ids instead")
    ids = open_labels(path)
    if masks is not None and (unknown := masks.unknown_in(path)) is not None:
        ids[unknown] = IGNORE
    if ids.max() > LARGEST_ID:
        raise ValueError(f"{path}: expected ids 0..254, got ids up to {ids.max()}; renumber the mask")
    if ids.shape != size:
        raise ValueError(
            f"{path}: expected the image's size {size[::-1]} (width, height), got {ids.shape[::-1]}; "
            "export the mask at the image's own size"
        )
    return np.where(ids == IGNORE, IGNORE_ID, ids).astype(np.uint8)


def stack_objects(
    masks: Iterable[np.ndarray], classes: Sequence[int], ignored: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lays the masks of single objects on top of each other, the largest at the bottom.

    Args:
        masks: bool (H, W) each.
        classes: the class id of each, 1..254.
        ignored: bool (H, W), pixels of which nothing is known unless an object covers them.
        size: (H, W).

    Returns:
        Class ids and instance ids, uint8 (H, W). Of more than 254 objects the smallest are ignored.
    """
    labels = np.where(ignored, IGNORE_ID, 0).astype(np.uint8)
    instances = labels.copy()
    order = sorted(zip(masks, classes, strict=True), key=lambda pair: -int(pair[0].sum()))
    for number, (mask, id) in enumerate(order, start=1):
        labels[mask] = id
        instances[mask] = number if number <= LARGEST_ID else IGNORE_ID
    return labels, instances
