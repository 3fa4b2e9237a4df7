"""Results of a benchmark as a Markdown table, JSON and a chart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from incontext.atomic import replacing
from incontext.bench.benchmark import Results, Row

_GIB = 2**30
_HEADER = [
    "B",
    "N",
    "side",
    "seconds (range)",
    "speed-up (range)",
    "difference",
    "same sign",
    "GFLOP",
    "of best product",
    "peak GiB",
]


def markdown(results: Results) -> str:
    """The machine, its limits and a table of all rows, ready for a README."""
    machine, plan = results.machine, results.plan
    parts = [
        f"Model `{plan.size}`, {machine['processor']} ({machine['instructions']}, {machine['threads']} threads, "
        f"{machine['attention']} attention)"
        + (f", {machine['gpu']}" if any(device.startswith("cuda") for device in plan.devices) else "")
        + f", torch {machine['torch']}"
        + (f", transformers {machine['transformers']}" if "transformers" in machine else "")
        + f"; {plan.pairs} interleaved rounds, medians."
    ]
    for device in plan.devices:
        rows = [row for row in results.rows if row.device == device]
        if not rows:
            continue
        limits = results.limits[device]
        products = ", ".join(
            f"{precision} {speed / 1e9:.0f} GFLOP/s ({limits.best[precision]})"
            for precision, speed in limits.matrix.items()
        )
        parts.append(f"`{device}`: best product {products}; memory {limits.bandwidth / 1e9:.0f} GB/s.")
        parts.append(_table([_HEADER, *(_cells(row) for row in rows)]))
    if any(row.side.way == "cached" for row in results.rows):
        parts.append("(*) an approximation: these weights were trained with examples that attend to the query.")
    return "\n\n".join(parts) + "\n"


def save(results: Results, folder: str | Path) -> list[Path]:
    """Writes `bench.json`, `bench.md` and, where matplotlib is installed, `bench.png`.

    Returns:
        The files.
    """
    folder = Path(folder)
    files = [folder / "bench.json", folder / "bench.md"]
    with replacing(files[0]) as draft:
        draft.write_text(json.dumps(dataclasses.asdict(results), indent=2) + "\n", encoding="utf-8")
    with replacing(files[1]) as draft:
        draft.write_text(markdown(results), encoding="utf-8")
    if drawn := _draw(results, folder / "bench.png"):
        files.append(drawn)
    return files


def _cells(row: Row) -> list[str]:
    largest, mean = row.difference
    return [
        str(row.queries),
        str(row.examples),
        row.side.name,
        f"{_seconds(row.median)} ({_seconds(min(row.seconds))} to {_seconds(max(row.seconds))})",
        f"{median(row.speedups):.2f} ({min(row.speedups):.2f} to {max(row.speedups):.2f})",
        f"{largest:.1e}, mean {mean:.1e}",
        f"{100 * row.agreement:.2f} %",
        f"{row.operations / 1e9:.1f}" if row.operations < 1e11 else f"{row.operations / 1e9:.0f}",
        f"{100 * row.share:.0f} %",
        "-" if row.peak is None else f"{row.peak / _GIB:.2f}",
    ]


def _seconds(value: float) -> str:
    digits = next((digits for bound, digits in ((0.01, 5), (0.1, 4), (1, 3)) if value < bound), 2)
    return f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---:|---:|---|" + "---:|" * (len(rows[0]) - 3))
    return "\n".join(lines)


def _draw(results: Results, path: Path) -> Path | None:
    """Seconds for one query against the number of examples, a line for each side."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = [row for row in results.rows if row.queries == 1]
    if not rows:
        return None
    figure = Figure(figsize=(5.2 * len(results.plan.devices) + 2.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(results.plan.devices), squeeze=False)[0]
    for panel, device in zip(panels, results.plan.devices, strict=True):
        shown = [row for row in rows if row.device == device]
        for side in dict.fromkeys(row.side for row in shown):
            line = sorted((row for row in shown if row.side == side), key=lambda row: row.examples)
            below = [row.median - min(row.seconds) for row in line]
            above = [max(row.seconds) - row.median for row in line]
            panel.errorbar(
                [row.examples for row in line],
                [row.median for row in line],
                yerr=[below, above],
                marker="o",
                capsize=3,
                label=side.name,
            )
        counts = sorted({row.examples for row in shown})
        panel.set(xscale="log", yscale="log", xlabel="examples", ylabel="seconds for one query, median and range")
        panel.set_xticks(counts, [str(n) for n in counts])
        panel.minorticks_off()
        panel.set_title(f"{results.plan.size}, {device}", fontsize=10)
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=130)
    return path
