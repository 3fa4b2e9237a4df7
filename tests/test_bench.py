"""The benchmark: its counts, its comparisons and its order; times themselves are no test's business."""

from __future__ import annotations

import json

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from incontext.bench import Plan, limits, markdown, run
from incontext.bench.benchmark import choose_sides, interleave
from incontext.bench.limits import measure_limits
from incontext.bench.memory import measure_peak
from incontext.bench.models import build_model, make_inputs
from incontext.bench.operations import count_operations
from incontext.bench.sides import Side, prepare
from incontext.cli.main import main
from incontext.model.config import PRESETS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch):
    monkeypatch.setattr(limits, "_SHAPES", [(256, 256, 256)])
    monkeypatch.setattr(limits, "_COPIED", 2**20)


def test_the_published_model_takes_the_operations_it_is_known_for():
    config = PRESETS["seggpt-vit-large"]
    assert count_operations(config, "transformers", 1, 1) == pytest.approx(1590e9, rel=0.01)
    assert count_operations(config, "transformers", 1, 8) == pytest.approx(12.7e12, rel=0.01)
    assert count_operations(config, "next", 1, 8) < 0.5 * count_operations(config, "transformers", 1, 8)


@pytest.mark.parametrize("examples", [1, 3])
def test_operations_equal_those_that_torch_counts(examples):
    model = random_model(TINY).requires_grad_(False)
    inputs = make_inputs(model, 2, examples)
    paint = prepare(Side("plain"), model, inputs)
    # As separate products: torch does not count its own kernel for attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        paint()
    assert counter.get_total_flops() == pytest.approx(count_operations(TINY, "plain", 2, examples), rel=1e-6)


@pytest.mark.parametrize("examples", [1, 3])
def test_all_sides_paint_the_same(examples):
    model = build_model("tiny", CPU)
    inputs = make_inputs(model, 1, examples)
    expected = prepare(Side("plain"), model, inputs)()
    assert expected.std() > 0.1
    for way in ("first", "next"):
        torch.testing.assert_close(prepare(Side(way), model, inputs)(), expected, atol=1e-5, rtol=0)
    approximate = prepare(Side("cached"), model, inputs)()
    assert (approximate - expected).abs().mean() > 1e-3
    if examples == 1:
        pytest.importorskip("transformers")
        torch.testing.assert_close(prepare(Side("transformers"), model, inputs)(), expected, atol=1e-5, rtol=0)


def test_queries_are_painted_each_for_itself():
    model = build_model("tiny", CPU)
    inputs = make_inputs(model, 3, 2)
    together = prepare(Side("next"), model, inputs)()
    alone = [prepare(Side("next"), model, inputs._replace(query=each[None]))() for each in inputs.query]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_transformers_is_not_asked_for_what_it_mixes():
    pytest.importorskip("transformers")
    model = build_model("tiny", CPU)
    with pytest.raises(ValueError, match="one query or one example"):
        prepare(Side("transformers"), model, make_inputs(model, 2, 2))


def test_sides_are_timed_in_turn_and_turned_round():
    calls = []
    sides = [lambda: calls.append("a"), lambda: calls.append("b")]
    seconds = interleave(sides, 3, tqdm(disable=True))
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(times) for times in seconds] == [3, 3]


def test_sides_of_a_plan(monkeypatch):
    attending, other = random_model(TINY), random_model(TINY_CACHED)
    monkeypatch.setattr("incontext.bench.benchmark.has_transformers", lambda: True)
    plan = Plan(precisions=("fp32", "bf16"), cached=True)
    ways = [side.way for side in choose_sides(plan, attending, CPU, 1)]
    assert ways == ["transformers", "first", "next", "cached", "first", "next", "cached"]
    assert [side.way for side in choose_sides(plan, other, CPU, 1)] == ["plain", "first", "next", "first", "next"]
    with pytest.raises(ValueError, match="do not attend"):
        choose_sides(Plan(against_transformers=True), other, CPU, 1)
    monkeypatch.setattr("incontext.bench.benchmark.has_transformers", lambda: False)
    assert choose_sides(Plan(), attending, CPU, 1)[0].way == "plain"
    with pytest.raises(ValueError, match="not installed"):
        choose_sides(Plan(against_transformers=True), attending, CPU, 1)


def test_limits_are_those_of_a_machine():
    found = measure_limits(CPU, ("fp32",))
    assert 1e8 < found.matrix["fp32"] < 1e15 and 1e8 < found.bandwidth < 1e14


def test_peak_memory_is_that_of_a_process_with_torch():
    peak = measure_peak("tiny", Side("next"), 1, 1, CPU, threads=1)
    assert 50e6 < peak < 4e9
    assert measure_peak("tiny", Side("transformers"), 2, 2, CPU, threads=1) is None  # it fails, and that is told


def test_the_command_writes_table_json_and_chart(tmp_path, capsys):
    arguments = ["--model", "tiny", "--examples", "1,2", "--batch", "2", "--pairs", "2", "--against", "plain"]
    assert main(["bench", *arguments, "--cached", "--no-memory", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "bench.md").read_text()
    assert table.strip() in printed
    assert "speed-up" in table and "(*) an approximation" in table and "GFLOP/s" in table
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["queries"], row["examples"]) for row in saved["rows"]] == [(1, 1)] * 4 + [(1, 2)] * 4 + [(2, 1)] * 4
    assert all(len(row["seconds"]) == len(row["speedups"]) == 2 and row["peak"] is None for row in saved["rows"])
    assert {row["side"]["way"] for row in saved["rows"]} == {"plain", "first", "next", "cached"}
    exact = [row for row in saved["rows"] if row["side"]["way"] in ("first", "next")]
    assert all(row["difference"][0] < 1e-5 and row["agreement"] > 0.999 for row in exact)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_case_that_is_done_is_told():
    seen = []
    plan = Plan(size="tiny", examples=(1, 2), pairs=1, against_transformers=False, memory=False)
    run(plan, after_case=lambda results: seen.append((len(results.rows), markdown(results))))
    assert [count for count, _ in seen] == [3, 6]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--pairs", "0"], "at least 1 round"), (["--precision", "fp8"], "precision"), (["--device", "tpu"], "device")],
)
def test_wrong_arguments(arguments, expected, capsys):
    assert main(["bench", *arguments]) == 2
    assert expected in capsys.readouterr().err
