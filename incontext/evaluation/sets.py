"""Labelled folders: sets of images with masks, and sets of videos.

SET/images/NAME.jpg      SET/masks/NAME.png     8-bit ids: 0 background, 255 ignore
SET/classes.txt          optional, a line "ID NAME" for each id
SET/VIDEO/frames/00000.jpg   SET/VIDEO/masks/00000.png
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from incontext.image import open_image
from incontext.types import IGNORE

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_IGNORED = 255


class SetError(ValueError):
    """A folder is not laid out as expected."""


@dataclass(frozen=True)
class Item:
    """One image and its mask on disk."""

    name: str
    image: Path
    mask: Path

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids in the mask, sorted."""
        return tuple(int(i) for i in np.unique(self.open_labels()) if i > 0)

    def open_image(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return open_image(self.image)

    def open_labels(self) -> np.ndarray:
        """int32 (H, W): ids as stored, 255 as `IGNORE`.

        Raises:
            SetError: the mask is not a single-channel image.
        """
        with Image.open(self.mask) as mask:
            if mask.mode not in ("L", "P", "1", "I;16", "I"):
                raise SetError(f"{self.mask}: expected a mask of ids (8-bit grey or palette), got mode {mask.mode}")
            labels = np.array(mask).astype(np.int32)
        labels[labels == _IGNORED] = IGNORE
        return labels


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


def find_sets(folder: str | Path, only: Iterable[str] | None = None) -> list[ImageSet | VideoSet]:
    """Finds the labelled sets in a folder.

    Args:
        folder: holds one folder for each set, or is a set itself.
        only: names of the sets to take, in any order; all by default.

    Returns:
        The sets, sorted by name. Folders of another layout are passed over.

    Raises:
        SetError: the folder does not exist, holds no set, or lacks one of `only`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SetError(f"expected a folder of labelled sets; {folder} is not a folder")
    candidates = [folder] if _read_set(folder) else sorted(p for p in folder.iterdir() if p.is_dir())
    sets = {p.resolve().name: found for p in candidates if (found := _read_set(p))}
    if not sets:
        raise SetError(f"{folder}: expected sets as SET/images + SET/masks or SET/VIDEO/frames + masks; found none")
    wanted = list(only) if only is not None else list(sets)
    missing = [name for name in wanted if name not in sets]
    if missing:
        raise SetError(f"{folder}: no set named {', '.join(missing)}; there are {', '.join(sets)}")
    return [sets[name] for name in sorted(dict.fromkeys(wanted))]


def _read_set(folder: Path) -> ImageSet | VideoSet | None:
    name, names = folder.resolve().name, _read_names(folder / "classes.txt")
    items = _pairs(folder / "images", folder / "masks")
    if items:
        return ImageSet(name, items, names)
    videos = [(p.name, _pairs(p / "frames", p / "masks")) for p in sorted(folder.iterdir()) if p.is_dir()]
    videos = [(video, frames) for video, frames in videos if len(frames) > 1]
    return VideoSet(name, tuple(videos), names) if videos else None


def _pairs(images: Path, masks: Path) -> tuple[Item, ...]:
    """Images that have a mask of the same stem, sorted by name."""
    if not (images.is_dir() and masks.is_dir()):
        return ()
    by_stem = {p.stem: p for p in masks.iterdir() if p.suffix.lower() == ".png"}
    found = [p for p in sorted(images.iterdir()) if p.suffix.lower() in _IMAGES and p.stem in by_stem]
    return tuple(Item(p.stem, p, by_stem[p.stem]) for p in found)


def _read_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdigit() and name:
            names[int(number)] = name
    return names
