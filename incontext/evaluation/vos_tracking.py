"""Tracks videos and keeps the masks, video by video, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from incontext.atomic import replacing
from incontext.evaluation.vos_videos import Video, VideoError
from incontext.export import write_indexed

Track = Callable[[Iterator[np.ndarray], Mapping[int, np.ndarray]], Iterable[np.ndarray]]
"""Frames, uint8 (H, W, 3) each, and place -> labels given there; gives the labels of each frame, int (H, W)."""

_LOG = "tracked.json"


@dataclass(frozen=True)
class Tracked:
    """What was done of one video.

    Attributes:
        video: its name.
        frames: how many masks were written.
        seconds: what they took, reading and writing included; of an earlier run, if it was done then.
        error: why it failed, or "".
    """

    video: str
    frames: int
    seconds: float
    error: str = ""


def track_videos(
    videos: Iterable[Video], track: Track, folder: Path, settings: Mapping[str, object]
) -> Iterator[Tracked]:
    """Tracks videos, and writes FOLDER/VIDEO/FRAME.png, as the servers and the toolkits read them.

    Videos that were finished before are not tracked again. One that fails is told of, and the others go on.

    Args:
        videos: what to track.
        track: the tracker, for one video.
        folder: where masks go; made where it is missing.
        settings: what the masks depend on. They stand in FOLDER/tracked.json.

    Yields:
        One for each video, in order.

    Raises:
        VideoError: the folder holds masks that were made with other settings.
    """
    log = folder / _LOG
    done = _read_log(log, settings)
    for video in videos:
        names = [path.stem for path in video.frames]
        before = done.get(video.name)
        if before is not None and all((folder / video.name / f"{name}.png").is_file() for name in names):
            yield Tracked(video.name, len(names), before)
            continue
        start = time.perf_counter()
        try:
            found = iter(track(video.images(), video.given()))
            for name in names:
                write_indexed(folder / video.name / f"{name}.png", next(found))
        except StopIteration:
            raise RuntimeError(f"{video.name}: the tracker gave fewer masks than there are frames") from None
        except (ValueError, OSError) as error:
            yield Tracked(video.name, 0, time.perf_counter() - start, str(error))
            continue
        done[video.name] = time.perf_counter() - start
        with replacing(log) as draft:
            draft.write_text(json.dumps({"settings": dict(settings), "seconds": done}, indent=1) + "\n")
        yield Tracked(video.name, len(names), done[video.name])


def zip_submission(folder: Path, videos: Iterable[Video], archive: Path, top: str = "") -> Path:
    """Packs the masks of videos for a server.

    Args:
        folder: as `track_videos` wrote it.
        videos: which.
        archive: the .zip to write, whole or not at all.
        top: a folder inside the archive that the videos' folders go into, such as "Annotations".

    Returns:
        The archive.

    Raises:
        VideoError: a mask is missing.
    """
    with replacing(archive) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as target:
        for video in videos:
            for frame in video.frames:
                mask = folder / video.name / f"{frame.stem}.png"
                if not mask.is_file():
                    raise VideoError(f"{mask}: expected a mask for each frame of a submission; track the video first")
                target.write(mask, "/".join(filter(None, (top, video.name, mask.name))))
    return archive


def _read_log(path: Path, settings: Mapping[str, object]) -> dict[str, float]:
    """Video -> seconds, of the videos that are done."""
    if not path.is_file():
        return {}
    log = json.loads(path.read_text())
    if log["settings"] != json.loads(json.dumps(dict(settings))):
        raise VideoError(
            f"{path.parent}: expected a new folder or one made with the same settings {dict(settings)}, "
            f"got one made with {log['settings']}; write elsewhere"
        )
    return log["seconds"]
