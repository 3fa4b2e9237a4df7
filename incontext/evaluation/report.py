"""Scores as an aligned table, Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from incontext.evaluation import tables
from incontext.evaluation.folders import Report, Score

_ALIKE = ("same_pixels", "same_masks")
_PROTOCOLS = {
    "across": "other images",
    "within": "other half",
    "video": "first frame",
    "scenes": "other scenes",
}


def table(report: Report) -> list[list[str]]:
    """Rows of text, a header first and the mean over sets last: mIoU in percent, "-" where there is none."""
    columns = _columns(report)
    rows = [["set", "examples from", "queries", *(f"{method} {shots}" for method, shots in columns)]]
    by_place: dict[str, dict[tuple[str, int], Score]] = {}
    for s in report.scores:
        by_place.setdefault(s.set, {})[s.method, s.shots] = s
    for name, scores in by_place.items():
        first = next(iter(scores.values()))
        cells = [tables.percent(scores[c].miou if c in scores else math.nan) for c in columns]
        rows.append([name, _PROTOCOLS.get(first.protocol, first.protocol), str(first.queries), *cells])
    protocols = [next(iter(scores.values())).protocol for scores in by_place.values()]
    if protocols.count("across") > 1 and set(protocols) != {"across"}:
        means = (tables.percent(report.mean(*c, protocol="across")) for c in columns)
        rows.append(["mean", _PROTOCOLS["across"], "", *means])
    if len(by_place) > 1:
        rows.append(["mean", "all sets", "", *(tables.percent(report.mean(*c)) for c in columns)])
    return rows


def _columns(report: Report) -> list[tuple[str, int]]:
    """(method, shots), methods in their first order and shots rising."""
    methods = list(dict.fromkeys(s.method for s in report.scores))
    return sorted({(s.method, s.shots) for s in report.scores}, key=lambda c: (methods.index(c[0]), c[1]))


def aligned(report: Report) -> str:
    """The table for a terminal; the number after a method's name is its shots."""
    rows = table(report)
    return tables.align(rows, text=2, means=sum(row[0] == "mean" for row in rows))


def agreement(report: Report) -> list[str]:
    """A line for each method that was compared with another: how alike their results are, in percent."""
    lines = []
    for method, shots in _columns(report):
        alike = [s for s in report.scores if (s.method, s.shots) == (method, shots) and not math.isnan(s.same_pixels)]
        if alike:
            pixels, masks = (100 * sum(getattr(s, name) for s in alike) / len(alike) for name in _ALIKE)
            least = min(alike, key=lambda score: score.same_masks)
            lines.append(
                f"{method}, {shots} shot{'s' * (shots > 1)}: {pixels:.2f} of pixels are labelled alike; IoU of masks "
                f"{masks:.2f}, at least {100 * least.same_masks:.2f} ({least.set})"
            )
    return lines


def markdown(report: Report) -> str:
    """The table for a model card."""
    return tables.markdown(table(report), text=2)


def save(report: Report, folder: str | Path) -> list[Path]:
    """Writes results.json, results.csv and results.md.

    Args:
        report: what was measured.
        folder: made where it is missing.

    Returns:
        The paths. Each file is replaced as a whole or not at all.
    """
    whole = {
        "settings": report.settings,
        "mean": [
            {
                "method": m,
                "shots": k,
                "all_sets": tables.number(report.mean(m, k)),
                "other_images": tables.number(report.mean(m, k, "across")),
            }
            for m, k in _columns(report)
        ],
        "scores": [_plain(s) for s in report.scores],
    }
    lines = [["set", "protocol", "method", "shots", "queries", "miou", "image_mean", "seconds"]]
    for s in report.scores:
        numbers = (f"{v:.5f}" if not math.isnan(v) else "" for v in (s.miou, s.image_mean, s.seconds))
        lines.append([s.set, s.protocol, s.method, str(s.shots), str(s.queries), *numbers])
    contents = {
        "results.json": json.dumps(whole, indent=1) + "\n",
        "results.csv": tables.comma_separated(lines),
        "results.md": markdown(report),
    }
    return tables.write_texts(Path(folder), contents)


def _plain(score: Score) -> dict[str, object]:
    plain = dataclasses.asdict(score)
    for name in ("miou", "image_mean", "seconds", "same_pixels", "same_masks"):
        plain[name] = tables.number(plain[name])
    plain["parts"] = {part: tables.number(v) for part, v in score.parts.items()}
    return plain
