"""Scores as an aligned table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

from incontext.atomic import replacing
from incontext.evaluation.folders import Report, Score

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
        cells = [_percent(scores[c].miou if c in scores else math.nan) for c in columns]
        rows.append([name, _PROTOCOLS.get(first.protocol, first.protocol), str(first.queries), *cells])
    protocols = [next(iter(scores.values())).protocol for scores in by_place.values()]
    if protocols.count("across") > 1 and set(protocols) != {"across"}:
        means = (_percent(report.mean(*c, protocol="across")) for c in columns)
        rows.append(["mean", _PROTOCOLS["across"], "", *means])
    if len(by_place) > 1:
        rows.append(["mean", "all sets", "", *(_percent(report.mean(*c)) for c in columns)])
    return rows


def _columns(report: Report) -> list[tuple[str, int]]:
    """(method, shots), methods in their first order and shots rising."""
    methods = list(dict.fromkeys(s.method for s in report.scores))
    return sorted({(s.method, s.shots) for s in report.scores}, key=lambda c: (methods.index(c[0]), c[1]))


def aligned(report: Report) -> str:
    """The table for a terminal; the number after a method's name is its shots."""
    rows = table(report)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * len(line(rows[0]))
    body = [line(row) for row in rows[1:]]
    means = sum(row[0] == "mean" for row in rows)
    if means:
        body.insert(-means, rule)
    return "\n".join([line(rows[0]), rule, *body])


def markdown(report: Report) -> str:
    """The table for a model card."""
    header, *rows = table(report)
    marks = ["---", "---", *["---:"] * (len(header) - 2)]
    lines = ["| " + " | ".join(row) + " |" for row in [header, marks, *rows]]
    return "\n".join(lines) + "\n"


def save(report: Report, folder: str | Path) -> list[Path]:
    """Writes results.json, results.csv and results.md.

    Args:
        report: what was measured.
        folder: made where it is missing.

    Returns:
        The paths. Each file is replaced as a whole or not at all.
    """
    folder = Path(folder)
    whole = {
        "settings": report.settings,
        "mean": [
            {
                "method": m,
                "shots": k,
                "all_sets": _number(report.mean(m, k)),
                "other_images": _number(report.mean(m, k, "across")),
            }
            for m, k in _columns(report)
        ],
        "scores": [_plain(s) for s in report.scores],
    }
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["set", "protocol", "method", "shots", "queries", "miou", "image_mean", "seconds"])
    for s in report.scores:
        numbers = (f"{v:.5f}" if not math.isnan(v) else "" for v in (s.miou, s.image_mean, s.seconds))
        writer.writerow([s.set, s.protocol, s.method, s.shots, s.queries, *numbers])
    contents = {
        "results.json": json.dumps(whole, indent=1) + "\n",
        "results.csv": lines.getvalue(),
        "results.md": markdown(report),
    }
    paths = [folder / name for name in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    return paths


def _plain(score: Score) -> dict[str, object]:
    plain = dataclasses.asdict(score)
    for name in ("miou", "image_mean", "seconds"):
        plain[name] = _number(plain[name])
    plain["parts"] = {part: _number(v) for part, v in score.parts.items()}
    return plain


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else round(value, 5)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
