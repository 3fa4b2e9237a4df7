"""The record of a tracking job: a line for each frame that is done, from which the job goes on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from incontext.atomic import replacing
from incontext.export.documents import write_readable_json


@dataclass(frozen=True)
class Row:
    """One frame, and the tracker's state after it.

    Attributes:
        frame: its number.
        leg: 0 on the way forwards, 1 on the way backwards.
        error: why there is no result, or None. The state is then that of the frame before.
        followed: the ids that are followed.
        certainty: id -> 0..1, for those that are seen.
        echo: how well the frame leads back to a painted one, where it was asked; see `incontext.video.memory.Moment`.
        passes: the ids of each pass of the model.
        memory: (frame, whether the user painted it, its ids) of each remembered frame.
    """

    frame: int
    leg: int
    error: str | None = None
    followed: tuple[int, ...] = ()
    certainty: Mapping[int, float] | None = None
    echo: float | None = None
    passes: tuple[tuple[int, ...], ...] = ()
    memory: tuple[tuple[int, bool, tuple[int, ...]], ...] = ()


class Journal:
    """`track.json`, what a job is, and `frames.jsonl`, what of it is done.

    Attributes:
        rows: of all frames that are done, in the order of the work.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], is_whole: Callable[[Row], bool]) -> None:
        """Starts a job, or goes on with one.

        Args:
            folder: where the job writes.
            job: all that decides its results, as JSON can hold it.
            is_whole: whether the result of a row is still there. From the first that is not, nothing counts as done.

        Raises:
            ValueError: the folder holds another job.
        """
        self.rows: list[Row] = []
        self._path, head = folder / "frames.jsonl", folder / "track.json"
        self._job = json.loads(json.dumps(job))
        started = head.exists()
        if started and not self._read() and not any((folder / "masks").glob("*")):
            self.write_head({})  # nothing came of it, so that it may have been set up wrongly
        elif started:
            try:
                before = json.loads(head.read_text(encoding="utf-8")).get("job", {})
            except (ValueError, AttributeError) as error:
                raise ValueError(
                    f"{head}: expected the record of an earlier run, but it is damaged ({error}); choose another "
                    "folder with -o, or delete that one"
                ) from error
            before = {"weights": self._job.get("weights"), **before}  # older records do not tell them
            differ = sorted(key for key in {*before, *self._job} if before.get(key) != self._job.get(key))
            if differ:
                key, was, given = differ[0], before.get(differ[0]), self._job.get(differ[0])
                plain = key != "weights" and not isinstance(given, (dict, list))  # digests tell people nothing
                told = f": its {key} is {was!r}, not {given!r}" if plain else f", with other {key}"
                raise ValueError(f"{folder} holds another job{told}; choose another folder with -o, or delete that one")
            self.rows = list(takewhile(is_whole, self._read()))
        elif self._path.exists() or (folder / "masks").exists():
            raise ValueError(
                f"{folder} holds masks, but no track.json of an earlier run; choose another folder with -o"
            )
        else:
            self.write_head({})
        with replacing(self._path) as draft:  # without what is damaged
            draft.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the job

    def write_head(self, summary: Mapping[str, Any]) -> None:
        """Writes `track.json`: the job, and what has come out of it so far."""
        write_readable_json(self._path.with_name("track.json"), {"job": self._job, **summary})

    def add(self, row: Row) -> None:
        """Notes that a frame is done. Its mask is written before."""
        self._file.write(_line(row))
        self._file.flush()
        self.rows.append(row)

    def close(self) -> None:
        """Lets go of the file; all lines are on the disk then."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _read(self) -> list[Row]:
        """The rows before the first that is damaged or cut off, as the last ones may be after a power cut."""
        rows = []
        if self._path.exists():
            for line in self._path.read_bytes().splitlines(keepends=True):
                try:
                    rows.append(_row(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
        return rows


def _line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"


def _row(fields: dict[str, Any]) -> Row:
    certainty = fields["certainty"]
    return Row(
        frame=fields["frame"],
        leg=fields["leg"],
        error=fields["error"],
        followed=tuple(fields["followed"]),
        certainty=None if certainty is None else {int(id): value for id, value in certainty.items()},
        echo=fields["echo"],
        passes=tuple(map(tuple, fields["passes"])),
        memory=tuple((index, given, tuple(ids)) for index, given, ids in fields["memory"]),
    )
