"""ONNX against torch, run by onnxruntime."""

from __future__ import annotations

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model

from incontext.cli.main import main
from incontext.model import onnx_export
from incontext.model.onnx_export import export_onnx, run_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(("config", "count", "kind"), [(TINY, 1, "semantic"), (TINY_CACHED, 2, "instance")])
@torch.no_grad()
def test_onnx_equals_torch(config, count, kind, tmp_path):
    model, inputs = random_model(config), random_inputs(batch=2, count=count)
    path = export_onnx(model, tmp_path / "model.onnx", examples=count, queries=2, kind=kind)
    torch.testing.assert_close(run_onnx(path, *inputs), model(*inputs, kind=kind), atol=1e-4, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@torch.no_grad()
@pytest.mark.slow
def test_large_weights_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_EXTERNAL_FROM", 0)
    model, inputs = random_model(), random_inputs(batch=1, count=1)
    export_onnx(model, tmp_path / "sub" / "model.onnx")
    moved = (tmp_path / "sub").rename(tmp_path / "moved")  # the graph names the other file without a folder
    assert sorted(file.name for file in moved.iterdir()) == ["model.onnx", "model.onnx.data"]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert (moved / "model.onnx.data").stat().st_size > weights / 2 > (moved / "model.onnx").stat().st_size / 20
    torch.testing.assert_close(run_onnx(moved / "model.onnx", *inputs), model(*inputs), atol=1e-4, rtol=0)


def test_wrong_arguments(tmp_path):
    model = random_model()
    with pytest.raises(ValueError, match="NAME.onnx"):
        export_onnx(model, tmp_path / "model.pb")
    with pytest.raises(ValueError, match="at least 1 example"):
        export_onnx(model, tmp_path / "model.onnx", examples=0)
    with pytest.raises(ValueError, match="expected a kind"):
        export_onnx(model, tmp_path / "model.onnx", kind="panoptic")


@pytest.mark.slow
def test_the_command_exports_and_checks_the_bundled_model(tmp_path, capsys):
    assert main(["onnx", str(tmp_path / "small.onnx"), "--examples", "2"]) == 0
    assert "largest difference from torch" in capsys.readouterr().out
    assert (tmp_path / "small.onnx").stat().st_size > 10_000_000
