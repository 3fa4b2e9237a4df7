"""The benchmark: sides in turn, so that what else the machine does meets them alike."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from incontext.bench.limits import Limits, measure_limits
from incontext.bench.memory import measure_peak
from incontext.bench.models import build_model, make_inputs
from incontext.bench.operations import count_operations
from incontext.bench.sides import Side, has_transformers, prepare, warm_up
from incontext.model.compiled import compiled_attention
from incontext.model.seggpt import SegGPT


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        size: of the model, one of `incontext.bench.models.SIZES`.
        devices: where.
        examples: the Ns, with one query each.
        batches: further numbers of queries, with one example each.
        precisions: of this project's sides; the others run in fp32, on a GPU in bf16 too if that is among them.
        pairs: how often each side is timed, after it was warmed up.
        cached: measure cached prompts too where they are an approximation.
        against_transformers: measure transformers too; None: where it is installed and can be such a model.
        memory: measure the peak memory of each side, each in a process of its own.
    """

    size: str = "bundled"
    devices: tuple[str, ...] = ("cpu",)
    examples: tuple[int, ...] = (1, 2, 4, 8, 16)
    batches: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    pairs: int = 5
    cached: bool = False
    against_transformers: bool | None = None
    memory: bool = True


@dataclass(frozen=True)
class Row:
    """One side in one case.

    Attributes:
        device: where.
        queries, examples: B and N.
        side: what ran.
        seconds: each time of painting all B queries.
        speedups: each round's time of the case's first side over this one's.
        difference: (largest, mean) of the painting from the plain form's in fp32, in normalised colour.
        agreement: part of the painting's values that are on the same side of 0 as the plain form's.
        operations: of one painting.
        share: of the machine's best matrix product that was reached, by the median time.
        peak: bytes; None where it was not measured.
    """

    device: str
    queries: int
    examples: int
    side: Side
    seconds: tuple[float, ...]
    speedups: tuple[float, ...]
    difference: tuple[float, float]
    agreement: float
    operations: float
    share: float
    peak: int | None

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Results:
    """Attributes:
    plan: what was measured.
    machine: what it was measured on.
    limits: device -> its limits.
    rows: in the order of measurement; the first of each case is what the others are compared with.
    """

    plan: Plan
    machine: dict[str, str | int]
    limits: dict[str, Limits]
    rows: list[Row] = field(default_factory=list)


def run(plan: Plan, after_case: Callable[[Results], None] = lambda results: None) -> Results:
    """Measures all cases of a plan, with progress.

    Args:
        plan: what to measure.
        after_case: called with what is there so far, as to save it.

    Raises:
        ValueError: if the model is unknown, or transformers is asked for and cannot take part.
    """
    results = Results(plan, describe_machine(), {})
    for name in plan.devices:
        device = torch.device(name)
        results.limits[name] = measure_limits(device, tuple(dict.fromkeys(("fp32", *plan.precisions))))
        model = build_model(plan.size, device)
        cases = [(1, n) for n in plan.examples] + [(b, 1) for b in plan.batches if b > 1]
        for queries, examples in cases:
            sides = choose_sides(plan, model, device, queries)
            results.rows.extend(_measure(plan, model, name, sides, queries, examples, results.limits[name]))
            after_case(results)
    return results


def choose_sides(plan: Plan, model: SegGPT, device: torch.device, queries: int) -> list[Side]:
    """The sides of one case; the others are compared with the first.

    Raises:
        ValueError: if transformers is asked for and cannot take part.
    """
    possible = model.config.examples_attend_query
    wanted = possible and has_transformers() if plan.against_transformers is None else plan.against_transformers
    if wanted and not possible:
        raise ValueError(f"transformers has no model like {plan.size!r}, whose examples do not attend to the query")
    if wanted and not has_transformers():
        raise ValueError("transformers is not installed; pip install transformers, or measure without it")
    first = [Side("transformers")] if wanted else [Side("plain")]
    if wanted and device.type == "cuda" and "bf16" in plan.precisions:
        first.insert(0, Side("transformers", "bf16"))
    ways = ("first", "next", "cached") if plan.cached and possible else ("first", "next")
    return first + [Side(way, precision) for precision in plan.precisions for way in ways]


def interleave(sides: Sequence[Callable[[], Tensor]], rounds: int, progress: tqdm) -> list[list[float]]:
    """Times each side once a round, in turn, backwards in every second round; returns seconds by side."""
    seconds: list[list[float]] = [[] for _ in sides]
    order = list(range(len(sides)))
    for number in range(rounds):
        for k in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sides[k]()
            seconds[k].append(time.perf_counter() - start)
            progress.update()
    return seconds


def describe_machine() -> dict[str, str | int]:
    """Processor, threads and versions."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "attention": "torch's" if compiled_attention(torch.float32) is None else "compiled",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "measured": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if has_transformers():
        from importlib.metadata import version

        found["transformers"] = version("transformers")
    return found


def _measure(
    plan: Plan, model: SegGPT, device: str, sides: list[Side], queries: int, examples: int, limits: Limits
) -> list[Row]:
    inputs = make_inputs(model, queries, examples)
    expected = prepare(Side("plain"), model, inputs)()
    ready, differences = [], []
    for side in sides:
        ready.append(prepare(side, model, inputs))
        differences.append(_compare(warm_up(ready[-1], torch.device(device)), expected))
    title = f"{device}, {queries} x N = {examples}"
    with tqdm(total=plan.pairs * len(sides), desc=title, disable=None, file=sys.stderr) as progress:
        seconds = interleave(ready, plan.pairs, progress)
    del ready  # before other processes want memory
    rows = []
    for side, times, (largest, mean, agreement) in zip(sides, seconds, differences, strict=True):
        operations = count_operations(model.config, side.way, queries, examples)
        peak = None
        if plan.memory:
            threads = torch.get_num_threads()
            peak = measure_peak(plan.size, side, queries, examples, torch.device(device), threads)
        speedups = tuple(base / own for base, own in zip(seconds[0], times, strict=True))
        share = operations / median(times) / limits.matrix.get(side.precision, math.inf)
        rows.append(
            Row(
                device,
                queries,
                examples,
                side,
                tuple(times),
                speedups,
                (largest, mean),
                agreement,
                operations,
                share,
                peak,
            )
        )
    return rows


def _compare(painting: Tensor, expected: Tensor) -> tuple[float, float, float]:
    """Largest and mean difference, and the part of values on the same side of 0."""
    apart = (painting - expected).abs()
    same = ((painting > 0) == (expected > 0)).float().mean()
    return apart.max().item(), apart.mean().item(), same.item()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return f"{len(names)} x {names[0]}"
    return platform.processor() or platform.machine()
