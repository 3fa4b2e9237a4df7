"""What a tracked video can be written as."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from incontext.video.mots_text import mots_text
from incontext.video.overlay_video import overlay_video
from incontext.video.track_picture import track_picture
from incontext.video.track_table import track_table
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo
from incontext.video.youtube_vis import youtube_vis

Open = Callable[[str | os.PathLike, TrackedVideo], AbstractContextManager[Callable[[TrackedFrame], None]]]


@dataclass(frozen=True)
class Writer:
    """One way to write a tracked video.

    Attributes:
        file: its file's name.
        open: (path, video) -> a context that gives a function to call with each frame, in order.
    """

    file: str
    open: Open


WRITERS = {
    "overlay": Writer("overlay.mp4", overlay_video),
    "table": Writer("tracks.csv", track_table),
    "picture": Writer("tracks.png", track_picture),
    "coco": Writer("tracks.json", youtube_vis),
    "mots": Writer("tracks.txt", mots_text),
}
"""Name -> writer. Indexed PNGs are not among them: they are what all of these are made from."""


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of `WRITERS`, each once.

    Raises:
        ValueError: for another name.
    """
    unknown = [name for name in names if name not in WRITERS]
    if unknown:
        raise ValueError(f"formats: expected some of {tuple(WRITERS)}, got {unknown}")
    return tuple(dict.fromkeys(names))
