"""The text format of multi-object tracking and segmentation (MOTS)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from incontext.atomic import replacing
from incontext.export.coco import encode
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo

_IDS = 1000


@contextmanager
def mots_text(path: str | os.PathLike, video: TrackedVideo) -> Iterator[Callable[[TrackedFrame], None]]:
    """Writes lines of "frame object class height width rle", whole or not at all.

    Frames count from 0. An object's number is 1000 times its class plus its id, as in KITTI MOTS; objects of one name
    are of one class, from 1.

    Args:
        path: the file.
        video: what is written; ids from 1 to 999.

    Yields:
        A function that takes the frames, in order.
    """
    with replacing(path) as draft, open(draft, "w", encoding="utf-8") as file:
        numbers: dict[str, int] = {}

        def write(frame: TrackedFrame) -> None:
            for id in frame.extents:
                if id >= _IDS:
                    raise ValueError(
                        f"{path}: expected ids from 1 to {_IDS - 1}, as MOTS can hold, got {id}; leave out mots"
                    )
                name = video.names.get(id, "object")
                number = numbers.setdefault(name, len(numbers) + 1)
                mask = encode(frame.labels == id)
                height, width = mask["size"]
                file.write(f"{frame.place} {number * _IDS + id} {number} {height} {width} {mask['counts']}\n")

        yield write
