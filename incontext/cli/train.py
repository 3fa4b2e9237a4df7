"""`incontext train`: packs images with masks, trains a model on a pack, averages runs, grows models, and
estimates memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from incontext.cli.arguments import output_file, output_folder
from incontext.cli.model_options import add_device


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `train pack`, `train run`, `train average`, `train grow` and `train memory`."""
    parser = subparsers.add_parser("train", help="pack data, and train or fine-tune a model")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_pack(actions)
    _add_run(actions)
    _add_average(actions)
    _add_grow(actions)
    _add_memory(actions)


def _add_pack(actions: argparse._SubParsersAction) -> None:
    pack = actions.add_parser(
        "pack",
        help="images with masks, from folders and well-known layouts -> one file",
        description="Packs images with masks into one file that loads fast and travels well. Sources may be mixed, "
        "and each option for one given several times.",
    )
    pack.add_argument("data", type=Path, nargs="?", help="folder of sets: SET/images, SET/masks[, SET/masks_inst]")
    pack.add_argument("-o", "--output", type=output_file, required=True, metavar="FILE")
    sources = (
        ("--coco", ("NAME", "JSON", "IMAGES"), "COCO instances"),
        ("--panoptic", ("NAME", "JSON", "PNGS", "IMAGES"), "COCO panoptic"),
        ("--voc", ("NAME", "ROOT", "SPLIT"), "PASCAL VOC devkit, such as VOCdevkit/VOC2012 train"),
        ("--ade", ("NAME", "ROOT", "SPLIT"), "ADE20K scene parsing, such as ADEChallengeData2016 training"),
        ("--davis", ("NAME", "ROOT", "SPLIT"), "videos as in DAVIS or YouTube-VOS; split 'all' takes them all"),
    )
    for flag, metavar, text in sources:
        pack.add_argument(flag, nargs=len(metavar), metavar=metavar, action="append", default=[], help=text)
    pack.add_argument("--every", type=int, default=1, metavar="N", help="every N-th frame of --davis (default 1)")
    pack.add_argument("--side", type=int, default=208, help="longest side of a packed image in pixels (default 208)")
    pack.add_argument(
        "--fit", type=float, metavar="MIB", help="instead of --side: the largest that fits this file size"
    )
    pack.add_argument("--quality", type=int, default=80, help="WebP quality, 1..100 (default 80)")
    pack.add_argument("--sets", nargs="+", help="only these sets of the folder")
    pack.add_argument("--limit", type=int, metavar="N", help="at most N images of each set, evenly spread")
    pack.add_argument(
        "--segments",
        nargs="+",
        default=[],
        metavar="SET",
        help="sets whose ids mean nothing in another image; those of videos without classes.txt count as such",
    )
    pack.add_argument(
        "--numbered",
        nargs="+",
        default=[],
        metavar="SET",
        help="sets whose masks number the instances of one class",
    )
    pack.add_argument("--handed", nargs="+", default=[], metavar="SET", help="sets whose classes tell left from right")
    pack.set_defaults(run=run_pack)


