"""One image's way into a label job: what is to be done with it, and what its file turned out to hold."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from incontext.image import ImageError, open_image
from incontext.labeling.config import MAX_BYTES
from incontext.labeling.manifest import Recipe, Row


class JobStopped(OSError):
    """A job cannot go on: the disk is full, a folder is gone. What is done is kept; the same call goes on from
    there."""


def cannot_write(out: Path, error: OSError) -> JobStopped:
    """The error of a job whose output folder failed it."""
    return JobStopped(
        f"{out}: expected a folder that can be written to, got: {error}; mend that and start again, "
        "the job goes on where it stopped"
    )


@dataclass(frozen=True, eq=False)
class Task:
    """One image to label.

    Attributes:
        image: what the manifest calls it.
        path: its file.
        start: the folder that it was found from.
        mask: where its mask goes, below the output folder.
        recipe: what the mask is to be made with.
        correction: labels int32 (H, W) that a person corrected, to be taken instead of the model's.
        finished: the row of a mask that stands if the image's content is still the same.
    """

    image: str
    path: Path
    start: Path
    mask: str
    recipe: Recipe
    correction: np.ndarray | None = None
    finished: Row | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read for a task. One of `pixels`, `standing` and `error` is there, unless the task has a correction.

    Attributes:
        task: the task.
        started: `time.perf_counter()` when its turn came.
        sha256, bytes, modified: of the image's file; see `Row`.
        pixels: uint8 (H, W, 3), for the model.
        standing: the row of the mask that stands.
        error: why there is nothing.
    """

    task: Task
    started: float
    sha256: str | None = None
    bytes: int | None = None
    modified: int | None = None
    pixels: np.ndarray | None = None
    standing: Row | None = None
    error: str | None = None


def read(task: Task, max_pixels: int) -> Reading:
    """Reads the image of a task, in any thread.

    Args:
        task: what to read.
        max_pixels: larger images are errors; they are not decoded.

    Raises:
        JobStopped: the folder that the image was found from is gone.
    """
    reading = Reading(task, time.perf_counter())
    try:
        info = os.stat(task.path)
        reading = replace(reading, bytes=info.st_size, modified=info.st_mtime_ns)
        row = task.finished
        if row is not None and (row.bytes, row.modified) == (info.st_size, info.st_mtime_ns):
            return replace(reading, sha256=row.sha256, standing=row)
        _check_file(task.path, info.st_size)
        reading = replace(reading, sha256=sha256_of(task.path))
        if row is not None and row.sha256 == reading.sha256:
            return replace(reading, standing=row)
        if task.correction is not None:
            return reading
        _check_pixels(task.path, max_pixels)
        return replace(reading, pixels=open_image(task.path))
    except MemoryError:
        problem = f"{task.path}: expected a picture that fits into memory; cut it into parts"
    except ImageError as error:
        problem = str(error)
    except FileNotFoundError:
        problem = f"{task.path}: expected a picture, but there is no such file; check the path"
    except OSError as error:
        problem = f"{task.path}: expected a picture, but it cannot be read: {error}"
    if not task.start.is_dir():
        raise JobStopped(
            f"{task.start}: expected the folder of images, but it is gone; bring it back and start again, "
            "the job goes on where it stopped"
        )
    return replace(reading, error=problem)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_file(path: Path, size: int) -> None:
    if size > MAX_BYTES and path.is_file():
        raise ImageError(f"{path}: expected a picture of at most {MAX_BYTES >> 30} GiB, got {size / (1 << 30):.1f} GiB")
    if not path.is_file():
        raise ImageError(f"{path}: expected a picture, got a folder or device; name the pictures in it")
    if size == 0:
        raise ImageError(f"{path}: expected a picture, got an empty file (0 bytes); replace it")


def _check_pixels(path: Path, limit: int) -> None:
    """Looks at the size that the file states, before memory is spent on it."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # whatever is wrong with it, `open_image` explains it
        return
    if width * height > limit:
        raise ImageError(
            f"{path}: expected at most {limit} pixels, got {width} x {height}; cut it into parts or raise max_pixels"
        )
