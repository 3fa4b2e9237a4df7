"""Cut-out objects, pasted at a random pose, size and light onto another background."""

from __future__ import annotations

import numpy as np
from PIL import Image

from incontext.training.augment import jitter
from incontext.training.pack import IGNORE_ID, Record


def cut_out(rng: np.random.Generator, record: Record) -> Image.Image | None:
    """Cuts a random instance out of an image: RGBA, or None if all are too small.

    Args:
        rng: source of randomness.
        record: with instances.
    """
    ids, counts = np.unique(record.instances, return_counts=True)
    large = ids[(counts > 0.01 * record.instances.size) & (ids != 0) & (ids != IGNORE_ID)]
    if large.size == 0:
        return None
    mask = record.instances == rng.choice(large)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Image.fromarray(np.dstack((record.image[part], mask[part].astype(np.uint8) * 255)))


def paste(rng: np.random.Generator, canvas: Image.Image, ids: np.ndarray, cut: Image.Image, id: int) -> None:
    """Pastes an object at a random pose onto a canvas and its id map.

    Args:
        rng: source of randomness.
        canvas: RGB, changed in place.
        ids: uint8 (H, W) of the canvas, changed in place.
        cut: RGBA.
        id: what the object is called in `ids`.
    """
    height, width = ids.shape
    scale = rng.uniform(0.25, 0.8) * min(height, width) / max(cut.size)
    cut = cut.resize(tuple(max(4, round(length * scale)) for length in cut.size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut = cut.rotate(rng.normal(0, 20), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(cut)
    cut = Image.fromarray(np.dstack((jitter(rng, pixels[..., :3]), pixels[..., 3])))
    left = int(rng.integers(-cut.width // 4, max(1, width - 3 * cut.width // 4)))
    top = int(rng.integers(-cut.height // 4, max(1, height - 3 * cut.height // 4)))
    canvas.paste(cut, (left, top), cut.getchannel("A"))
    stamp = Image.fromarray(ids)
    stamp.paste(id, (left, top), cut.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    ids[:] = np.asarray(stamp)
