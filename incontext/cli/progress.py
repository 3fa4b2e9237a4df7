"""Progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Step = TypeVar("Step")


def progress(steps: Iterable[Step], name: str, total: int | None, unit: str) -> Iterator[Step]:
    """The same steps, with a bar while they are taken; silent unless standard error is a terminal.

    Args:
        steps: what is done, one by one.
        name: what stands before the bar.
        total: how many steps there are, where known.
        unit: what one step is, such as "image".
    """
    from tqdm import tqdm

    return iter(tqdm(steps, desc=name, total=total, unit=unit, disable=None, leave=False, file=sys.stderr))
