"""Rows of text as an aligned table, Markdown or CSV, and numbers as cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from incontext.atomic import replacing

Rows = Sequence[Sequence[str]]
"""The header first; all rows of one length."""


def align(rows: Rows, *, text: int = 1, means: int = 0) -> str:
    """A table for a terminal.

    Args:
        rows: the header first.
        text: how many columns are text, flush left; the others are numbers, flush right.
        means: how many rows at the end a rule sets apart.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < text else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line(row) for row in rows[1:]]
    if means:
        body.insert(len(body) - means, rule)
    return "\n".join([line(rows[0]), rule, *body])


def markdown(rows: Rows, *, text: int = 1) -> str:
    """A table for a model card; arguments as for `align`."""
    marks = [*["---"] * text, *["---:"] * (len(rows[0]) - text)]
    return "".join("| " + " | ".join(row) + " |\n" for row in [rows[0], marks, *rows[1:]])


def comma_separated(rows: Rows) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_texts(folder: Path, contents: dict[str, str]) -> list[Path]:
    """Writes text files, each whole or not at all: file name -> text. Returns their paths."""
    for name, text in contents.items():
        with replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def percent(value: float) -> str:
    """0..1 -> "57.3"; nan -> "-"."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def number(value: float) -> float | None:
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else round(float(value), 5)
