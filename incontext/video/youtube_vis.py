"""COCO for videos, as YouTube-VIS has it: one annotation for each object, with a mask for each frame."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

from incontext.atomic import replacing
from incontext.export.coco import encode
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo


@contextmanager
def youtube_vis(path: str | os.PathLike, video: TrackedVideo) -> Iterator[Callable[[TrackedFrame], None]]:
    """Writes one JSON file, whole or not at all.

    `annotations[k].segmentations` holds compressed RLE, and null where the object is not seen or the frame could not
    be read. `score` is the mean certainty over the frames in which it is seen. Masks wait in a temporary file; no more
    than one object's are in memory at once.

    Args:
        path: the file.
        video: what is written.

    Yields:
        A function that takes the frames, in order.
    """
    with TemporaryFile("w+", encoding="utf-8") as spool, replacing(path) as draft:
        ids: set[int] = set()

        def write(frame: TrackedFrame) -> None:
            for id, extent in frame.extents.items():
                ids.add(id)
                mask, certainty = encode(frame.labels == id), frame.certainty.get(id, 0.0)
                spool.write(json.dumps([id, frame.place, mask, extent.box, extent.area, certainty]) + "\n")

        yield write
        classes = video.classes(tuple(ids))
        head = {
            "info": {"description": video.name},
            "videos": [
                {
                    "id": 1,
                    "height": video.size[0],
                    "width": video.size[1],
                    "length": len(video.labels),
                    "file_names": [f"{video.name}/{label}.jpg" for label in video.labels],
                }
            ],
            "categories": [{"id": number, "name": name} for number, name in sorted(set(classes.values()))],
        }
        # File names that are no UTF-8 become JSON's own escapes.
        with open(draft, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
            for number, id in enumerate(sorted(ids)):
                annotation = _annotation(spool, id, video, classes[id][0])
                file.write((",\n" if number else "\n") + json.dumps(annotation))
            file.write("]}\n")


def _annotation(spool: IO[str], id: int, video: TrackedVideo, category: int) -> dict:
    """One object, gathered from the spool."""
    count = len(video.labels)
    masks, boxes, areas, scores = [None] * count, [None] * count, [None] * count, []
    spool.seek(0)
    for line in spool:
        if line.startswith(f"[{id},"):
            _, place, masks[place], boxes[place], areas[place], score = json.loads(line)
            scores.append(score)
    return {
        "id": id,
        "video_id": 1,
        "category_id": category,
        "height": video.size[0],
        "width": video.size[1],
        "iscrowd": 0,
        "score": round(sum(scores) / len(scores), 4),
        "segmentations": masks,
        "bboxes": boxes,
        "areas": areas,
    }
