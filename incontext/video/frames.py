"""Frames of a video: one interface to files and folders, in which frame i is always the same picture."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from incontext.prefetch import prefetch

READERS = ("auto", "decord", "pyav")
"""What opens video files; "auto" takes decord where it is installed and agrees with PyAV on the frames."""

_AHEAD = 4
_BACKWARDS = 16  # frames read at once on the way back, since codecs only know the way forth


class VideoError(ValueError):
    """A video cannot be opened or read at all."""


class FrameError(ValueError):
    """One frame cannot be read; those around it may be fine.

    Attributes:
        index: the frame's number.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Frames(ABC, Sequence):
    """The frames of one video, to be had in any order: a sequence of uint8 (H, W, 3), upright.

    Attributes:
        name: the file or folder, for people.
        size: (H, W) of every frame.
        rate: frames a second, on average.
    """

    name: str
    size: tuple[int, int]
    rate: float

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def time(self, index: int) -> float:
        """When a frame is shown, in seconds from the first."""

    @abstractmethod
    def _load(self, index: int) -> np.ndarray:
        """Reads frame 0 <= index < len(self)."""

    def label(self, index: int) -> str:
        """What the results of a frame are called: its number in five digits, or more where there are more."""
        return f"{index:05d}"

    def place(self, index: int) -> str:
        """Where a frame is found, for messages."""
        return f"{self.name}, frame {index}"

    def read(self, index: int) -> np.ndarray:
        """Reads one frame: uint8 (H, W, 3).

        Raises:
            FrameError: it cannot be read, or has another size than the first.
            IndexError: there is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: expected a frame from 0 to {len(self) - 1}, got {index}")
        frame = self._load(index)
        if frame.shape[:2] != self.size:
            raise FrameError(
                index,
                f"{self.place(index)}: expected {_size(self.size)} pixels as in the first frame, got "
                f"{_size(frame.shape)}; resize it, or track the parts of one size on their own",
            )
        return frame

    def __getitem__(self, index: int | slice) -> np.ndarray | FrameRange:
        if isinstance(index, slice):
            return FrameRange(self, range(len(self))[index])
        return self.read(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, frame in self.stream(range(len(self))):
            if isinstance(frame, FrameError):
                raise frame
            yield frame

    def stream(self, indices: range) -> Iterator[tuple[int, np.ndarray | FrameError]]:
        """Reads frames in order, forwards or backwards, a few ahead in a thread.

        Args:
            indices: which.

        Yields:
            (index, frame), or (index, error) for a frame that cannot be read.
        """

        def load(part: range) -> list[tuple[int, np.ndarray | FrameError]]:
            read = {}
            for index in sorted(part):
                try:
                    read[index] = self.read(index)
                except FrameError as error:
                    read[index] = error
            return [(index, read[index]) for index in part]

        length, ahead = (1, _AHEAD) if indices.step > 0 else (_BACKWARDS, 1)
        parts = (indices[start : start + length] for start in range(0, len(indices), length))
        for part in prefetch(load, parts, threads=1, ahead=ahead):
            yield from part

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Lets go of the file."""


class FrameRange(Frames):
    """Some frames of others, in their order."""

    def __init__(self, source: Frames, indices: range) -> None:
        self.source, self.indices = source, indices
        self.name, self.size = source.name, source.size
        self.rate = source.rate / abs(indices.step)

    def __len__(self) -> int:
        return len(self.indices)

    def time(self, index: int) -> float:
        """See `Frames.time`."""
        return abs(self.source.time(self.indices[index]) - self.source.time(self.indices[0]))

    def label(self, index: int) -> str:
        """See `Frames.label`: as in the source."""
        return self.source.label(self.indices[index])

    def stream(self, indices: range) -> Iterator[tuple[int, np.ndarray | FrameError]]:
        """See `Frames.stream`."""
        chosen = self.indices[indices.start : None if indices.stop < 0 else indices.stop : indices.step]
        for index, (_, frame) in zip(indices, self.source.stream(chosen), strict=True):
            yield index, frame

    def _load(self, index: int) -> np.ndarray:
        return self.source.read(self.indices[index])

    def close(self) -> None:
        """Closes the source."""
        self.source.close()


def read_frames(path: str | os.PathLike, *, reader: str = "auto") -> Frames:
    """Opens a video. `frames[a:b:c]` is a part of it, `reversed(frames)` the way back.

    Args:
        path: a video file, or a folder of pictures, which are taken in the order of their names (2 before 10).
        reader: for files; see `READERS`.

    Returns:
        Its frames. Nothing but the first is read before it is needed.

    Raises:
        VideoError: there is nothing at the path, or nothing in it to see.
    """
    path = Path(path).expanduser()
    if reader not in READERS:
        raise ValueError(f"reader: expected one of {READERS}, got {reader!r}")
    if path.is_dir():
        from incontext.video.folder_frames import FolderFrames

        return FolderFrames(path)
    if not path.is_file():
        raise VideoError(f"{path}: expected a video file or a folder of frames, found nothing there")
    from incontext.video.pyav_frames import PyavFrames

    frames = PyavFrames(path)
    if reader == "pyav":
        return frames
    from incontext.video.decord_frames import DecordFrames

    try:
        return DecordFrames(frames)
    except VideoError:
        if reader == "decord":
            raise
        return frames


def _size(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"
