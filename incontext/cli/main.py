"""The `incontext` command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import incontext
from incontext.cli import demo, evaluate, segment, train, weights


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments; those of the process, by default.

    Returns:
        The exit status: 0 done, 1 some inputs failed or an error, 2 wrong usage, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="incontext",
        description="In-context segmentation: show a few painted images, get the masks of all the others.",
    )
    parser.add_argument("--version", action="version", version=incontext.__version__)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    segment.add_parser(commands)
    demo.add_parser(commands)
    weights.add_parsers(commands)
    evaluate.add_parser(commands)
    train.add_parser(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
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
        print(f"incontext: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
