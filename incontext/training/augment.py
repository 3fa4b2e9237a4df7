"""Random views of one image with its label maps: crops, and the colour changes that a cut-out gets before pasting.

Colours and mirroring of whole views are changed on the device that trains; see `looks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def random_box(
    rng: np.random.Generator,
    size: tuple[int, int],
    area: tuple[float, float] = (0.35, 1.0),
    stretch: float = 0.3,
) -> tuple[float, float, float, float]:
    """Draws a crop of an image.

    Args:
        rng: source of randomness.
        size: (H, W) of the image.
        area: range of the crop's share of the image.
        stretch: the crop's aspect departs from the image's by a factor up to exp(stretch).

    Returns:
        (left, top, right, bottom) in pixels.
    """
    height, width = size
    share, ratio = np.sqrt(rng.uniform(*area)), np.exp(rng.uniform(-stretch, stretch) / 2)
    h, w = min(1.0, share / ratio) * height, min(1.0, share * ratio) * width
    top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
    return left, top, left + w, top + h


def crop(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cuts a box out of an image and its id maps and resizes it.

    Args:
        image: uint8 (H, W, 3).
        maps: uint8 (H, W) id maps.
        box: (left, top, right, bottom) in pixels.
        size: (height, width) of the result.

    Returns:
        The view and its maps.
    """
    target = (size[1], size[0])
    view = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC, box=box))
    return view, [np.asarray(Image.fromarray(ids).resize(target, Image.Resampling.NEAREST, box=box)) for ids in maps]


def jitter(rng: np.random.Generator, image: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Changes brightness, contrast, saturation and white balance at random.

    Args:
        rng: source of randomness.
        image: uint8 (H, W, 3).
        strength: 0 changes nothing; 1 is the usual range.

    Returns:
        uint8 (H, W, 3).
    """
    pixels = image.astype(np.float32)
    grey = pixels @ np.float32([0.299, 0.587, 0.114])
    saturation = np.exp(rng.uniform(-0.5, 0.4) * strength)
    pixels = grey[..., None] + (pixels - grey[..., None]) * saturation
    contrast = np.exp(rng.uniform(-0.3, 0.3) * strength)
    balance = np.exp(rng.uniform(-0.08, 0.08, 3) * strength) * np.exp(rng.uniform(-0.25, 0.25) * strength)
    mean = grey.mean()
    pixels = ((pixels - mean) * contrast + mean) * balance
    return pixels.clip(0, 255).astype(np.uint8)
