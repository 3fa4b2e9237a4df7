"""Labelled folders: sets of images with masks, and sets of videos.

SET/images/NAME.jpg          SET/masks/NAME.png     8-bit ids: 0 background, 255 ignore; or black and white
                             SET/masks_inst/NAME.png   optional, ids of single objects
SET/classes.txt              optional, a line "ID NAME" for each id
SET/VIDEO/frames/00000.jpg   SET/VIDEO/masks/00000.png

A mask that holds 0 and 255 alone is black and white, or says no more than what nobody knows. All masks of its set
together tell which: see `SetMasks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from incontext.image import open_image, open_labels
from incontext.types import IGNORE

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""What counts as an image."""

_IGNORED, _IGNORED_DEEP = 255, 0xFFFF  # in 8 and in 16 bits, as `incontext.open_labels` reads them


class SetError(ValueError):
    """A folder is not laid out as expected."""


@dataclass(frozen=True, eq=False)
class SetMasks:
    """The masks of one set.

    Attributes:
        files: all of them, of all videos if it is a set of videos.
    """

    files: tuple[Path, ...]

    @cached_property
    def binary(self) -> bool:
        """Whether all are black and white, so that 255 is object 1; else it marks what nothing is known of.

        Looks no further than the first mask that holds an id, which in most sets is the first. Masks that cannot be
        read say nothing.
        """
        return not any(map(_holds_ids, self.files))

    def unknown_in(self, mask: Path) -> np.ndarray | None:
        """Where 255 in one of the masks says that nothing is known: bool (H, W); None if it says so nowhere.

        Raises:
            SetError: as for `read_ids`.
        """
        marked = read_ids(mask) == IGNORE
        return marked if marked.any() and not self.binary else None


@dataclass(frozen=True)
class Item:
    """One image on disk, and its mask.

    Attributes:
        name: the file's stem.
        image: the picture.
        mask: ids of classes or objects; None only where unlabelled images were asked for.
        instances: ids of single objects, or None.
        masks: those of its set, which tell what 255 means; None where it is ignored whatever they hold.
    """

    name: str
    image: Path
    mask: Path | None
    instances: Path | None = None
    masks: SetMasks | None = field(default=None, compare=False, repr=False)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids in the mask, sorted."""
        return tuple(int(i) for i in np.unique(self.open_labels()) if i > 0)

    def open_image(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return open_image(self.image)

    def open_labels(self) -> np.ndarray:
        """int32 (H, W): ids as stored, 255 as `IGNORE`; or object 1, where all masks of the set are black and white.

        Raises:
            SetError: there is no mask, or it is not a single-channel image.
        """
        if self.mask is None:
            raise SetError(f"{self.image}: expected an image with a mask, got one without")
        ids = read_ids(self.mask)
        if self.masks is not None and (ids == IGNORE).any() and self.masks.binary:
            return open_labels(self.mask)  # soft edges too
        return ids

    def open_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels.

        Raises:
            SetError: as for `open_labels`; or their sizes differ.
        """
        image, labels = self.open_image(), self.open_labels()
        if image.shape[:2] != labels.shape:
            raise SetError(f"{self.mask}: expected the image's size (H, W) {image.shape[:2]}, got {labels.shape}")
        return image, labels


@dataclass(frozen=True)
class ImageSet:
    """Images with masks; `names` maps ids to class names and may be empty."""

    name: str
    items: tuple[Item, ...]
    names: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoSet:
    """Videos as (name, frames in order)."""

    name: str
    videos: tuple[tuple[str, tuple[Item, ...]], ...]
    names: dict[int, str] = field(default_factory=dict)


