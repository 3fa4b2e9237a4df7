"""What a job was told, in job.json: for people, and for the next run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from incontext.export.documents import write_readable_json
from incontext.labeling.manifest import Recipe

FILE = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """What the masks of the current recipe were made with, in words.

    Attributes:
        recipe: the fingerprints that rows of the manifest repeat.
        settings: what decides about masks.
        names: class id -> name.
        packs: names of the prompt packs.
        examples: how many.
        temperature: of the confidence; see `incontext.labeling.calibration`.
    """

    recipe: Recipe
    settings: Mapping[str, Any]
    names: Mapping[int, str]
    packs: Sequence[str]
    examples: int
    temperature: float

    def write(self, out: Path) -> None:
        """Writes OUT/job.json, whole or not at all."""
        write_readable_json(out / FILE, asdict(self))


def recorded_names(out: Path) -> dict[int, str]:
    """Class id -> name, as of the last run; empty before the first."""
    try:
        return {int(id): str(name) for id, name in _read(out)["names"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def recorded_temperature(out: Path, recipe: Recipe) -> float | None:
    """The temperature that an earlier run fitted for the same recipe: what is resumed must not be fitted anew."""
    try:
        record = _read(out)
        return float(record["temperature"]) if Recipe(**record["recipe"]) == recipe else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read(out: Path) -> dict[str, Any]:
    return json.loads((out / FILE).read_text(encoding="utf-8"))
