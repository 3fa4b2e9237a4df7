"""Clips whose every frame says its own number, and frames to follow objects in."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from fake_models import scene

SIZE = (48, 64)  # (H, W)


def numbered(index: int, size=SIZE) -> np.ndarray:
    """A picture that holds `index` in eight black or white blocks, and a mark in its upper left corner."""
    image = np.full((*size, 3), 90, np.uint8)
    image[:8, :8] = (250, 40, 40)
    width = size[1] // 8
    for bit in range(8):
        image[size[0] // 2 :, bit * width : (bit + 1) * width] = 255 * (index >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """Reads the number again."""
    height, width = image.shape[:2]
    row = image[height * 3 // 4].mean(-1)
    return sum(int(row[bit * (width // 8) + width // 16] > 128) << bit for bit in range(8))


def write_clip(path: Path, frames, codec="libx264", times=None, options=None, rate=25, format=None) -> Path:
    """Writes frames; `times` are in hundredths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> Path:
    """Says in the header of an .mp4 that its pictures are to be shown turned by 90 degrees clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path


def moving(count: int, ids=(1, 2), size=SIZE, hidden=()) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Squares of different looks that move to the right, each at its own pace: frames, and their labels.

    Args:
        count: how many frames.
        ids: the objects'.
        size: (H, W).
        hidden: (id, frame) pairs at which an object is not there.
    """
    frames, truths = [], []
    for index in range(count):
        labels = np.zeros(size, np.int32)
        for row, id in enumerate(ids):
            if (id, index) not in hidden:
                left = 2 + index * (row + 1) % (size[1] - 14)
                labels[2 + row * 16 : 14 + row * 16, left : left + 12] = id
        frames.append(scene(labels, ids))
        truths.append(labels)
    return frames, truths