def find_sets(
    folder: str | Path, only: Iterable[str] | None = None, *, unlabelled: bool = False
) -> list[ImageSet | VideoSet]:
    """Finds the sets in a folder.

    Args:
        folder: holds one folder for each set, or is a set itself.
        only: names of the sets to take, in any order; all by default.
        unlabelled: also take sets that have images and no folder of masks; their items have no mask.

    Returns:
        The sets, sorted by name. Folders of another layout are passed over, and so are images without a mask in sets
        that have masks.

    Raises:
        SetError: the folder does not exist, holds no set, or lacks one of `only`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SetError(f"expected a folder of labelled sets; {folder} is not a folder")
    whole = _read_set(folder, unlabelled)
    candidates = [whole] if whole else [_read_set(p, unlabelled) for p in sorted(folder.iterdir()) if p.is_dir()]
    sets = {found.name: found for found in candidates if found}
    if not sets:
        raise SetError(f"{folder}: expected sets as SET/images + SET/masks or SET/VIDEO/frames + masks; found none")
    wanted = list(only) if only is not None else list(sets)
    missing = [name for name in wanted if name not in sets]
    if missing:
        raise SetError(f"{folder}: no set named {', '.join(missing)}; there are {', '.join(sets)}")
    return [sets[name] for name in sorted(dict.fromkeys(wanted))]


def read_ids(mask: Path) -> np.ndarray:
    """Reads a mask of ids: int32 (H, W), 255 (of 16 bits, 65535) as `IGNORE`. Palette images count by their indices.

    Raises:
        SetError: it is not a single-channel image, or no image at all.
    """
    try:
        with Image.open(mask) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                raise SetError(f"{mask}: expected a mask of ids (8-bit grey or palette), got mode {image.mode}")
            ignored = _IGNORED if image.mode in ("L", "P", "1") else _IGNORED_DEEP
            labels = np.array(ImageOps.exif_transpose(image)).astype(np.int32)
    except (OSError, SyntaxError) as error:  # the latter is Pillow's word for a broken PNG
        raise SetError(f"{mask}: expected a mask of ids, but it cannot be read: {error}") from error
    labels[labels == ignored] = IGNORE
    return labels


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_names(path: Path) -> dict[int, str]:
    """Reads a file of lines "ID NAME": id -> name. Other lines are passed over; no file, no names."""
    if not path.is_file():
        return {}
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdigit() and name:
            names[int(number)] = name
    return names


def _read_set(folder: Path, unlabelled: bool) -> ImageSet | VideoSet | None:
    name, names = folder.resolve().name, read_names(folder / "classes.txt")
    items = _items(folder, "images", unlabelled)
    if items:
        return ImageSet(name, _together([items])[0], names)
    videos = {p.name: _items(p, "frames", unlabelled) for p in sorted(folder.iterdir()) if p.is_dir()}
    videos = {video: frames for video, frames in videos.items() if len(frames) > 1}
    return VideoSet(name, tuple(zip(videos, _together(videos.values()), strict=True)), names) if videos else None


def _together(groups: Iterable[tuple[Item, ...]]) -> list[tuple[Item, ...]]:
    """The same items, which know each other's masks now."""
    groups = list(groups)
    masks = SetMasks(tuple(item.mask for items in groups for item in items if item.mask is not None))
    return [tuple(replace(item, masks=masks) for item in items) for items in groups]


def _holds_ids(mask: Path) -> bool:
    """Whether a mask is not black and white: it has ids beside 255, or a palette in which 255 is no object."""
    try:
        stored, labels = read_ids(mask), open_labels(mask)
    except ValueError:
        return False  # whoever wants this very mask is told
    return bool(((labels == IGNORE) | (labels > 0) & (labels == stored)).any())


def _items(folder: Path, images: str, unlabelled: bool) -> tuple[Item, ...]:
    """Images that have a mask of the same stem, sorted by name."""
    found, masks = list_images(folder / images), _by_stem(folder / "masks")
    if masks is None:
        return tuple(Item(p.stem, p, None) for p in found) if unlabelled else ()
    instances = _by_stem(folder / "masks_inst") or {}
    return tuple(Item(p.stem, p, masks[p.stem], instances.get(p.stem)) for p in found if p.stem in masks)


def _by_stem(folder: Path) -> dict[str, Path] | None:
    return {p.stem: p for p in folder.iterdir() if p.suffix.lower() == ".png"} if folder.is_dir() else None
