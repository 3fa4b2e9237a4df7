"""Small pictures and masks as data URIs, for pages that carry what they show."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from incontext.export import display_colour
from incontext.image import resize_image, resize_labels

SIDE = 320
"""Longest side in pixels."""

_JPEG_QUALITY = 75
_TINT, _EDGE = 110, 255  # opacity of a mask and of its outline, 0..255
_COLOURS = 120  # each takes two entries of a palette of 256: tint and outline


def picture_uri(image: np.ndarray) -> str:
    """A JPEG of at most `SIDE` pixels a side.

    Args:
        image: uint8 (H, W, 3).
    """
    return _uri(Image.fromarray(resize_image(image, _small(image.shape[:2]))), "JPEG", quality=_JPEG_QUALITY)


def tint_uri(labels: np.ndarray) -> str:
    """A PNG to lay over the picture: ids in their display colours, half transparent, outlined; the rest clear.

    Args:
        labels: int (H, W). Beyond 120 ids colours repeat.
    """
    labels = resize_labels(labels, _small(labels.shape))
    ids = [int(id) for id in np.unique(labels) if id > 0]
    slots = np.zeros(labels.shape, np.uint8)
    for number, id in enumerate(ids):
        slots[labels == id] = 1 + number % _COLOURS
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    slots[edge & (slots > 0)] += _COLOURS
    colours = [(0, 0, 0)] * (2 * _COLOURS + 1)
    for number, id in enumerate(ids[:_COLOURS]):
        colours[1 + number] = colours[1 + number + _COLOURS] = display_colour(id)
    picture = Image.fromarray(slots)
    picture.putpalette([channel for colour in colours for channel in colour])
    opacity = bytes([0, *[_TINT] * _COLOURS, *[_EDGE] * _COLOURS])
    return _uri(picture, "PNG", transparency=opacity, optimize=True)


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _uri(picture: Image.Image, form: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
