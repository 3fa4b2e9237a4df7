"""The compiled attention against the plain formula in float64, and what happens where there is none."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model

from incontext import appearance
from incontext.cli.main import main
from incontext.model import compiled
from incontext.model.attention import Attention, Bias, spread
from incontext.model.config import SegGPTConfig
from incontext.model.inference import for_inference

fits = torch.backends.cpu.get_cpu_capability() == "AVX512" and shutil.which("g++") is not None
needs_compiler = pytest.mark.skipif(not fits, reason="needs a CPU with AVX-512, and g++")

GRIDS = [(4, 4, 16, 2), (5, 7, 12, 3), (28, 28, 64, 2), (9, 5, 64, 1), (3, 33, 8, 2)]
"""h, w, d, heads."""


@pytest.fixture(scope="module")
def operation(compiled_folder):
    compiled.compile_attention()
    yield compiled.compiled_attention
    for each in compiled_folder.iterdir():
        each.unlink()
    compiled._load.cache_clear()


def _parts(h):
    """Rows of the canvas that attend, and that are attended to."""
    return [
        (slice(0, 2 * h), slice(0, 2 * h)),
        (slice(h, 2 * h), slice(0, h)),
        (slice(h - 1, h), slice(0, 2 * h)),
        (slice(0, h), slice(h, 2 * h)),
    ]


def _layer(h, w, d, heads, relative_position=True):
    config = dataclasses.replace(
        SegGPTConfig(),
        image_size=(16 * h, 16 * w),
        patch_size=16,
        width=d * heads,
        heads=heads,
        relative_position=relative_position,
    )
    layer = Attention(config).requires_grad_(False)
    if relative_position:
        for table in (layer.rel_pos_h, layer.rel_pos_w):
            table.normal_(generator=torch.Generator().manual_seed(1))
    return layer


def _tokens(count, rows, w, d, heads, dtype, seed):
    """(count, heads, tokens, d), strided as a layer's projections are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, (rows.stop - rows.start) * w, heads, d, generator=generator).transpose(1, 2).to(dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("biased", [True, False], ids=["positions", "no positions"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_attention(operation, grid, biased, dtype):
    h, w, d, heads = grid
    layer = _layer(*grid, relative_position=biased)
    for rows, key_rows in _parts(h):
        query = _tokens(2, rows, w, d, heads, dtype, seed=0)
        key, value = (_tokens(6, key_rows, w, d, heads, dtype, seed=seed) for seed in (2, 3))
        with torch.inference_mode():
            mixed = layer.mix(query, key, value, (h, w), rows, key_rows)
            scores = spread(query.double(), 3) @ key.double().transpose(-1, -2) / d**0.5
            bias = layer.double()._bias(query.double(), (h, w), rows, key_rows)
            layer.float()
            if bias is not None:
                scores += Bias(*(spread(each, 3) for each in bias)).whole()
            expected = scores.softmax(-1) @ value.double()
        assert mixed.values.dtype is dtype
        tolerance = 5e-5 if dtype is torch.float32 else 3e-2
        assert torch.allclose(mixed.values.double(), expected, atol=tolerance)
        assert torch.allclose(mixed.logsumexp.double(), scores.logsumexp(-1), atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_flat_and_sharp_scores(operation, scale):
    query, key, value = _tokens(3, slice(0, 13), 10, 32, 2, torch.float32, seed=0).unsqueeze(1)
    values, sums = operation(torch.float32)(scale * query, key, value, None, None, 0, 0)
    scores = scale * query.double() @ key.double().transpose(-1, -2) / 32**0.5
    assert torch.allclose(values.double(), scores.softmax(-1) @ value.double(), atol=1e-5 * max(scale, 1))
    assert torch.allclose(sums.double(), scores.logsumexp(-1), rtol=1e-5)


@needs_compiler
def test_threads_change_nothing(operation, set_threads):
    layer, rows = _layer(28, 28, 64, 2), slice(0, 56)
    tokens = [_tokens(1, rows, 28, 64, 2, torch.float32, seed) for seed in range(3)]
    outcomes = []
    for threads in (1, 2, 3):
        set_threads(threads)
        with torch.inference_mode():
            outcomes.append(layer.attend(*tokens, (28, 28), rows, rows))
    assert torch.equal(outcomes[0], outcomes[1]) and torch.equal(outcomes[0], outcomes[2])


@needs_compiler
@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-4), ("bf16", 0.1)])
@pytest.mark.parametrize("config", [TINY, TINY_CACHED], ids=["attending", "not attending"])
def test_a_model_paints_the_same(operation, config, precision, tolerance):
    model = for_inference(random_model(config), precision)
    inputs = random_inputs(1, 2)
    with torch.inference_mode():
        fast = model(*inputs)
        with compiled.without_compiled():
            slow = model(*inputs)
    assert not torch.equal(fast, slow), "the compiled attention was not used"
    assert torch.allclose(fast, slow, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize("pixels, keys, ids", [(1000, 777, 1), (57, 4096, 12), (300, 5, 30)])
@torch.inference_mode()
def test_pixels_are_compared_alike(operation, pixels, keys, ids):
    generator = torch.Generator().manual_seed(0)
    queries, shown = (torch.rand(count, 14, generator=generator) for count in (pixels, keys))
    values = torch.rand(keys, 1 + ids, generator=generator).softmax(-1)
    fast = appearance._attend(queries, shown, values)
    with compiled.without_compiled():
        slow = appearance._attend(queries, shown, values)
    assert not torch.equal(fast, slow), "the compiled attention was not used"
    assert torch.allclose(fast, slow, atol=1e-4) and torch.allclose(fast.sum(1), torch.ones(pixels), atol=1e-4)


@needs_compiler
def test_wrong_shapes_are_refused(operation):
    attend, tokens, table = operation(torch.float32), torch.zeros(1, 2, 12, 8), torch.zeros(8, 7)
    with pytest.raises(RuntimeError, match="do not fit"):
        attend(tokens, *[torch.zeros(1, 3, 12, 8)] * 2, None, None, 0, 0)
    with pytest.raises(RuntimeError, match="both tables or none"):
        attend(tokens, tokens, tokens, table, None, 0, 0)
    with pytest.raises(RuntimeError, match="within a canvas of 4"):  # three rows of four from the second on
        attend(tokens, tokens, tokens, table, table, 2, 0)
    with pytest.raises(RuntimeError, match="one type"):
        attend(tokens, tokens.bfloat16(), tokens, None, None, 0, 0)
    assert compiled.compiled_attention(torch.float16) is None


@needs_compiler
def test_the_command(operation, capsys, monkeypatch):
    assert main(["compile"]) == 0
    said = capsys.readouterr().out
    assert str(compiled.compiled_path()) in said and said.count("times as fast") == 2

    monkeypatch.setattr("incontext.cli.compile._compare", lambda dtype: (9.0, 1.0))
    kept = compiled.compiled_path().read_bytes()
    assert main(["compile"]) == 1
    assert not compiled.compiled_path().exists() and "too much" in capsys.readouterr().out
    compiled.compiled_path().write_bytes(kept)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_folder", lambda: tmp_path)
    compiled._load.cache_clear()
    yield tmp_path
    compiled._load.cache_clear()


def test_none_is_used_where_none_was_compiled(empty_folder):
    assert compiled.compiled_attention(torch.float32) is None


def test_what_was_compiled_for_others_is_not_found(empty_folder, monkeypatch):
    own = compiled.compiled_path()
    monkeypatch.setattr(compiled, "_cpu", lambda: "another")
    elsewhere = compiled.compiled_path()
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert len({own, elsewhere, compiled.compiled_path()}) == 3


@needs_compiler
def test_a_broken_file_is_told_and_not_used(empty_folder, caplog):
    compiled.compiled_path().write_bytes(b"not a library")
    assert compiled.compiled_attention(torch.float32) is None
    assert "cannot be loaded" in caplog.text


@needs_compiler
def test_a_failing_compiler_leaves_nothing(empty_folder, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "false")
    assert main(["compile"]) == 2
    assert "failed with status 1" in capsys.readouterr().err
    assert not list(empty_folder.iterdir())


@needs_compiler
def test_no_compiler(empty_folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="install one"):
        compiled.compile_attention()


def test_other_machines_are_told(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(ValueError, match="everything works without"):
        compiled.compile_attention()
