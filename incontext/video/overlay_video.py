"""A video for people: every object tinted, with its id and name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

from incontext.atomic import replacing
from incontext.export import overlay
from incontext.export.lettering import lettering
from incontext.export.raster import display_colour
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo

_UNIT = Fraction(1, 90000)
_QUALITY = {"crf": "20", "preset": "veryfast"}


@contextmanager
def overlay_video(path: str | os.PathLike, video: TrackedVideo) -> Iterator[Callable[[TrackedFrame], None]]:
    """Writes H.264, whole or not at all; without frames, nothing. Frames are shown when the video shows them.

    Args:
        path: the file, ending in .mp4 or .mkv.
        video: what is written.

    Yields:
        A function that takes the frames, in order.
    """
    container, stream, last = None, None, -1
    with ExitStack() as opened:

        def write(frame: TrackedFrame) -> None:
            nonlocal container, stream, last
            if container is None:  # a file without frames would be none
                container = opened.enter_context(av.open(str(opened.enter_context(replacing(path))), "w"))
                stream = _add_stream(container, video)
            drawn = draw_objects(frame, video)
            drawn = np.pad(
                drawn, [(0, stream.height - drawn.shape[0]), (0, stream.width - drawn.shape[1]), (0, 0)], "edge"
            )
            picture = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            last = max(last + 1, round(frame.time / _UNIT))
            picture.pts, picture.time_base = last, _UNIT
            container.mux(stream.encode(picture))

        yield write
        if container is not None:
            container.mux(stream.encode())


def _add_stream(container: av.container.OutputContainer, video: TrackedVideo) -> av.VideoStream:
    rate = Fraction(video.rate).limit_denominator(1001)
    stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
    stream.height, stream.width = (side + side % 2 for side in video.size)  # H.264 halves the colours
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _UNIT
    return stream


def draw_objects(frame: TrackedFrame, video: TrackedVideo) -> np.ndarray:
    """Tints and names the objects of one frame: uint8 (H, W, 3)."""
    image = Image.fromarray(overlay(frame.image, frame.labels))
    draw = ImageDraw.Draw(image)
    size = max(11, round(min(frame.labels.shape) / 28))
    for id, extent in frame.extents.items():
        text, font = lettering(video.title(id), size)
        width, pad = draw.textlength(text, font=font), size // 4
        left = min(max(pad, extent.centre[0] - width / 2), max(pad, image.width - width - pad))
        top = min(max(pad, extent.centre[1] - size / 2), max(pad, image.height - size - 2 * pad))
        colour = display_colour(id)
        draw.rounded_rectangle((left - pad, top - pad, left + width + pad, top + size + pad), pad, fill=colour)
        dark = sum(weight * channel for weight, channel in zip((0.3, 0.6, 0.1), colour, strict=True)) > 140
        draw.text((left, top + size / 2), text, font=font, fill=(20, 20, 20) if dark else (255, 255, 255), anchor="lm")
    return np.asarray(image)
