"""Folders of images and masks: which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

from incontext.export.documents import FormatError, parsing, read_json, read_text
from incontext.labelled_folders import SUFFIXES

_TAILS = ("_mask", "-mask", ".mask")
"""What the stem of a mask may have in addition to its image's."""

_MASKS = ("masks", "masks_inst")
"""Folders that hold no images."""


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs images with masks by their stems, in subfolders too.

    Either folder/images/a.jpg with folder/masks/a.png, or side by side: a.jpg with a.png, or with a_mask.png.

    Returns:
        (image, mask), sorted by image.

    Raises:
        FormatError: there are none, or an image or a mask is left over.
    """
    tops = {path.relative_to(folder).parts[0] for path in _files(folder)}
    if "masks" in tops and tops.issubset(_MASKS):
        raise FormatError(
            f"{folder}: expected images beside the masks in {folder / 'masks'}, found none; move or link them to "
            f"{folder / 'images'}"
        )
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        images, masks = _by_stem(folder / "images"), _by_stem(folder / "masks", tails=True)
    else:
        images, masks = _side_by_side(folder)
    for these, others, what in ((images, masks, "a mask"), (masks, images, "an image")):
        alone = [str(these[stem].relative_to(folder)) for stem in sorted(these) if stem not in others]
        if alone:
            listed = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
            raise FormatError(
                f"{folder}: expected {what} for every {'image' if these is images else 'mask'}, found none for "
                f"{listed}; name masks like their images (a.jpg: a.png, a_mask.png or masks/a.png), or move these away"
            )
    if not images:
        raise FormatError(f"{folder}: expected images with masks such as a.jpg and a.png, found none; check the path")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def holds_masks(folder: Path) -> bool:
    """Whether a folder has masks in masks/, or beside images."""
    return (folder / "masks").is_dir() or bool(_side_by_side(folder)[1])


def read_class_names(folder: Path) -> dict[int, str]:
    """Class id -> name, of classes.txt or classes.json; empty where there is neither.

    classes.txt has a line "ID NAME" for each class; or a name in each line, counted from 1 (from 0 if the first is
    "background"). classes.json is {"1": "cell"}, {"cell": 1} or ["cell", ...].

    Raises:
        FormatError: a file is broken, or an id occurs twice.
    """
    text, document = folder / "classes.txt", folder / "classes.json"
    if text.is_file():
        with parsing(text, "a line 'ID NAME' for each class"):
            lines = [line.strip() for line in read_text(text).splitlines() if line.strip()]
            pairs = [line.split(maxsplit=1) for line in lines]
            if pairs and all(len(pair) == 2 and pair[0].isdigit() for pair in pairs):
                return _distinct((int(id), name) for id, name in pairs)
            return _counted(lines)
    if document.is_file():
        with parsing(document, "names such as {'1': 'cell'}"):
            names = read_json(document)
            if isinstance(names, list):
                return _counted([str(name) for name in names])
            if all(str(key).isdigit() for key in names):
                return _distinct((int(id), str(name)) for id, name in names.items())
            return _distinct((int(id), str(name)) for name, id in names.items())
    return {}


def _side_by_side(folder: Path) -> tuple[dict[PurePath, Path], dict[PurePath, Path]]:
    """Images and masks of one folder by stem: a file is a mask if its name says so, or if it is a PNG beside an
    image of the same stem in another format."""
    files = _files(folder)
    named = {path for path in files if path.stem.lower().endswith(_TAILS)}
    masks = {_stem(path, folder, tails=True): path for path in sorted(named)}
    images: dict[PurePath, Path] = {}
    for path in (path for path in files if path not in named):
        stem = _stem(path, folder)
        if stem not in images:
            images[stem] = path
        elif stem not in masks and (images[stem].suffix.lower() == ".png") != (path.suffix.lower() == ".png"):
            masks[stem], images[stem] = sorted((images[stem], path), key=lambda one: one.suffix.lower() != ".png")
        else:
            raise FormatError(_twice(images[stem], path))
    return images, masks


def _by_stem(folder: Path, tails: bool = False) -> dict[PurePath, Path]:
    found: dict[PurePath, Path] = {}
    for path in _files(folder):
        stem = _stem(path, folder, tails)
        if stem in found:
            raise FormatError(_twice(found[stem], path))
        found[stem] = path
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _stem(path: Path, folder: Path, tails: bool = False) -> PurePath:
    stem = path.relative_to(folder).with_suffix("")
    if tails and stem.name.lower().endswith(_TAILS) and len(stem.name) > len(_TAILS[0]):
        return stem.with_name(stem.name[: -len(_TAILS[0])])
    return stem


def _twice(one: Path, other: Path) -> str:
    return f"{other}: expected one image and one mask of this name, found {one.name} too; rename or remove one"


def _counted(names: list[str]) -> dict[int, str]:
    first = 0 if names and names[0].lower().strip("_") == "background" else 1
    return {id: name for id, name in enumerate(names, start=first) if id}


def _distinct(pairs: Iterable[tuple[int, str]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for id, name in pairs:
        if names.setdefault(id, name) != name:
            raise ValueError(f"id {id} is both {names[id]!r} and {name!r}")
    return {id: name for id, name in names.items() if id > 0}
