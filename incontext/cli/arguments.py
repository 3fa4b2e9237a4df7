"""How the texts of arguments are read. What they raise, argparse turns into a message."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from incontext.clicks import Click


def number_list(text: str, least: int = 1) -> tuple[int, ...]:
    """Reads whole numbers between commas.

    Raises:
        argparse.ArgumentTypeError: one is no whole number, or below `least`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        raise argparse.ArgumentTypeError(f"expected whole numbers from {least} on, such as 1,4,8; got {text!r}")
    return numbers


def positive(text: str) -> int:
    """Reads one whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def word_list(text: str) -> list[str]:
    """Reads words between commas; empty ones are dropped."""
    return [word for word in (part.strip() for part in text.split(",")) if word]


def output_folder(text: str) -> Path:
    """Reads where to write. The folder need not be there yet.

    Raises:
        argparse.ArgumentTypeError: it is a file, or nothing may be written there.
    """
    folder = Path(text).expanduser()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder to write to, got {text!r}, and {there} is a file")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a folder that can be written to, got {text!r}; choose another")
    return folder


def output_file(text: str) -> Path:
    """Reads a file to write. Its folder need not be there yet.

    Raises:
        argparse.ArgumentTypeError: it is a folder, or nothing may be written there.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file to write, got the folder {text!r}; add a name")
    output_folder(str(path.parent))
    return path


def tile_side(text: str) -> int | str | None:
    """Reads a number of pixels, "auto", "thin", or "none", which is None.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if text == "none":
        return None
    if text in ("auto", "thin"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of pixels, 'auto', 'thin' or 'none', got {text!r}"
        ) from None


def class_names(text: str) -> dict[int, str]:
    """Reads the names of ids, "1=NAME,2=NAME".

    Raises:
        argparse.ArgumentTypeError: an id is no whole number from 1 on, or has no name.
    """
    names = {}
    for part in text.split(","):
        id, _, name = (piece.strip() for piece in part.partition("="))
        if not (id.isascii() and id.isdigit() and int(id) > 0 and name):
            raise argparse.ArgumentTypeError(f"expected ids with their names such as 1=cell,2=nucleus, got {part!r}")
        names[int(id)] = name
    return names


def click(text: str) -> Click:
    """Reads a click, "X,Y" or "X,Y,ID".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from incontext.clicks import Click

    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expected a point such as 120,80 or 120,80,2 (x, y, id), got {text!r}")
    return Click(*map(int, parts))
