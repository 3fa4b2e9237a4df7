"""Lists on the command line: "1,4,8" and "a,b"."""

from __future__ import annotations

import argparse


def number_list(text: str, least: int = 1) -> tuple[int, ...]:
    """Reads whole numbers between commas.

    Raises:
        argparse.ArgumentTypeError: one is no whole number, or below `least`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        raise argparse.ArgumentTypeError(f"expected whole numbers from {least} on, such as 1,4,8; got {text!r}")
    return numbers


def positive(text: str) -> int:
    """Reads one whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def word_list(text: str) -> list[str]:
    """Reads words between commas; empty ones are dropped."""
    return [word for word in (part.strip() for part in text.split(",")) if word]
