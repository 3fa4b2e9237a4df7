"""Which label file belongs to which image, both ways."""

from __future__ import annotations

import os
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
        self._kept: dict[str, str] = {}  # image -> label file

    def keep(self, file_name: str, name: str) -> None:
        """Says that an image has a label file already, whatever it is called; where it has two, the first counts."""
        if file_name not in self._kept and self._taken.setdefault(name.casefold(), file_name) == file_name:
            self._kept[file_name] = name

    def claim(self, file_name: str) -> str:
        """The label file of one image, relative to the folder of labels; the same whenever it is asked for."""
        path, number = PurePosixPath(file_name), 1
        name = self._kept.get(file_name, label_file(file_name, self._suffix))
        while self._taken.setdefault(name.casefold(), file_name) != file_name:
            tail = f"-{path.suffix[1:]}" if number == 1 else f"-{path.suffix[1:]}-{number}"
            name = label_file(str(path.with_name(f"{path.stem}{tail}.x")), self._suffix)
            number += 1
        return name


class ImageFinder:
    """Finds the images that label files belong to. It lists a folder once, so make a new one for each read.

    Args:
        folder: of all images.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self._folder = Path(folder)
        self._listings: dict[Path, frozenset[str]] = {}

    def find(self, stem: str) -> str | None:
        """An image, relative to the folder; None where there is none.

        Args:
            stem: the label file's path below the folder of labels, without suffix, with "/".
        """
        path = PurePosixPath(stem)
        place = self._folder / path.parent
        if place not in self._listings:
            self._listings[place] = frozenset(os.listdir(place)) if place.is_dir() else frozenset()
        for suffix in SUFFIXES:
            for name in (path.name + suffix, path.name + suffix.upper()):
                if name in self._listings[place]:
                    return str(path.with_name(name))
        return None


def find_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a suffix such as ".json" in any depth, sorted; without hidden ones, which killed runs leave too."""
    return sorted(path for path in folder.rglob(f"*{suffix}") if not path.name.startswith("."))


def relative_stem(path: Path, folder: Path) -> str:
    """A label file's path below its folder, without suffix, with "/"."""
    return path.relative_to(folder).with_suffix("").as_posix()
