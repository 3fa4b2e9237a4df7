"""`incontext train`: packs images with masks, and trains a model on a pack."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `train pack` and `train run`."""
    parser = subparsers.add_parser("train", help="train a model, or pack data to train on")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    pack = actions.add_parser(
        "pack",
        help="folders SET/images, SET/masks[, SET/masks_inst] -> one file",
        description="Packs the sets below a folder into one file that loads fast and travels well.",
    )
    pack.add_argument("data", type=Path, help="folder of sets")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    pack.add_argument("--side", type=int, default=208, help="longest side of a packed image in pixels (default 208)")
    pack.add_argument("--quality", type=int, default=88, help="JPEG quality, 1..95 (default 88)")
    pack.add_argument("--sets", nargs="+", help="only these sets")
    pack.set_defaults(run=run_pack)

    train = actions.add_parser(
        "run",
        help="train on a pack",
        description="Trains until the steps are done. Started again with the same flags it goes on where it was.",
    )
    train.add_argument("pack", type=Path, help="file from `incontext train pack`")
    train.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of this run")
    train.add_argument("--validation", type=Path, metavar="PACK", help="pack to score on at every evaluation")
    train.add_argument("--config", type=Path, metavar="JSON", help="fields of TrainConfig; flags win over it")
    train.add_argument("--init", help="start from this checkpoint instead of from nothing")
    train.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of a view")
    train.add_argument("--steps", type=int)
    train.add_argument("--batch-size", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--seed", type=int)
    train.add_argument("--precision", choices=("fp32", "bf16"))
    train.add_argument("--minutes", type=float, help="pause after so many minutes; run again to go on")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    train.set_defaults(run=run_train)


def run_pack(args: argparse.Namespace) -> int:
    """Runs `train pack`; returns the exit status."""
    from incontext.training.pack import pack_folders

    pack = pack_folders(args.data, args.output, side=args.side, quality=args.quality, sets=args.sets)
    for name, indexes in pack.sets.items():
        print(f"{name:32} {len(indexes):6} images")
    print(f"{args.output}: {len(pack)} images, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0


def run_train(args: argparse.Namespace) -> int:
    """Runs `train run`; returns the exit status.

    Raises:
        ValueError: if a flag or a field of the config is wrong.
    """
    from incontext.device import pick_device
    from incontext.training.loop import TrainConfig, train

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    fields: dict[str, Any] = json.loads(args.config.read_text()) if args.config else {}
    unknown = sorted(set(fields) - names)
    if unknown:
        raise ValueError(f"{args.config}: unknown fields {unknown}; expected some of {sorted(names)}")
    fields |= {name: value for name, value in vars(args).items() if name in names and value is not None}
    config = TrainConfig(**fields)
    path = train(config, args.pack, args.output, validation_pack=args.validation, device=str(pick_device(args.device)))
    print(path)
    return 0
