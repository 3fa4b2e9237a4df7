"""Which label file belongs to which image, both ways."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

from incontext.labelled_folders import SUFFIXES


def label_file(file_name: str, suffix: str) -> str:
    """Where an image's labels are: its path with another suffix; folders stay, so equal stems don't collide."""
    return str(PurePosixPath(file_name).with_suffix(suffix))


class LabelFiles:
    """Gives each image of a dataset a label file of its own, even where names differ in their suffix only.

    The first is called as `label_file` says, others "NAME-SUFFIX". Upper and lower case count as the same, as on
    many disks.

    Args:
        suffix: of the label files, such as ".png".
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._taken: dict[str, str] = {}  # label file in small letters -> image

    def claim(self, file_name: str) -> str:
        """The label file of one image, relative to the folder of labels; the same whenever it is asked for."""
        path, number = PurePosixPath(file_name), 1
        name = label_file(file_name, self._suffix)
        while self._taken.setdefault(name.casefold(), file_name) != file_name:
            tail = f"-{path.suffix[1:]}" if number == 1 else f"-{path.suffix[1:]}-{number}"
            name = label_file(str(path.with_name(f"{path.stem}{tail}.x")), self._suffix)
            number += 1
        return name


def find_image(folder: str | os.PathLike, stem: str) -> str | None:
    """The image that a label file belongs to, relative to the folder of images; None where there is none.

    Args:
        folder: of all images.
        stem: the label file's path below the folder of labels, without suffix, with "/".
    """
    path = PurePosixPath(stem)
    place = Path(folder, path.parent)
    for suffix in SUFFIXES:
        names = _names(place)
        for name in (path.name + suffix, path.name + suffix.upper()):
            if name in names:
                return str(path.with_name(name))
    return None


def relative_stem(path: Path, folder: Path) -> str:
    """A label file's path below its folder, without suffix, with "/"."""
    return path.relative_to(folder).with_suffix("").as_posix()


@lru_cache(maxsize=64)
def _names(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
