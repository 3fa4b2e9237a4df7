"""A picture of the tracks over time: when each object is seen, how large, how certain, and where it went."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from incontext.export import write_image
from incontext.export.lettering import lettering
from incontext.export.raster import display_colour
from incontext.image import resize_image
from incontext.video.doubts import Watch
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo

_WIDTH, _MARGIN, _LEFT, _ROW, _GAP = 1200, 40, 150, 44, 12
_COLUMNS = _WIDTH - _LEFT - _MARGIN
_PAPER, _INK, _DIM, _RULE, _ALARM = (250, 250, 251), (28, 31, 38), (112, 118, 130), (222, 225, 230), (214, 40, 40)


class _Track:
    """One object in as many columns as the picture has."""

    def __init__(self) -> None:
        self.area, self.certainty, self.seen = (np.zeros(_COLUMNS) for _ in range(3))
        self.centre = np.full((_COLUMNS, 2), np.nan)


@contextmanager
def track_picture(path: str | os.PathLike, video: TrackedVideo) -> Iterator[Callable[[TrackedFrame], None]]:
    """Draws one picture, whole or not at all. It and the memory it takes do not grow with the video.

    Above, the first frame with the ways of the centroids. Below, a row for each object: its height is the area, over
    the largest of that object; it is as strong in colour as the tracker was certain; red marks are where to look.

    Args:
        path: a picture file.
        video: what is drawn.

    Yields:
        A function that takes the frames, in order.
    """
    tracks: dict[int, _Track] = {}
    watch, first, last = Watch(), None, 0.0
    count = max(1, len(video.labels))

    def write(frame: TrackedFrame) -> None:
        nonlocal first, last
        start, end = (frame.place * _COLUMNS // count, (frame.place + 1) * _COLUMNS // count)
        if first is None:
            first = frame.image
        last = frame.time
        watch.see(frame)
        for id, extent in frame.extents.items():
            track, span = tracks.setdefault(id, _Track()), slice(start, max(end, start + 1))
            track.area[span] += extent.area
            track.certainty[span] += frame.certainty.get(id, 0.0)
            track.seen[span] += 1
            track.centre[start] = extent.centre

    yield write
    if first is None:
        return
    marks = [(doubt.place * _COLUMNS // count, doubt.id) for doubt in watch.doubts]
    write_image(path, _draw(video, tracks, marks, first, last))


def _draw(
    video: TrackedVideo, tracks: dict[int, _Track], marks: list[tuple[int, int]], first: np.ndarray, last: float
) -> np.ndarray:
    scale = min(_COLUMNS / video.size[1], 420 / video.size[0])
    shown = resize_image(first, tuple(max(1, round(side * scale)) for side in video.size))
    top = _MARGIN + 40 + shown.shape[0] + _GAP * 2
    page = Image.new("RGB", (_WIDTH, top + len(tracks) * (_ROW + _GAP) + 30 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    name, font = lettering(video.name, 20)
    draw.text((_MARGIN, _MARGIN), name, font=font, fill=_INK)
    note = f"{len(video.labels)} frames, {len(tracks)} object{'s' * (len(tracks) != 1)}"
    draw.text((_WIDTH - _MARGIN, _MARGIN + 4), note, font=ImageFont.load_default(14), fill=_DIM, anchor="ra")
    page.paste(Image.fromarray((shown * 0.55 + 255 * 0.45).astype(np.uint8)), (_LEFT, _MARGIN + 40))
    for row, (id, track) in enumerate(sorted(tracks.items())):
        _draw_way(draw, track, id, scale)
        _draw_row(draw, track, id, video.title(id), top + row * (_ROW + _GAP))
        for column, marked in marks:
            if marked == id:
                x, y = _LEFT + column, top + row * (_ROW + _GAP)
                draw.polygon([(x - 4, y - 7), (x + 4, y - 7), (x, y)], fill=_ALARM)
    bottom = top + len(tracks) * (_ROW + _GAP)
    for part in range(5):
        x = _LEFT + _COLUMNS * part // 4
        draw.text((x, bottom + 4), f"{last * part / 4:.1f} s", font=ImageFont.load_default(13), fill=_DIM, anchor="ma")
    return np.asarray(page)


def _draw_way(draw: ImageDraw.ImageDraw, track: _Track, id: int, scale: float) -> None:
    """The centroid's way; where the object is away for long, the line ends."""
    there = np.flatnonzero(~np.isnan(track.centre[:, 0]))
    points = [(_LEFT + x * scale, _MARGIN + 40 + y * scale) for x, y in track.centre[there]]
    usual = np.median(np.diff(there)) if len(there) > 1 else 1
    for before, after, step in zip(points, points[1:], np.diff(there), strict=False):
        if step <= 3 * usual:
            draw.line((*before, *after), fill=display_colour(id), width=3)
    for (x, y), radius in zip((points[0], points[-1]), (6, 3), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=display_colour(id), outline=(255, 255, 255))


def _draw_row(draw: ImageDraw.ImageDraw, track: _Track, id: int, title: str, y: int) -> None:
    title, font = lettering(title, 14)
    while draw.textlength(title, font=font) > _LEFT - _MARGIN - 24 and len(title) > 1:
        title = title.rstrip("…")[:-1] + "…"
    draw.rectangle((_MARGIN, y + _ROW / 2 - 6, _MARGIN + 12, y + _ROW / 2 + 6), fill=display_colour(id))
    draw.text((_MARGIN + 20, y + _ROW / 2), title, font=font, fill=_INK, anchor="lm")
    draw.line((_LEFT, y + _ROW, _LEFT + _COLUMNS, y + _ROW), fill=_RULE)
    area, certainty = (each / np.maximum(track.seen, 1) for each in (track.area, track.certainty))
    paper, colour = np.array(_PAPER), np.array(display_colour(id))
    for x in np.flatnonzero(track.seen):
        shade = paper + (colour - paper) * (0.25 + 0.75 * certainty[x])
        height = max(1, _ROW * area[x] / area.max())
        draw.line((_LEFT + x, y + _ROW - height, _LEFT + x, y + _ROW), fill=tuple(shade.astype(int).tolist()))
