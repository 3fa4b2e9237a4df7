"""Video files through PyAV."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import av
import numpy as np

from incontext.video.frames import FrameError, Frames, VideoError

_BROKEN = (av.error.FFmpegError, EOFError)


class PyavFrames(Frames):
    """A video file. Frames are numbered in the order in which they are shown, whatever the order in the file.

    The file is gone through once when it is opened, without decoding, for the time of every frame. Frame i is the frame
    of the i-th time: one that cannot be decoded leaves its number empty, and moves no other. Where frames have no
    times, or times start again, as in files that were put together end to end, frames are counted as they come.

    Attributes:
        path: the file.
        times: seconds from the first frame, ascending.
        rotation: by how many quarters, counterclockwise, pictures are turned to be upright.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            VideoError: the file is no video, has no pictures, or none of them can be read.
        """
        self.path, self.name = path, str(path)
        self._lock = Lock()
        self._container = self._open()
        self._stamps, self._keys, self._unit = self._scan()
        if not self._stamps:
            raise VideoError(f"{path}: expected a video, found no frame in it; the file is cut off or damaged")
        self.times = [float((stamp - self._stamps[0]) * self._unit) for stamp in self._stamps]
        self.rate = (len(self) - 1) / self.times[-1] if self.times[-1] > 0 else 25.0
        self._restart()
        first = next(self._decoded, None)
        if first is None:
            raise VideoError(f"{path}: none of its {len(self)} frames can be decoded; the file is damaged")
        self.rotation = round(getattr(first, "rotation", 0) / 90) % 4
        self.size = (first.height, first.width) if self.rotation % 2 == 0 else (first.width, first.height)
        self._seek(0)

    def __len__(self) -> int:
        return len(self._stamps)

    def time(self, index: int) -> float:
        """See `Frames.time`."""
        return self.times[index]

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._container.close()

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(str(self.path))
        except _BROKEN as error:
            raise VideoError(
                f"{self.path}: expected a video, but it cannot be opened: {error.strerror}; if it was cut off while "
                "it was written, its index is missing: repair it, or copy it again"
            ) from error
        streams = [each for each in container.streams.video if not _is_cover(each)]
        if not streams:
            found = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
            container.close()
            raise VideoError(f"{self.path}: expected a video, found no moving pictures in it, only {found}")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        return container

    def _scan(self) -> tuple[list[int], list[int], float]:
        """Times of all frames, and of those that decoding can start from, ascending; and what they count in."""
        stamps, keys, last = set(), set(), None
        self._counted = False
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    restarts = None not in (last, packet.dts) and packet.dts < last
                    self._counted |= packet.pts is None or packet.pts in stamps or restarts
                    last = packet.dts
                    stamps.add(packet.pts)
                    if packet.is_keyframe:
                        keys.add(packet.pts)
        except _BROKEN:
            pass  # a file that ends early: what is before the end counts
        if self._counted:
            total = sum(1 for _ in self._restart())
            return list(range(total)), [0], 1 / float(self._stream.average_rate or 25)
        return sorted(stamps), sorted(keys) or [min(stamps, default=0)], self._stream.time_base

    def _restart(self) -> Iterator[av.VideoFrame]:
        """Opens the file anew and decodes from its start."""
        self._container.close()
        self._container = self._open()
        self._decoded = self._decode()
        self._position, self._waiting, self._count = 0, None, 0
        return self._decoded

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames from where the file stands, without those that are broken."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                yield from (frame for frame in packet.decode() if not frame.is_corrupt)
            except StopIteration:
                return
            except av.error.InvalidDataError:
                continue
            except _BROKEN:
                return

    def _seek(self, index: int) -> None:
        """Goes to the last place before a frame that decoding can start from."""
        if self._counted or index == 0:
            self._restart()
            return
        key = self._keys[max(0, bisect_right(self._keys, self._stamps[index]) - 1)]
        self._container.seek(key, stream=self._stream)
        self._decoded = self._decode()
        self._position, self._waiting = bisect_right(self._stamps, key) - 1, None

    def _load(self, index: int) -> np.ndarray:
        with self._lock:
            frame = self._find(index)
        if frame is None:
            raise FrameError(index, f"{self.path}: frame {index} cannot be decoded; the file is damaged there")
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.rotation))

    def _find(self, index: int) -> av.VideoFrame | None:
        """The frame, or None where the file has none to show at its time."""
        stamp = self._stamps[index]
        place = bisect_right(self._keys, stamp) - 1
        is_ahead = (
            not self._counted and place >= 0 and self._keys[place] > self._stamps[min(self._position, len(self) - 1)]
        )
        if index < self._position or is_ahead:
            self._seek(index)
        while True:
            if self._waiting is None:
                self._waiting = next(self._decoded, None)
                if self._waiting is None:
                    return None
                if self._counted:
                    self._waiting.pts = self._count
                    self._count += 1
            if self._waiting.pts is not None and self._waiting.pts > stamp:
                return None
            frame, self._waiting = self._waiting, None
            if frame.pts == stamp:
                self._position = index + 1
                return frame


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether a stream is but a picture on the cover of a song."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
