"""Risk-coverage reports as a table, JSON and a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from incontext.atomic import replacing
from incontext.evaluation.risk import CHANCE, PERFECT, REVIEWED, RiskReport
from incontext.evaluation.tables import align

_COVERAGE = np.linspace(0.01, 1, 100)


def aligned(reports: Sequence[RiskReport]) -> str:
    """Tables for a terminal, one for each report: means over the sets, then the gain in each set."""
    lines = []
    for report in reports:
        found, sets = f"bad in last {100 * REVIEWED:.0f}%", list(report.gains(CHANCE))
        heads = [f"{len(report.results)} {report.level}", "AURC", "gain", found, *sets]
        rows = [heads]
        for row in report.table():
            means = [_percent(row[name]) for name in ("aurc", "gain", "bad_found")]
            rows.append([row["score"], *means, *(_percent(row["gain_by_set"].get(name)) for name in sets)])
        lines += [align(rows, text=1), ""]
    return "\n".join(lines).rstrip()


def save(reports: Sequence[RiskReport], folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Writes `risk.json`, with every result, and, where matplotlib is installed, `risk.png`.

    Args:
        reports: at least one.
        folder: made where it is missing.
        settings: what was run, for the JSON file.

    Returns:
        The files.
    """
    whole = {
        "settings": dict(settings),
        "scores": {report.level: report.table() for report in reports},
        "results": {
            report.level: [
                {"job": each.job, "name": each.name, "risk": round(each.risk, 5), "scores": _rounded(each.scores)}
                for each in report.results
            ]
            for report in reports
        },
    }
    files = [folder / "risk.json"]
    with replacing(files[0]) as draft:
        draft.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if drawn := _draw(reports, folder / "risk.png"):
        files.append(drawn)
    return files


def _draw(reports: Sequence[RiskReport], path: Path) -> Path | None:
    """Mean IoU of what is kept over the part that is kept, mean over the sets, a panel for each report."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(6.4 * len(reports), 4.6), layout="constrained")
    for panel, report in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports, strict=True):
        for row in report.table():
            plain = {CHANCE: {"color": "0.6", "ls": "--"}, PERFECT: {"color": "0.6", "ls": ":"}}
            label = f"{row['score']}, AURC {_percent(row['aurc'])}"
            kept = 1 - report.risk_at(row["score"], _COVERAGE)
            panel.plot(100 * _COVERAGE, 100 * kept, label=label, **plain.get(row["score"], {}))
        panel.set(xlabel="part that is kept, most trusted first, %", ylabel="mean IoU of what is kept, %")
        panel.set_title(f"{len(report.results)} {report.level}", fontsize=11)
        panel.set(xlim=(0, 100))
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=130)
    return path


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(float(score), 5) for kind, score in scores.items()}
