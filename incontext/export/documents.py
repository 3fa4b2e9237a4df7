"""The files that datasets are written in: JSON, XML and text, whole or not at all, and one error where they break."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from incontext.atomic import replacing


class FormatError(ValueError):
    """A file is not what its format says. The message names it, says what was expected, and what to do."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 with "\\n" at line ends. Whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, document: Any) -> None:
    """Writes JSON in ASCII, since some programs read files in their machine's own encoding."""
    with replacing(path) as draft, draft.open("w", encoding="ascii", newline="\n") as file:
        json.dump(document, file, default=_plain)


def write_readable_json(path: str | os.PathLike, document: Any) -> None:
    """Writes JSON for people too: indented, in UTF-8. What UTF-8 cannot say, as some file names, is escaped."""
    with replacing(path) as draft:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_xml(path: str | os.PathLike, root: ElementTree.Element) -> None:
    """Writes indented XML."""
    ElementTree.indent(root)
    write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n")


def read_text(path: str | os.PathLike) -> str:
    """Reads UTF-8, with or without a byte order mark.

    Raises:
        FormatError: the file is missing or isn't text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FormatError(f"{path}: expected a file of labels, but it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected text in UTF-8, got other bytes; is it another kind of file?") from error


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON.

    Raises:
        FormatError: the file is missing, cut, or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: expected JSON, got a damaged or other file ({error}); export it again") from error


def read_xml(path: str | os.PathLike) -> ElementTree.Element:
    """Reads XML.

    Raises:
        FormatError: the file is missing, cut, or no XML.
    """
    try:
        return ElementTree.fromstring(read_text(path).encode())
    except ElementTree.ParseError as error:
        raise FormatError(f"{path}: expected XML, got a damaged or other file ({error}); export it again") from error


@contextmanager
def parsing(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turns whatever a document of the wrong form causes into one `FormatError` that names its file.

    Args:
        path: the file.
        what: what it should hold, for the message.
    """
    try:
        yield
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{path}: expected {what}, got something else ({reason})") from error


def find_document(source: str | os.PathLike, name: str) -> Path:
    """The document itself where `source` is a file, or the one called `name` in the folder `source`.

    Raises:
        FormatError: there is none.
    """
    path = Path(source)
    found = path / name if path.is_dir() else path
    if not found.is_file():
        raise FormatError(f"{source}: expected {name} or a folder that holds it, found none; check the path")
    return found


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays, for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