def _add_run(actions: argparse._SubParsersAction) -> None:
    train = actions.add_parser(
        "run",
        help="train on a pack",
        description="Trains until the steps are done. Started again with the same flags it goes on where it was. "
        "On several GPUs: torchrun --nproc-per-node N -m incontext train run ...",
    )
    train.add_argument("pack", type=Path, help="file from `incontext train pack`")
    train.add_argument("-o", "--output", type=output_folder, required=True, metavar="DIR", help="folder of this run")
    train.add_argument("--validation", type=Path, metavar="PACK", help="pack to score on at every evaluation")
    train.add_argument(
        "--config", metavar="JSON", help="fields of TrainConfig, a file or a recipe's name; flags win over it"
    )
    train.add_argument(
        "--init", metavar="MODEL", help="fine-tune this model, a file or a name as in `incontext models`"
    )
    train.add_argument("--trainable", choices=("all", "head", "low-rank"), help="what learns (default all)")
    train.add_argument("--rank", type=int, help="of low-rank additions (default 8)")
    train.add_argument("--checkpointing", action="store_true", default=None, help="save memory, take more time")
    train.add_argument("--micro-batch", type=int, metavar="N", help="episodes at once; bounds the memory")
    train.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of a view")
    train.add_argument("--steps", type=int)
    train.add_argument("--batch-size", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--layer-decay", type=float, help="factor of the rate from a block to the one below (default 1)")
    train.add_argument(
        "--weights", type=_weight, nargs="+", metavar="SET=W", help="how often sets are drawn (default 1)"
    )
    train.add_argument("--seed", type=int)
    train.add_argument("--precision", choices=("fp32", "bf16"))
    train.add_argument("--evaluate-every", type=int, metavar="STEPS")
    train.add_argument("--minutes", type=float, help="pause after so many minutes; run again to go on")
    train.add_argument("--workers", type=int, default=0, help="processes that make batches (default 0: a thread)")
    train.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    add_device(train)
    train.set_defaults(run=run_train)


def _add_average(actions: argparse._SubParsersAction) -> None:
    average = actions.add_parser(
        "average",
        help="the mean of the weights of several runs",
        description="Averages the weights of models that one training went through, or that started from the same "
        "weights; often better than each of them. The result has the settings of the last one.",
    )
    average.add_argument("models", nargs="+", metavar="MODEL", help="files or names, two or more")
    average.add_argument("-o", "--output", type=output_file, required=True, metavar="NAME.safetensors")
    average.add_argument("--half", action="store_true", help="store the weights as float16")
    average.set_defaults(run=run_average)


def _add_grow(actions: argparse._SubParsersAction) -> None:
    grow = actions.add_parser(
        "grow",
        help="a larger model that computes the same",
        description="Makes a model wider or deeper without changing what it paints, to go on training from.",
    )
    grow.add_argument("model", help="a file, or a name as in `incontext models`")
    grow.add_argument("--width", type=int, metavar="CHANNELS", help="channels of a token; heads grow in number")
    grow.add_argument("--depth", type=int, metavar="BLOCKS", help="number of blocks")
    grow.add_argument("--seed", type=int, default=0, help="of what is new (default 0)")
    grow.add_argument("-o", "--output", type=output_file, required=True, metavar="NAME.safetensors")
    grow.set_defaults(run=run_grow)


def _add_memory(actions: argparse._SubParsersAction) -> None:
    memory = actions.add_parser("memory", help="estimate the memory of each way of fine-tuning, from shapes")
    memory.add_argument("--preset", default="seggpt-vit-large", help="architecture (default seggpt-vit-large)")
    memory.add_argument("--micro-batch", type=int, default=1, metavar="N", help="episodes at once (default 1)")
    memory.add_argument("--shots", type=int, default=1, help="examples of each (default 1)")
    memory.add_argument("--rank", type=int, default=8, help="of low-rank additions (default 8)")
    memory.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="(default bf16)")
    memory.set_defaults(run=run_memory)


def run_pack(args: argparse.Namespace) -> int:
    """Runs `train pack`; returns the exit status.

    Raises:
        ValueError: if a source is not laid out as expected, or nothing fits.
    """
    from incontext.training.coco_sources import coco_items, panoptic_items
    from incontext.training.devkit_sources import ade_items, davis_items, voc_items
    from incontext.training.pack import Traits
    from incontext.training.pack_writer import fit_side, folder_items, limit_sets, write_pack
    from incontext.training.sources import Numbered

    items = folder_items(args.data, args.sets) if args.data else []
    for read, sources in ((coco_items, args.coco), (panoptic_items, args.panoptic), (voc_items, args.voc)):
        items += [item for source in sources for item in read(*source)]
    items += [item for source in args.ade for item in ade_items(*source)]
    items += [item for source in args.davis for item in davis_items(*source, every=args.every)]
    if args.limit:
        items = limit_sets(items, args.limit)
    segments, handed, numbered = set(args.segments), set(args.handed), set(args.numbered)
    unknown = sorted((segments | handed | numbered) - {item.set for item in items})
    if unknown:
        raise ValueError(f"unknown sets {unknown}; the sources hold {sorted({item.set for item in items})}")
    items = [
        dataclasses.replace(item, read=Numbered(item.read), segments=False) if item.set in numbered else item
        for item in items
    ]
    traits = {name: Traits(name in segments, name in handed) for name in segments | handed}
    side = fit_side(items, int(args.fit * 2**20), args.quality) if args.fit and items else args.side
    pack = write_pack(items, args.output, side=side, quality=args.quality, traits=traits)
    for name, indexes in pack.sets.items():
        print(f"{name:32} {len(indexes):6} images")
    size = args.output.stat().st_size / 2**20
    print(f"{args.output}: {len(pack)} images of at most {side} pixels, {size:.1f} MiB")
    return 0 if len(pack) == len(items) else 1


