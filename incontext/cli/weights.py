"""Commands around weights: `convert`, `pull`, `models`."""

from __future__ import annotations

import argparse
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the commands. Each sets `run`, which takes the parsed arguments and returns the exit status."""
    convert = subparsers.add_parser(
        "convert",
        help="rewrite a model's weights in another format",
        description="Rewrite weights: OUT.safetensors for this project's own format (config inside), OUT.pth "
        "for the published format, a folder for transformers' from_pretrained.",
    )
    convert.add_argument("source", metavar="IN", help="a model's name, a hub id, a file or a transformers folder")
    convert.add_argument("target", metavar="OUT", type=Path, help="NAME.safetensors, NAME.pth or a folder")
    convert.add_argument("--revision", help="branch, tag or commit of IN, for models on the hub")
    convert.add_argument("--dtype", choices=DTYPES, help="how weights are stored (default: as in IN)")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    convert.set_defaults(run=run_convert)

    pull = subparsers.add_parser(
        "pull",
        help="download a model",
        description="Download a model into the hub's cache. What was cut off goes on where it stopped.",
    )
    pull.add_argument("name", metavar="NAME", help="a name that `incontext models` lists, or a hub id OWNER/NAME")
    pull.add_argument("--revision", help="branch, tag or commit (default: the main branch)")
    pull.set_defaults(run=run_pull)

    models = subparsers.add_parser(
        "models", help="list models, and where they are", description="List the models that have a name."
    )
    models.set_defaults(run=run_models)


def run_convert(args: argparse.Namespace) -> int:
    """Runs `incontext convert`.

    Raises:
        CheckpointError: if IN cannot be read or OUT not written.
    """
    import torch

    from incontext.model.checkpoint import CheckpointError, save_checkpoint
    from incontext.model.zoo import open_model

    target: Path = args.target.expanduser()
    if not args.overwrite and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} exists; choose another OUT, or pass --overwrite")
    checkpoint = open_model(args.source, revision=args.revision)
    save_checkpoint(checkpoint, target, dtype=getattr(torch, args.dtype) if args.dtype else None)
    height, width = checkpoint.config.image_size
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    print(f"{target}: {count / 1e6:.1f} M parameters, input {height} x {width}")
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Runs `incontext pull`.

    Raises:
        CheckpointError: if there is no such model, or it cannot be had.
    """
    from incontext.model.zoo import ModelUnavailableError, find_entry, pull

    entry = find_entry(args.name)
    if entry is None:
        raise ModelUnavailableError(f"{args.name} is on this machine already; nothing to pull")
    print(pull(entry, args.revision))
    return 0


def run_models(args: argparse.Namespace) -> int:
    """Runs `incontext models`."""
    from incontext.model.zoo import DEFAULT, MODELS, describe

    rows = [("NAME", "INPUT", "SIZE", "LICENCE", "WHERE", "")]
    for entry in MODELS.values():
        status = describe(entry)
        name = f"{entry.name} (default)" if entry.name == DEFAULT else entry.name
        size = "-" if status.size is None else f"{status.size / 1e6:.0f} MB"
        rows.append((name, "{} x {}".format(*entry.input_size), size, status.licence, status.place, entry.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
