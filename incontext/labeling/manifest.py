"""The journal of a label job: one line of JSON for each image that was done or failed, in the order of time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Recipe:
    """What a mask was made with. The same recipe and the same image give the same mask.

    Attributes:
        model: the model's fingerprint; empty for a mask that a person corrected.
        prompt: the examples' fingerprint; of a correction its own.
        settings: the fingerprint of what else decides about masks and scores.
    """

    model: str
    prompt: str
    settings: str


@dataclass(frozen=True)
class Row:
    """One line: what became of one image.

    Attributes:
        image: its path below the folder of images, with "/" between folders.
        status: "done", "failed", or "begun": a mask that stood is being replaced.
        recipe: what it was made with.
        sha256: of the image's file; None where it could not be read.
        bytes, modified: the file's size, and its time of change in nanoseconds; while both stay, the file need
            not be read to know that it is the same.
        mask: the mask's path below the output folder; None where it failed.
        formats: the fingerprint of what was asked of the other formats.
        size: (H, W).
        ids: class ids that occur.
        scores: class id -> the IoU that its mask can expect, 0..1; see `incontext.labeling.calibration`.
        score: of the whole image, 0..1: their mean, or, where nothing was found, how sure that is.
        wholeness: of the masks, 0..1; see `incontext.labeling.wholeness`. None where nothing was found.
        disagreement: of other views, 0..1; see `incontext.labeling.disagreement`. None where none was asked.
        seconds: from opening the image to its mask on disk.
        corrected: whether a person's mask was taken instead of the model's.
        error: why it failed.
    """

    image: str
    status: str
    recipe: Recipe
    sha256: str | None = None
    bytes: int | None = None
    modified: int | None = None
    mask: str | None = None
    formats: str | None = None
    size: tuple[int, int] | None = None
    ids: tuple[int, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)
    score: float | None = None
    wholeness: float | None = None
    disagreement: float | None = None
    seconds: float | None = None
    corrected: bool = False
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether there is a mask."""
        return self.status == "done"

    @property
    def begun(self) -> bool:
        """Whether the mask that stood is being replaced."""
        return self.status == "begun"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON knows it; the recipe's parts stand beside the rest."""
        values = asdict(self)
        return {**{"image": values.pop("image"), "status": values.pop("status")}, **values.pop("recipe"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The way back from `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is no row.
        """
        values = dict(values)
        recipe = Recipe(*(str(values.pop(name)) for name in ("model", "prompt", "settings")))
        scores = {int(id): float(score) for id, score in values.pop("scores", {}).items()}
        size = values.pop("size", None)
        ids = tuple(int(id) for id in values.pop("ids", ()))
        return cls(recipe=recipe, scores=scores, size=None if size is None else tuple(size), ids=ids, **values)


class Manifest:
    """The newest row of every image, and the file behind them.

    Several processes may add rows to one file: each is written at its end, in one piece. A line that was cut off
    (the disk was full, the power went) is passed over; its image counts as not done.

    Attributes:
        path: the file.
        rows: image -> its newest row, as of the last `refresh` or `add`.
        damaged: how many lines could not be read.
    """

    def __init__(self, path: Path) -> None:
        """Opens a manifest, or begins one.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.path = path
        self.rows: dict[str, Row] = {}
        self.damaged = 0
        self._offset = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        self._mend_end()
        self.refresh()

    def refresh(self) -> None:
        """Takes in what was added since, by whomever."""
        if os.fstat(self._file).st_size <= self._offset:
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # someone is writing it
                self._offset += len(line)
                if line.strip():
                    self._take(line)

    def add(self, row: Row) -> None:
        """Writes a row at the end.

        Raises:
            OSError: the disk is full, or gone.
        """
        line = json.dumps(row.to_dict(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._file, line)  # O_APPEND: one write is one piece, whoever else writes
        if written != len(line):
            raise OSError(28, "No space left on device", str(self.path))
        self.rows[row.image] = row

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend_end(self) -> None:
        """Ends a last line that was cut off, so that the next row does not continue it."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        if end:
            os.lseek(self._file, end - 1, os.SEEK_SET)
            if os.read(self._file, 1) != b"\n":
                os.write(self._file, b"\n")

    def _take(self, line: bytes) -> None:
        try:
            row = Row.from_dict(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            self.damaged += 1
        else:
            self.rows[row.image] = row
