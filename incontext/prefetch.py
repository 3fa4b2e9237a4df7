"""Reading ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Like `map`, but computes the next results in threads while the current one is being used.

    Args:
        function: called once for each item, in any thread. What it raises is raised here in the item's turn.
        items: taken one by one from the calling thread, never more than `ahead` before they are needed.
        threads: how many run at once.
        ahead: how many results may wait, which bounds the memory.

    Yields:
        Results, in the items' order.
    """
    items = iter(items)
    waiting: deque = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
