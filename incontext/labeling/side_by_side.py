"""Several images in one model at once, on a CPU.

A small model's operations are too short to be shared out well among the threads of a CPU: they wait for each other at
the end of each one, and where other work keeps a core busy all wait for that core. Images know nothing of each other,
so each thread takes one of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch

from incontext.predictor import Predictor
from incontext.prefetch import prefetch

_MOST = 8
"""Of more, Python's own part in each image would be the limit; torch's threads are shared out among them then."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_side_by_side(predictor: Predictor, batch_size: int) -> int:
    """How many images a job computes at once: on a CPU one for each thread of torch, up to 8; else 1.

    Args:
        predictor: while its model is in training mode predictions would turn that off and on under each other.
        batch_size: images in a batch are computed at once as it is.
    """
    if predictor.device.type != "cpu" or batch_size > 1 or predictor.model.training:
        return 1
    return min(_MOST, torch.get_num_threads())


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """Like `map`, in several threads that share torch's threads among them.

    The first item is done alone, so that what it makes for all others (an encoded prompt) is made once.

    Args:
        function: called once for each item, in any thread. What it raises is raised here in the item's turn.
        items: taken one by one from the calling thread, a bounded number ahead.
        count: how many at once.

    Yields:
        Results, in the items' order.
    """
    items, threads = iter(items), torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))  # of this thread, and of those that begin from now on
    try:
        yield from map(function, islice(items, 1))
        yield from prefetch(function, items, count, count + 1)
    finally:
        torch.set_num_threads(threads)
