"""A folder of pictures as a video."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from incontext.image import open_image
from incontext.picture_file import ImageError
from incontext.video.frames import FrameError, Frames, VideoError

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"))

RATE = 24.0
"""Frames a second, which a folder does not say."""


class FolderFrames(Frames):
    """The pictures in a folder, in the order of their names; numbers in names count as numbers.

    Attributes:
        paths: the files.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            VideoError: there is no picture, none can be read, or the results of two would have one name.
        """
        self.name, self.rate = str(folder), RATE
        found = (path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        self.paths = sorted((path for path in found if not path.name.startswith(".")), key=_order)
        if not self.paths:
            raise VideoError(
                f"{folder}: expected a folder of frames ({', '.join(sorted(_SUFFIXES))}), found none in it"
            )
        stems: dict[str, Path] = {}  # in small letters, which many disks take for the same
        for path in self.paths:
            other = stems.setdefault(path.stem.casefold(), path)
            if other != path:
                raise VideoError(
                    f"{folder}: expected frames whose names differ before the suffix, as their masks' do, got "
                    f"{other.name} and {path.name}; rename one, or move it out if it is no frame"
                )
        self.size = (0, 0)
        for index in range(len(self)):
            try:
                self.size = self._load(index).shape[:2]
                return
            except FrameError as error:
                last = error
        raise VideoError(f"{folder}: none of its {len(self)} frames can be read; the last one: {last}")

    def __len__(self) -> int:
        return len(self.paths)

    def time(self, index: int) -> float:
        """See `Frames.time`."""
        return index / self.rate

    def label(self, index: int) -> str:
        """The file's name, without suffix."""
        return self.paths[index].stem

    def place(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])

    def _load(self, index: int) -> np.ndarray:
        try:
            return open_image(self.paths[index])
        except (ImageError, OSError) as error:
            raise FrameError(index, str(error)) from error


def _order(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
