"""Pixels out: indexed PNGs for programs, overlays for people."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from incontext.atomic import replacing
from incontext.palette import voc_colours
from incontext.types import IGNORE

_JPEG_QUALITY = 92


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a picture; the suffix says the format (.png, .jpg, .webp, .tif, .bmp). Whole or not at all.

    Args:
        path: the file; missing folders are made.
        image: uint8 (H, W, 3) RGB or (H, W) grey.

    Raises:
        ValueError: the suffix is no picture format, or the array has another form.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"{path}: expected uint8 (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise ValueError(f"{path}: expected a picture suffix such as .png or .jpg, got {suffix!r}")
    with replacing(path) as draft:
        options = {"quality": _JPEG_QUALITY} if suffix in (".jpg", ".jpeg", ".webp") else {}
        Image.fromarray(image).save(draft, **options)


def write_indexed(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes labels as a PNG whose pixel values are the ids. Whole or not at all.

    Up to id 254 it is a palette image with PASCAL VOC's colours, `IGNORE` is 255; above, it is 16-bit grey
    and `IGNORE` is 65535. `incontext.open_labels` reads both back.

    Args:
        path: the file, ending in .png; missing folders are made.
        labels: integers (H, W): 0, `IGNORE`, ids from 1 to 65534.

    Raises:
        ValueError: the path isn't a .png, or the array has another form or other values.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: expected a file that ends in .png (other formats can change ids)")
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"{path}: expected integer labels (H, W), got {labels.dtype} {labels.shape}")
    if labels.min() < IGNORE or labels.max() > 65534:
        raise ValueError(
            f"{path}: expected labels from {IGNORE} to 65534, got {labels.min()} to {labels.max()}; renumber them"
        )
    deep = labels.max() > 254
    values = np.where(labels == IGNORE, 65535 if deep else 255, labels)
    if deep:
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette(voc_colours().tobytes())
    with replacing(path) as draft:
        image.save(draft, optimize=not deep)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    colours: Mapping[int, Sequence[int]] | None = None,
    opacity: float = 0.5,
    outline: bool = True,
) -> np.ndarray:
    """Draws labels over their picture: every id tinted and outlined in its colour, `IGNORE` hatched.

    Args:
        image: uint8 (H, W, 3).
        labels: integers (H, W).
        colours: id -> (r, g, b); ids that it lacks take `display_colour`.
        opacity: of the tint, 0..1.
        outline: whether to outline.

    Returns:
        uint8 (H, W, 3), a new array.

    Raises:
        ValueError: the sizes differ, or the opacity is outside 0..1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"overlay: expected labels of size {image.shape[:2]} like the image, got {labels.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"overlay: expected an opacity in 0..1, got {opacity}")
    ids, slots = np.unique(labels, return_inverse=True)
    slots = slots.reshape(labels.shape)
    table = np.array([(colours or {}).get(int(i)) or display_colour(int(i)) for i in ids], np.float32)
    tint = table[slots]
    strength = np.where(labels > 0, np.float32(opacity), np.float32(0))
    if outline:
        strength[(labels > 0) & _edges(labels, width=max(1, round(min(labels.shape) / 220)))] = 1
    drawn = image + (tint - image) * strength[..., None]
    if (labels == IGNORE).any():
        rows, columns = np.indices(labels.shape, sparse=True)
        hatch = (labels == IGNORE) & ((rows + columns) // 3 % 3 == 0)
        drawn[hatch] = 0.3 * drawn[hatch] + 0.7 * 235
    return drawn.round().astype(np.uint8)


def display_colour(id: int) -> tuple[int, int, int]:
    """The colour in which people see an id, in overlays and legends; not the one that the model paints."""
    if id <= 0:
        return (0, 0, 0)
    if id <= len(_DISPLAY):
        return _DISPLAY[id - 1]
    turn = id - len(_DISPLAY)  # golden-ratio steps spread any number of hues
    rgb = colorsys.hsv_to_rgb(turn * 0.6180339887 % 1, (0.85, 0.6, 1.0)[turn % 3], (1.0, 0.8)[turn % 2])
    return tuple(round(255 * channel) for channel in rgb)


_DISPLAY = (
    (0, 152, 255),
    (255, 184, 0),
    (255, 56, 92),
    (0, 190, 110),
    (150, 90, 235),
    (255, 116, 30),
    (0, 205, 215),
    (240, 85, 185),
    (140, 205, 30),
    (60, 90, 240),
    (185, 115, 65),
    (165, 175, 190),
)


def _edges(labels: np.ndarray, width: int) -> np.ndarray:
    """Whether another label is within `width` pixels along rows or columns: bool (H, W)."""
    edges = np.zeros(labels.shape, bool)
    for reach in range(1, width + 1):
        for axis in (0, 1):
            ahead = [slice(None)] * 2
            behind = [slice(None)] * 2
            ahead[axis], behind[axis] = slice(reach, None), slice(None, -reach)
            differs = labels[tuple(ahead)] != labels[tuple(behind)]
            edges[tuple(ahead)] |= differs
            edges[tuple(behind)] |= differs
    return edges
