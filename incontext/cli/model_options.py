"""The options of commands that run a model, and the predictor that they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from incontext.cli.arguments import tile_side

if TYPE_CHECKING:
    from incontext.predictor import Predictor
    from incontext.prompt import Prompt


def add_model(parser: argparse._ActionsContainer) -> None:
    """Adds --model."""
    parser.add_argument("--model", default="default", metavar="MODEL", help="name or file (default: the bundled model)")


def add_pack(parser: argparse._ActionsContainer) -> None:
    """Adds --pack."""
    parser.add_argument(
        "--pack",
        action="append",
        default=[],
        metavar="PACK",
        help="a prompt pack, by name or file, alone or beside examples; as often as needed",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Adds --device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")


def add_precision(parser: argparse._ActionsContainer) -> None:
    """Adds --precision."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="fp32",
        help="of the model's large matrices; auto: bf16 where the device is fast at it (default fp32)",
    )


def add_views(parser: argparse._ActionsContainer) -> None:
    """Adds how the model is shown an image: --batch-size, --tile, --overlap, --flip."""
    parser.add_argument("--batch-size", type=int, metavar="N", help="images or tiles at once (default: 8; on a CPU 1)")
    parser.add_argument(
        "--tile",
        type=tile_side,
        default="thin",
        metavar="PIXELS",
        help="cut larger images into tiles of this side; 'auto': where objects would be too small to be seen; 'none': "
        "never; default 'thin': in a few tiles where all objects would be too thin to be seen",
    )
    parser.add_argument(
        "--overlap", type=float, default=0.25, metavar="PART", help="of neighbouring tiles (default 0.25)"
    )
    add_flip(parser)


def settle_tiles(predictor: Predictor, prompt: Prompt, tile: int | str | None) -> int | str | None:
    """Returns None for "thin" where there will be no tiles, and says on standard error where there will."""
    import sys

    if tile != "thin":
        return tile
    size = predictor.model.config.image_size
    if not prompt.too_thin(size):
        return None
    print(
        f"note: all objects of the examples are thinner than the model sees at {size[0]} x {size[1]} pixels, so images "
        "are shown in tiles; --tile none is quicker, --tile auto looks closest",
        file=sys.stderr,
    )
    return tile


def add_flip(parser: argparse._ActionsContainer) -> None:
    """Adds --flip."""
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image; takes twice the time")


def add_refine(parser: argparse._ActionsContainer) -> None:
    """Adds --refine and --no-refine."""
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="fit masks to what pixels look like in examples and image (default: as the model asks for)",
    )


def add_one_by_one(parser: argparse._ActionsContainer) -> None:
    """Adds --one-by-one and --no-one-by-one."""
    parser.add_argument(
        "--one-by-one",
        action=argparse.BooleanOptionalAction,
        help="paint each of several ids by itself, too: better and slower (default: as the model asks for)",
    )


def open_predictor(args: argparse.Namespace, **settings: Any) -> Predictor:
    """Loads what --model and --device ask for.

    Args:
        args: the parsed arguments.
        settings: further arguments of `Predictor`.

    Raises:
        CheckpointError, ValueError: the model cannot be loaded, or the device is not there.
    """
    from incontext.model.zoo import load_model
    from incontext.predictor import Predictor

    return Predictor(load_model(args.model), device=args.device, **settings)
