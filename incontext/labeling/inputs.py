"""Which images to work on: files, folders, patterns and lists, and what their results are called."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

_log = logging.getLogger(__name__)

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"))
"""What counts as an image in folders and patterns. Files that are named may have any suffix."""


@dataclass(frozen=True)
class Input:
    """An image to work on.

    Attributes:
        path: as the user wrote it, or below the folder that the user wrote.
        name: what its results are called: a relative path without suffix, different for every input.
        start: the folder that the user wrote, or that holds the file that the user wrote.
    """

    path: Path
    name: PurePath
    start: Path

    @property
    def file_name(self) -> str:
        """What a dataset calls the image: its name with the file's own last part, and "/" between folders."""
        return self.name.with_name(self.path.name).as_posix()


def find_images(
    arguments: Sequence[str], *, skip: Collection[Path] = (), skip_folders: Collection[Path] = ()
) -> list[Input]:
    """Expands arguments to images.

    A folder gives all images in it and its subfolders, sorted; a pattern (`*`, `?`, `[...]`, `**` for
    subfolders) what it matches, unless a file has just that name; a list (a file that ends in .txt) what its
    lines name, relative to the list's folder. Hidden files and folders are left out. An image that is found
    twice counts once. A file that is named but missing is kept, unless all are: opening it will say so. Files whose
    names are not UTF-8, and folders that cannot be looked into, are left out with a warning.

    Args:
        arguments: paths, patterns and lists, as on the command line.
        skip: files that folders and patterns leave out.
        skip_folders: folders whose content folders and patterns leave out.

    Raises:
        ValueError: if nothing is found.
    """
    skip = {path.resolve() for path in skip}
    skip_folders = {path.resolve() for path in skip_folders}

    def wanted(path: Path) -> bool:
        real = path.resolve()
        return (
            path.suffix.lower() in SUFFIXES
            and not path.name.startswith(".")
            and real not in skip
            and not skip_folders.intersection(real.parents)
        )

    found: dict[Path, tuple[Path, Path]] = {}  # real path -> path, the folder that its name starts from
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            pairs = [(file, path) for file in _walk(path) if wanted(file)]
        elif glob.has_magic(argument) and not path.exists():
            start = _fixed_part(path)
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            pairs = [(match, start) for match in matches if match.is_file() and wanted(match)]
        elif path.suffix.lower() == ".txt" and path.is_file():
            pairs = [(file, path.parent if path.parent in file.parents else file.parent) for file in _read_list(path)]
        else:
            pairs = [(path, path.parent)]
        for file, start in pairs:
            found.setdefault(file.resolve(), (file, start))
    if not any(file.exists() for file, _ in found.values()):
        looked = ", ".join(map(str, arguments)) or "nothing"
        raise ValueError(
            f"expected at least one image, found none in {looked}; give image files, folders that hold some "
            f"({', '.join(sorted(SUFFIXES))}), patterns such as 'photos/*.jpg', or a .txt file that lists some"
        )
    files = [pair for pair in found.values() if _is_text(pair[0])]
    if not files:
        raise ValueError("expected images whose names are UTF-8, got none; rename them")
    names = result_names([file for file, _ in files], [start for _, start in files])
    return [Input(file, name, start) for (file, start), name in zip(files, names, strict=True)]


def result_names(paths: Sequence[Path], starts: Sequence[Path]) -> list[PurePath]:
    """What results are called: each path below its start, without suffix.

    Where two would be the same, they keep their folders from the last one that all paths share; where that
    does not help, their suffixes ("x-jpg", "x-png"), and then numbers. Upper and lower case count as the
    same, as on many disks.

    Args:
        paths: different files.
        starts: for each path the folder that its name starts from.
    """
    real = [Path(os.path.abspath(path)) for path in paths]
    shared = _shared_folder(real)
    names = [
        PurePath(os.path.relpath(path, os.path.abspath(start))).with_suffix("")
        for path, start in zip(real, starts, strict=True)
    ]
    names = _rename_clashes(names, lambda k: PurePath(*real[k].parts[len(shared.parts) :]).with_suffix(""))
    names = _rename_clashes(names, lambda k: names[k].with_name(f"{names[k].name}-{paths[k].suffix[1:].lower()}"))
    taken: set[str] = set()
    for k, name in enumerate(names):
        number = 1
        while _key(names[k]) in taken:
            number += 1
            names[k] = name.with_name(f"{name.name}-{number}")
        taken.add(_key(names[k]))
    return names


def _rename_clashes(names: list[PurePath], rename: Callable[[int], PurePath]) -> list[PurePath]:
    counts = Counter(map(_key, names))
    return [rename(k) if counts[_key(name)] > 1 else name for k, name in enumerate(names)]


def _key(name: PurePath) -> str:
    return str(name).casefold()


def _shared_folder(paths: Sequence[Path]) -> Path:
    """The innermost folder that holds all of the absolute paths, or their root."""
    shared = paths[0].parent
    while any(shared not in path.parents for path in paths) and shared != shared.parent:
        shared = shared.parent
    return shared


def _walk(folder: Path) -> Iterable[Path]:
    def tell(error: OSError) -> None:
        _log.warning("%s: cannot be looked into, so it is left out (%s)", error.filename, error.strerror)

    for place, folders, files in os.walk(folder, onerror=tell):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield Path(place, name)


def _is_text(path: Path) -> bool:
    """Whether a name can be written down; some disks hold others."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        _log.warning("%r: its name is not UTF-8, so it is left out; rename it", os.fsencode(path))
        return False
    return True


def _read_list(path: Path) -> list[Path]:
    """The paths in a file of one on each line; empty lines and those that begin with # say nothing."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected paths in UTF-8, got other bytes ({error}); save it anew") from error
    return [Path(os.path.normpath(path.parent / line)) for line in lines if line and not line.startswith("#")]


def _fixed_part(pattern: Path) -> Path:
    """The folder of a pattern before its first wildcard."""
    parts = []
    for part in pattern.parent.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
