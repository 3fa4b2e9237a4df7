"""ONNX: a model with a fixed number of examples as one graph, for runtimes other than torch."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from incontext.atomic import replacing
from incontext.model.seggpt import KINDS, SegGPT

OPSET = 18
INPUTS = ("query", "example_images", "example_targets")
OUTPUT = "painting"
_EXTERNAL_FROM = 2**30  # bytes of weights; one file of ONNX holds 2 GB


class _Graph(nn.Module):
    """The part of `SegGPT.forward` that is exported: everything of the query is to be painted."""

    def __init__(self, model: SegGPT, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, query: Tensor, example_images: Tensor, example_targets: Tensor) -> Tensor:
        return self.model(query, example_images, example_targets, kind=self.kind)


def export_onnx(
    model: SegGPT, path: str | Path, *, examples: int = 1, queries: int = 1, kind: str = "instance"
) -> Path:
    """Writes a model as ONNX.

    Inputs are float32, RGB in ImageNet-normalised space: `query` (B, 3, H, W), `example_images` and `example_targets`
    (B, N, 3, H, W); the output `painting` is (B, 3, H, W), in the same space. All sizes are fixed.

    Args:
        model: float32, on the CPU, as loaded.
        path: `NAME.onnx`. Weights of a gigabyte or more lie beside it, in `NAME.onnx.data`.
        examples: N.
        queries: B.
        kind: the type token, "instance" or "semantic".

    Returns:
        The path.

    Raises:
        ValueError: for another suffix or kind, or N or B below 1.
        ImportError: onnxscript, which torch needs for this, is not installed.
    """
    path = Path(path).expanduser()
    if path.suffix != ".onnx":
        raise ValueError(f"expected a path NAME.onnx to write, got {path}")
    if kind not in KINDS or min(examples, queries) < 1:
        raise ValueError(
            f"expected a kind of {KINDS} and at least 1 example and query, got {kind!r}, {examples}, {queries}"
        )
    size = model.config.image_size
    # Two tensors: of one that is given twice the exporter would make one input.
    images, targets = (torch.zeros(queries, examples, 3, *size) for _ in range(2))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with torch.no_grad():
        program = torch.onnx.export(
            _Graph(model, kind).eval(),
            (torch.zeros(queries, 3, *size), images, targets),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if weights < _EXTERNAL_FROM:
        with replacing(path) as draft:
            program.save(draft)
    else:
        _save_in_two(program, path)
    return path


def run_onnx(path: str | Path, query: Tensor, example_images: Tensor, example_targets: Tensor) -> Tensor:
    """Runs what `export_onnx` wrote, on the CPU, with onnxruntime.

    Args:
        path: the file.
        query, example_images, example_targets: of the sizes it was exported for.

    Returns:
        The painting, (B, 3, H, W).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shown = (query, example_images, example_targets)
    feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, shown, strict=True)}
    return torch.from_numpy(session.run([OUTPUT], feed)[0])


def _save_in_two(program: torch.onnx.ONNXProgram, path: Path) -> None:
    """Writes graph and weights as two files. The graph names the other file, so both are made in a folder of their
    own under their final names, and moved: the weights first."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:64]}.") as folder:
        draft = Path(folder) / path.name
        program.save(draft, external_data=True)
        data = next(file for file in Path(folder).iterdir() if file != draft)
        os.replace(data, path.with_name(data.name))
        os.replace(draft, path)
