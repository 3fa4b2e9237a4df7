"""Class ids and names of a dataset, also for formats that know their classes by name or by rank only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from incontext.export.documents import parsing, read_json, write_json
from incontext.export.labelled import LabelledImage

CLASS_IDS = "class_ids.json"
"""The file beside such a dataset that says which id each name has: {"name": id}."""


class ClassTable:
    """The classes of a dataset that is being written: those announced, and others as images bring them.

    Args:
        names: class id -> name.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = {int(id): names[id] for id in sorted(names)}

    def name(self, item: LabelledImage, id: int) -> str:
        """An image's class, from now on in the table."""
        return self._names.setdefault(id, item.name(id))

    def rank(self, item: LabelledImage, id: int) -> int:
        """The place of an image's class in the table, from 0; it stays when others join."""
        self.name(item, id)
        return list(self._names).index(id)

    def items(self) -> list[tuple[int, str]]:
        """(id, name) by rank."""
        return list(self._names.items())

    def write_ids(self, root: str | os.PathLike) -> None:
        """Writes which id each name has, for formats that don't say.

        Raises:
            ValueError: two ids have one name.
        """
        ids: dict[str, int] = {}
        for id, name in self._names.items():
            if ids.setdefault(name, id) != id:
                raise ValueError(f"names: expected a name for each class, got {name!r} for ids {ids[name]} and {id}")
        write_json(Path(root) / CLASS_IDS, ids)


def number_names(names: Iterable[str], root: str | os.PathLike) -> dict[str, int]:
    """Gives class names their ids: those of the folder's `CLASS_IDS`, else the next free ones.

    Args:
        names: in the order in which new ids are given.
        root: the dataset's folder, or a file in it.

    Returns:
        name -> id, ids >= 1.

    Raises:
        FormatError: `CLASS_IDS` is broken.
    """
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    ids: dict[str, int] = {}
    if (folder / CLASS_IDS).is_file():
        with parsing(folder / CLASS_IDS, "names with their ids such as {'cell': 1}"):
            ids = {str(name): int(id) for name, id in read_json(folder / CLASS_IDS).items()}
            if min(ids.values(), default=1) < 1 or len(set(ids.values())) < len(ids):
                raise ValueError(f"ids that are not distinct and above 0: {sorted(ids.values())[:8]}")
    highest = max(ids.values(), default=0)
    for name in names:
        if name not in ids:
            highest += 1
            ids[name] = highest
    return ids
