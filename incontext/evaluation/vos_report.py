"""Scores of tracked videos as tables and files: one row for each run, such as a memory size and a policy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from incontext.evaluation import tables
from incontext.evaluation.vos_scores import ObjectScore, Summary, by_video, seen_and_unseen, summarise

_MEASURES = ["J&F", "J", "J recall", "J decay", "F", "F recall", "F decay"]


@dataclass(frozen=True)
class VosRun:
    """One way of tracking on one data set.

    Attributes:
        name: such as "selective 8".
        scores: one for each object.
        frames: how many were tracked; 0 where masks made elsewhere were scored.
        seconds: what they took.
        failures: video -> why it was not scored.
    """

    name: str
    scores: tuple[ObjectScore, ...]
    frames: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Frames per second; nan where nothing was tracked."""
        return self.frames / self.seconds if self.seconds else math.nan


def compare(runs: Sequence[VosRun]) -> list[list[str]]:
    """A row for each run: percent, means over objects."""
    rows = [["run", "videos", "objects", *_MEASURES, "frames/s"]]
    for run in runs:
        videos = len({score.video for score in run.scores})
        rate = "-" if math.isnan(run.rate) else f"{run.rate:.2f}"
        rows.append([run.name, str(videos), str(len(run.scores)), *_cells(summarise(run.scores)), rate])
    return rows


def per_video(run: VosRun) -> list[list[str]]:
    """A row for each video, their objects' means; the mean over all objects last."""
    rows = [["video", "objects", *_MEASURES]]
    for name, summary in by_video(run.scores).items():
        rows.append([name, str(summary.objects), *_cells(summary)])
    return [*rows, ["all objects", str(len(run.scores)), *_cells(summarise(run.scores))]]


def per_object(run: VosRun) -> list[list[str]]:
    """A row for each object, exact numbers in 0..1."""
    rows = [["video", "object", "category", "frames", *_MEASURES]]
    for s in run.scores:
        values = (s.jf, *dataclasses.astuple(s.j), *dataclasses.astuple(s.f))
        rows.append([s.video, str(s.id), s.category, str(s.frames), *(f"{v:.5f}" for v in values)])
    return rows


def overall(run: VosRun, seen: Collection[str]) -> dict[str, float]:
    """YouTube-VOS's numbers, 0..1: G, and J and F of seen and unseen categories; nan where there are none."""
    halves = seen_and_unseen(run.scores, seen)
    values = {f"{m} {half}": getattr(halves[half], m.lower()).mean for half in halves for m in ("J", "F")}
    return {"G": sum(values.values()) / len(values), **values}


def save(runs: Sequence[VosRun], folder: Path, settings: dict[str, object]) -> list[Path]:
    """Writes results.json, results.md, and a table of objects and of videos for each run.

    Returns:
        The paths. Each file is replaced as a whole or not at all.
    """
    whole = {"settings": settings, "runs": [_plain(run) for run in runs]}
    contents = {"results.json": json.dumps(whole, indent=1) + "\n", "results.md": tables.markdown(compare(runs))}
    for run in runs:
        stem = run.name.replace(" ", "-")
        contents[f"{stem}-objects.csv"] = tables.comma_separated(per_object(run))
        contents[f"{stem}-videos.csv"] = tables.comma_separated(per_video(run))
    return tables.write_texts(folder, contents)


def _cells(summary: Summary) -> list[str]:
    values = (summary.jf, *dataclasses.astuple(summary.j), *dataclasses.astuple(summary.f))
    return [tables.percent(value) for value in values]


def _plain(run: VosRun) -> dict[str, object]:
    total = summarise(run.scores)
    measures = {"jf": total.jf, **{f"j_{k}": v for k, v in dataclasses.asdict(total.j).items()}}
    measures.update({f"f_{k}": v for k, v in dataclasses.asdict(total.f).items()})
    return {
        "name": run.name,
        "objects": total.objects,
        **{name: tables.number(value) for name, value in measures.items()},
        "videos": {name: tables.number(summary.jf) for name, summary in by_video(run.scores).items()},
        "frames": run.frames,
        "seconds": tables.number(run.seconds),
        "failures": run.failures,
    }
