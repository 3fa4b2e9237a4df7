"""Where packs are: by path, or by name among those that ship with the project or were pulled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from incontext.pack.pack_file import SUFFIX, read_pack
from incontext.pack.prompt_pack import PackError, PromptPack

SHIPPED = Path(__file__).resolve().parents[2] / "prompts"
"""Beside the package in a checkout; an installed package has none."""


def pulled_folder() -> Path:
    """Where `incontext packs pull` puts packs, unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "incontext" / "prompts"


def open_pack(name_or_path: str | Path) -> PromptPack:
    """Reads a pack by path, or by name.

    Args:
        name_or_path: a file, or the name of a pack in `SHIPPED` or `pulled_folder()`.

    Raises:
        PackError: there is none, or it cannot be used.
    """
    return read_pack(locate_pack(name_or_path))


def locate_pack(name_or_path: str | Path) -> Path:
    """Finds a pack's file.

    Raises:
        PackError: there is none of this name.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file() or path.suffix == SUFFIX or path.name != str(name_or_path):
        return path
    for folder in (SHIPPED, pulled_folder()):
        if (folder / f"{path.name}{SUFFIX}").is_file():
            return folder / f"{path.name}{SUFFIX}"
    known = sorted({each.stem for each in pack_files()})
    raise PackError(f"no prompt pack {str(name_or_path)!r}: expected a file, or one of {known or 'none that is here'}")


def pack_files(folders: tuple[Path, ...] | None = None) -> Iterator[Path]:
    """The files of all packs in some folders; by default those that have a name. Sorted within each folder."""
    for folder in (SHIPPED, pulled_folder()) if folders is None else folders:
        yield from sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
