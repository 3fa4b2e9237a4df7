"""Video files through decord, which is quicker where it is right."""

from __future__ import annotations

import numpy as np

from incontext.video.frames import Frames, VideoError
from incontext.video.pyav_frames import PyavFrames

_TOLERANCE = 2e-3  # seconds; decord keeps times as 32-bit floats


class DecordFrames(Frames):
    """A video file that PyAV has opened, read by decord.

    Where it jumps in a file whose groups of pictures are open, or in MPEG-4, decord lands on other frames than it says,
    and whether it turns a picture upright depends on its version. So turned files are refused, files on whose
    frames the two disagree too, and decord reads only what comes in order from the start.
    """

    def __init__(self, frames: PyavFrames) -> None:
        """
        Args:
            frames: the file, opened. It is read where decord fails.

        Raises:
            VideoError: decord is not installed, cannot open the file, or finds other frames in it, or it is turned.
        """
        if frames.rotation:
            raise VideoError(f"{frames.name}: its pictures are turned, read it with reader='pyav'")
        try:
            import decord
        except ImportError as error:
            raise VideoError("decord is not installed; install it, or read videos with reader='pyav'") from error
        self._frames = frames
        self.name, self.size, self.rate = frames.name, frames.size, frames.rate
        try:
            self._reader = decord.VideoReader(frames.name, num_threads=1)
            times = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(f"{frames.name}: decord cannot read it: {str(error).splitlines()[0]}") from error
        expected = np.array(frames.times)
        if len(times) != len(expected) or np.abs(times - times[0] - expected).max() > _TOLERANCE:
            raise VideoError(
                f"{frames.name}: decord finds other frames ({len(times)}) than PyAV ({len(expected)}); read it with "
                "reader='pyav'"
            )
        self._error, self._next = decord.DECORDError, 0

    def __len__(self) -> int:
        return len(self._frames)

    def time(self, index: int) -> float:
        """See `Frames.time`."""
        return self._frames.time(index)

    def close(self) -> None:
        """Closes the file."""
        self._frames.close()

    def _load(self, index: int) -> np.ndarray:
        if index == 0:
            self._reader.seek(0)
        elif index != self._next:
            return self._frames.read(index)
        try:
            picture = self._reader.next().asnumpy()
        except (self._error, RuntimeError, StopIteration):
            self._next = 0
            return self._frames.read(index)
        self._next = index + 1
        return picture
