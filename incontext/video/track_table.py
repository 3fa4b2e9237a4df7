"""Areas, boxes and centroids as a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from incontext.atomic import replacing
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo

COLUMNS = ("frame", "time", "id", "name", "area", "left", "top", "width", "height", "x", "y", "certainty")


@contextmanager
def track_table(path: str | os.PathLike, video: TrackedVideo) -> Iterator[Callable[[TrackedFrame], None]]:
    """Writes CSV, whole or not at all: a row for each followed id and frame.

    Times are in seconds, the rest in pixels; x and y are the centroid. Of an id that is not seen the area is 0, and
    what comes after it empty.

    Args:
        path: the file.
        video: what is written.

    Yields:
        A function that takes the frames, in order.
    """
    with replacing(path) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)

        def write(frame: TrackedFrame) -> None:
            for id in frame.followed:
                row = [frame.index, f"{frame.time:.4f}", id, video.names.get(id, "")]
                extent = frame.extents.get(id)
                if extent is None:
                    table.writerow([*row, 0, *[""] * 7])
                else:
                    x, y = extent.centre
                    certainty = f"{frame.certainty.get(id, 0.0):.4f}"
                    table.writerow([*row, extent.area, *extent.box, f"{x:.2f}", f"{y:.2f}", certainty])

        yield write
