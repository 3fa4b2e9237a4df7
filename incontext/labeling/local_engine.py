"""One model in this process: reading, computing and writing at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np

from incontext.labeling.image_writer import ImageWriter
from incontext.labeling.labeller import Labeller
from incontext.labeling.manifest import Row
from incontext.labeling.reading import Reading, Task, read
from incontext.prefetch import prefetch


def run_local(tasks: Iterable[Task], labeller: Labeller, writer: ImageWriter, on_row: Callable[[Row], None]) -> None:
    """Labels images: threads read ahead, this one runs the model, threads write behind.

    However it ends (an error, Ctrl-C), what was written by then has been given to `on_row`. Memory is bounded by
    the number of threads and the batch size, whatever the number of tasks.

    Args:
        tasks: taken one by one, in this thread, shortly before they are needed.
        labeller: labels.
        writer: writes.
        on_row: called in this thread when an image is written or has failed.

    Raises:
        JobStopped: see `read` and `ImageWriter.write`.
    """
    config = labeller.config
    writing: deque[Future[Row]] = deque()
    in_model: deque[Reading] = deque()

    def collect(most: int) -> None:
        """Hands over what is written, and waits until at most so many wait."""
        while writing and (len(writing) > most or writing[0].done()):
            row = writing[0].result()  # it stays in line while this waits, where Ctrl-C comes most often
            writing.popleft()
            on_row(row)

    def pixels(pool: ThreadPoolExecutor, readings: Iterable[Reading]) -> Iterator[np.ndarray]:
        for reading in readings:
            if reading.pixels is None:  # failed, corrected by a person, or there already
                writing.append(pool.submit(writer.write, reading))
                collect(2 * config.threads)
            else:
                in_model.append(reading)
                yield reading.pixels

    with ThreadPoolExecutor(config.threads, thread_name_prefix="write") as pool:
        read_one = partial(read, max_pixels=config.max_pixels)
        readings = prefetch(read_one, tasks, config.threads, config.threads + labeller.batch_size)
        try:
            with closing(readings), closing(labeller.stream(pixels(pool, readings))) as stream:
                for labelled in stream:
                    writing.append(pool.submit(writer.write, in_model.popleft(), labelled))
                    collect(2 * config.threads)
            collect(0)
        except BaseException:
            for future in writing:
                if future.exception() is None:
                    on_row(future.result())
            raise
