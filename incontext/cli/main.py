"""The `incontext` command."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

import incontext

COMMANDS = {
    "segment": ("segment", "find in images what a few examples show"),
    "label": ("label", "turn a folder of images into a labelled dataset"),
    "examples": ("examples", "score examples, and propose which images to paint"),
    "track": ("track", "follow painted objects through a video"),
    "tune": ("tune", "learn a prompt pack from labelled images"),
    "packs": ("packs", "list, show, compile, merge, verify and share prompt packs"),
    "demo": ("demo", "segment scenes whose truth is known, and score the result"),
    "models": ("weights", "list models"),
    "pull": ("weights", "download a published model"),
    "convert": ("weights", "convert a checkpoint between formats"),
    "onnx": ("onnx", "export a model to ONNX"),
    "eval": ("evaluate", "score a model on labelled data"),
    "train": ("train", "pack data, and train or fine-tune a model"),
    "bench": ("bench", "measure speed on this machine"),
    "compile": ("compile", "make attention about twice as fast on this CPU, once"),
}
"""Command -> the module of `incontext.cli` that adds it, and what it does in a line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments; those of the process, by default.

    Returns:
        The exit status: 0 done, 1 some inputs failed or an error, 2 wrong usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # which a file's name that is not UTF-8 must not stop
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="incontext",
        description="In-context segmentation: show a few painted images, get the masks of all the others.",
    )
    parser.add_argument("--version", action="version", version=incontext.__version__)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    argv = sys.argv[1:] if argv is None else list(argv)
    _add_commands(commands, next((word for word in argv if not word.startswith("-")), None))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub", "PIL", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself; nothing is to be said twice
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (
        ValueError,
        OSError,
    ) as error:  # what the user can mend; anything else is a bug and shows its traceback
        if args.debug:
            raise
        print(f"incontext: {_told(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _told(error: ValueError | OSError) -> str:
    """The message for the user; of the system's errors, without their number and the file first, as in all others."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: cannot be read or written ({error.strerror})"
    return str(error)


def _add_commands(commands: argparse._SubParsersAction, chosen: str | None) -> None:
    """Adds the chosen command whole, and of the others what the list of commands says of them."""
    if chosen in COMMANDS:
        importlib.import_module(f"incontext.cli.{COMMANDS[chosen][0]}").add_parser(commands)
    for name, (_, line) in COMMANDS.items():
        if name not in commands.choices:  # a module may add several commands
            commands.add_parser(name, help=line)
