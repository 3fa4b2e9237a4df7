"""Shades: the colours that a mask's pixels have, how many pixels each, and how those lie."""

from __future__ import annotations

import numpy as np

SAME = 12.0
"""Soft masks: shades nearer than this are one colour (JPEG rounds plain areas up or down)."""

NEAR = 48.0
"""Soft masks: a rare shade within this distance of a common one is its noise."""


def histogram(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct colours of uint8 (H, W, 3): (n, 3), each pixel's index into them (H, W), counts (n,)."""
    packed = pack(image)
    present = np.zeros(1 << 24, bool)  # much faster than sorting the pixels
    present[packed] = True
    codes = np.flatnonzero(present)
    table = np.empty(1 << 24, np.int32)
    table[codes] = np.arange(len(codes), dtype=np.int32)
    slots = table[packed]
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    return colours, slots, np.bincount(slots.ravel(), minlength=len(codes))


def pack(colours: np.ndarray) -> np.ndarray:
    """Integers (..., 3) in 0..255 -> int32 (...), one number per colour."""
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def squared_distances(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 3), (m, 3) -> float32 (n, m)."""
    return ((colours[:, None].astype(np.float32) - others[None].astype(np.float32)) ** 2).sum(axis=-1)


def in_plain_area(image: np.ndarray, tolerance: int = 0) -> np.ndarray:
    """Whether all 3 x 3 pixels around one are within a tolerance of it: (H, W[, C]) -> bool (H, W)."""
    image = image.astype(np.int16 if image.dtype == np.uint8 else np.int32)
    channels = [image] if image.ndim == 2 else [image[..., c] for c in range(image.shape[2])]
    height, width = image.shape[:2]
    plain = np.ones((height, width), bool)
    for channel in channels:
        padded = np.pad(channel, 1, mode="edge")
        for dy in range(3):
            for dx in range(3):
                plain &= np.abs(padded[dy : dy + height, dx : dx + width] - channel) <= tolerance
    return plain


def is_blend(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether a pixel's colour lies between those of two pixels on opposite sides of it, up to 3 away.

    Args:
        image: uint8 (H, W, 3).
        where: bool (H, W), the pixels to look at.

    Returns:
        bool (n,), one for each pixel of `where`.
    """
    rows, columns = np.nonzero(where)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
    here = padded[rows + 3, columns + 3].astype(np.float32)
    found = np.zeros(len(rows), bool)
    for reach in (1, 2, 3):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            one = padded[rows + 3 + reach * dy, columns + 3 + reach * dx].astype(np.float32)
            other = padded[rows + 3 - reach * dy, columns + 3 - reach * dx].astype(np.float32)
            line, offset = other - one, here - one
            length = (line**2).sum(axis=1)
            along = (offset * line).sum(axis=1) / np.maximum(length, 1)
            aside = ((offset - along[:, None] * line) ** 2).sum(axis=1)
            inside = np.minimum(along, 1 - along) * length**0.5 > SAME
            found |= inside & (aside <= (SAME / 2) ** 2)
    return found


def is_noisy_binary(grey: np.ndarray) -> bool:
    """Whether uint8 (H, W) is black and white with JPEG's noise: plain at both ends, ragged between."""
    counts = np.bincount(grey.ravel(), minlength=256)
    plain = np.bincount(grey[in_plain_area(grey)], minlength=256)
    top = 192 + int(plain[192:].argmax())
    ragged = ((counts > 0) & (plain < 0.1 * counts)).sum()
    low, high = plain[:9].sum(), plain[max(top - 8, 192) : top + 9].sum()
    ends = low + high >= 0.98 * plain.sum() and high >= 0.05 * counts[1:].sum()
    return bool(ragged >= 8 and ragged >= 0.6 * (counts > 0).sum() and ends)