def run_train(args: argparse.Namespace) -> int:
    """Runs `train run`; returns the exit status.

    Raises:
        ValueError: if a flag or a field of the config is wrong.
    """
    from incontext.device import pick_device
    from incontext.training.loop import TrainConfig, train
    from incontext.training.pack import Pack

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    fields: dict[str, Any] = json.loads(_find_config(args.config).read_text()) if args.config else {}
    unknown = sorted(set(fields) - names)
    if unknown:
        raise ValueError(f"{args.config}: unknown fields {unknown}; expected some of {sorted(names)}")
    flags = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if "weights" in flags:
        sets = sorted(Pack(args.pack).sets)
        absent = sorted(set(dict(flags["weights"])) - set(sets))
        if absent:  # a config may name sets of other packs
            raise ValueError(f"--weights: unknown sets {absent}; {args.pack} holds {sets}")
        flags["weights"] = fields.get("weights", {}) | dict(flags["weights"])
    path = train(
        TrainConfig(**(fields | flags)),
        args.pack,
        args.output,
        validation_pack=args.validation,
        device=str(pick_device(args.device)),
        workers=args.workers,
        tensorboard=args.tensorboard,
    )
    print(path)
    return 0


def run_average(args: argparse.Namespace) -> int:
    """Runs `train average`; returns the exit status.

    Raises:
        ValueError: if there are fewer than two models, or they differ in their shapes.
    """
    import torch

    from incontext.model.checkpoint import save_checkpoint
    from incontext.model.zoo import load_model
    from incontext.training.averaging import average_models

    mean = average_models([load_model(name) for name in args.models])
    save_checkpoint(mean, args.output, dtype=torch.float16 if args.half else None)
    print(args.output)
    return 0


def run_grow(args: argparse.Namespace) -> int:
    """Runs `train grow`; returns the exit status.

    Raises:
        ValueError: if the model would have to shrink, or heads do not fit the width.
    """
    import torch

    from incontext.model.checkpoint import save_checkpoint
    from incontext.model.zoo import load_model
    from incontext.training.growing import grow

    generator = torch.Generator().manual_seed(args.seed)
    grown = grow(load_model(args.model), width=args.width, depth=args.depth, generator=generator)
    save_checkpoint(grown, args.output)
    config, count = grown.config, sum(each.numel() for each in grown.parameters())
    print(
        f"{args.output}: width {config.width}, {config.heads} heads, {config.depth} blocks, {count / 1e6:.1f} M weights"
    )
    return 0


def run_memory(args: argparse.Namespace) -> int:
    """Runs `train memory`; returns the exit status.

    Raises:
        ValueError: for an unknown preset.
    """
    import torch

    from incontext.model.config import PRESETS
    from incontext.training.memory import memory_table

    if args.preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {args.preset!r}")
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    needs = memory_table(PRESETS[args.preset], batch=args.micro_batch, shots=args.shots, rank=args.rank, dtype=dtype)
    print(f"{args.preset}, {args.precision}, {args.micro_batch} x {args.shots} shots; GiB, estimated from shapes\n")
    print(f"{'trainable':10} {'checkpointing':14} {'weights':>8} {'learning':>9} {'activations':>12} {'total':>7}")
    for need in needs:
        sizes = [each / 2**30 for each in (need.weights, need.learning, need.activations, need.total)]
        row = f"{need.trainable:10} {'yes' if need.checkpointing else 'no':14} "
        print(row + f"{sizes[0]:8.2f} {sizes[1]:9.2f} {sizes[2]:12.2f} {sizes[3]:7.2f}")
    return 0


def _find_config(name: str) -> Path:
    """A file, or a recipe of the package."""
    recipes = {path.stem: path for path in (Path(__file__).parents[1] / "training" / "recipes").glob("*.json")}
    if not Path(name).exists() and name not in recipes:
        raise ValueError(f"{name}: expected a JSON file, or one of the recipes {sorted(recipes)}")
    return Path(name) if Path(name).exists() else recipes[name]


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected SET=WEIGHT, such as cells=2, got {text!r}") from None
