"""`incontext onnx`: a model as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from incontext.cli.model_options import add_model


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `onnx`."""
    parser = subparsers.add_parser(
        "onnx",
        help="export a model to ONNX",
        description="Writes a model with a fixed number of examples as ONNX, and compares it with torch where "
        "onnxruntime is installed. Inputs: query (B, 3, H, W), example_images and example_targets (B, N, 3, H, W), "
        "float32, ImageNet-normalised; output: painting (B, 3, H, W).",
    )
    parser.add_argument("output", type=Path, metavar="NAME.onnx", help="weights of 1 GB or more lie in NAME.onnx.data")
    add_model(parser)
    parser.add_argument("--examples", type=int, default=1, metavar="N", help="how many examples (default 1)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="how many queries at once (default 1)")
    parser.add_argument("--kind", choices=("instance", "semantic"), default="instance", help="default instance")
    parser.add_argument("--no-check", action="store_true", help="do not run what was written")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 1 if the result differs from torch.

    Raises:
        ValueError: if an argument is wrong, or a package is missing.
    """
    import importlib.util
    import logging

    from incontext.model.onnx_export import export_onnx
    from incontext.model.zoo import load_model

    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the export needs {' and '.join(missing)}; pip install {' '.join(missing)}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every package that it could do without
    model = load_model(args.model)
    path = export_onnx(model, args.output, examples=args.examples, queries=args.batch, kind=args.kind)
    print(f"wrote {path}")
    if args.no_check:
        return 0
    if importlib.util.find_spec("onnxruntime") is None:
        print("not checked: onnxruntime is not installed")
        return 0
    return _check(model, path, args)


def _check(model, path: Path, args: argparse.Namespace) -> int:
    """Runs both on the same noise."""
    import torch

    from incontext.model.onnx_export import run_onnx

    generator = torch.Generator().manual_seed(0)
    size = model.config.image_size
    query = torch.randn(args.batch, 3, *size, generator=generator)
    images, targets = (torch.randn(args.batch, args.examples, 3, *size, generator=generator) for _ in range(2))
    with torch.inference_mode():
        expected = model(query, images, targets, kind=args.kind)
    largest = (run_onnx(path, query, images, targets) - expected).abs().max().item()
    print(f"largest difference from torch: {largest:.1e}, where values vary by {expected.std().item():.2f}")
    return 0 if largest < 1e-3 else 1
