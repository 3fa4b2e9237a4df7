"""Pictures and masks: opening, resizing, normalising.

This module alone knows the normalisation constants and the resampling filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from incontext.colour_masks import (
    ColourCode,
    ColourError,
    match_colours,
    number_colours,
    paint_slots,
    read_colours,
    read_levels,
)
from incontext.palette import voc_colours
from incontext.picture_file import LOSSY_FORMATS, ImageError, decode, describe
from incontext.shades import is_noisy_binary
from incontext.types import IGNORE

__all__ = [
    "IMAGE_FILTER",
    "MEAN",
    "STD",
    "ImageError",
    "denormalise",
    "find_colours",
    "normalise",
    "open_image",
    "open_labels",
    "resize_image",
    "resize_labels",
]

MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean of RGB in 0..1."""

STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation of RGB in 0..1."""

IMAGE_FILTER = Image.Resampling.BICUBIC


def open_image(source: Any) -> np.ndarray:
    """Reads a picture as RGB.

    EXIF orientation is applied. Grey becomes RGB; CMYK, LAB and palettes are converted. Transparent parts
    show white, as viewers and paper do. More than 8 bits are scaled by the smallest usual depth (10, 12, 14,
    16 bits) that holds the brightest pixel, since a 12-bit camera in a 16-bit file would come out almost
    black. Of several pages or frames the first counts.

    Args:
        source: path, binary file object, PIL image, or array: uint8, uint16 or bool, or float in 0..1 or
            0..255; shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Returns:
        uint8 (H, W, 3).

    Raises:
        ImageError: the file is missing, empty, truncated, too large or no picture, or the array has another
            form.
    """
    pixels, _ = decode(source)
    if isinstance(pixels, Image.Image):
        deep = pixels.mode in _DEEP_MODES
        if pixels.mode in ("P", *_ALPHA_MODES) or "transparency" in pixels.info and not deep:
            pixels = pixels.convert("RGBA")
        elif not deep and pixels.mode not in ("L", "1"):
            pixels = pixels.convert("RGB")
        pixels = np.asarray(pixels)
    name = describe(source)
    if pixels.ndim == 2:
        return np.repeat(_to_bytes(pixels, name)[..., None], 3, axis=2)
    colours = _to_bytes(pixels[..., :3], name)
    if pixels.shape[2] == 4:
        alpha = _to_bytes(pixels[..., 3:], name).astype(np.uint16)  # its depth is its own
        colours = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return np.ascontiguousarray(colours.astype(np.uint8))


def open_labels(source: Any, colours: Mapping[int, Sequence[int]] | None = None) -> np.ndarray:
    """Reads a mask as labels.

    What the values mean depends on the file:

    - palette images: indices, never their colours. Index 255 is `IGNORE` if there are other ids or the
      palette is VOC's, else it is object 1.
    - grey, 8 bits: ids; 255 as above. Soft black and white (anti-aliased, blurred, JPEG) is cut in the
      middle: object 1.
    - grey, 16 bits: ids; 65535 likewise.
    - 1 bit and bool: object 1. Floats in 0..1: object 1 from 0.5 on. Signed int arrays: labels as they are.
    - colours: each distinct colour an id, blended or noisy edges aside; see `find_colours` for which colour
      gets which.
    - transparent pixels are background. If nothing but black is left, that is object 1.

    EXIF orientation is applied.

    Args:
        source: path, binary file object, PIL image, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        colours: id -> (r, g, b) for masks coded in colours; may hold 0 (else black is the background) and
            `IGNORE`. Other masks don't need it. Without it, one mask's colours are numbered by themselves.

    Returns:
        int32 (H, W): 0 background, `IGNORE`, ids >= 1.

    Raises:
        ImageError: as for `open_image`; or it is no mask, or it has a colour that isn't in `colours`.
    """
    mask, code = _read_mask(source)
    if code is None:
        return mask
    try:
        return match_colours(mask, code, colours or number_colours([code]))
    except ColourError as error:
        raise ImageError(f"{describe(source)}: {error}") from error


def find_colours(sources: Iterable[Any]) -> dict[int, tuple[int, int, int]]:
    """The table of ids for masks coded in colours, so that a colour means the same id in all of them.

    Black is the background (white where no mask has black). If all colours are those of VOC's indexed PNGs,
    ids are VOC's indices; else they count from 1 in a fixed order of the colours. Masks that are not coded in
    colours add nothing.

    Args:
        sources: masks; see `open_labels`.

    Returns:
        id -> (r, g, b), for `open_labels`; empty if no mask is coded in colours.

    Raises:
        ImageError: as for `open_labels`.
    """
    codes = [code for _, code in map(_read_mask, sources) if code is not None]
    try:
        return number_colours(codes)
    except ColourError as error:
        raise ImageError(f"masks: {error}") from error


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture with PIL's bicubic filter: uint8 (H, W, 3) -> uint8 (*size, 3)."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), IMAGE_FILTER))


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels to the nearest pixels, as PIL does: any (H, W, ...) -> (*size, ...), same type."""
    if labels.shape[:2] == tuple(size):
        return labels
    rows, columns = (_nearest(old, new) for old, new in zip(labels.shape[:2], size, strict=True))
    return labels[rows[:, None], columns]


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of `new` pixels, which of `old` it takes: intp (new,)."""
    # PIL adds the step up instead of multiplying; doing the same settles ties as it does.
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.minimum(np.cumsum(steps).astype(np.intp), old - 1)


def normalise(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """What the model sees: (image / 255 - MEAN) / STD.

    Args:
        images: uint8 (..., H, W, 3), or float in 0..255.

    Returns:
        float32 (..., 3, H, W), on the images' device.
    """
    images = torch.as_tensor(images)
    mean, std = (torch.tensor(values, device=images.device) for values in (MEAN, STD))
    return rearrange((images.float() / 255 - mean) / std, "... h w c -> ... c h w").contiguous()


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """The way back from `normalise`: float (..., 3, H, W) -> float32 (..., 3, H, W), clipped to 0..255."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return ((images.float() * std + mean) * 255).clamp(0, 255)


_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def _to_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Any numeric array -> uint8 of the same shape."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 255):
            raise ImageError(f"{name}: expected floats in 0..1 or 0..255, got {low} to {high}; scale them first")
        return (pixels * (255 if high <= 1 else 1)).round().astype(np.uint8)
    if low < 0 or high > 0xFFFF:
        raise ImageError(f"{name}: expected values in 0..65535, got {low} to {high}; scale them first")
    top = next(top for top in (0xFF, 0x3FF, 0xFFF, 0x3FFF, 0xFFFF) if high <= top)
    return (pixels * (255 / top)).round().astype(np.uint8)


def _read_mask(source: Any) -> tuple[np.ndarray, ColourCode | None]:
    """Labels int32 (H, W) and None; or, of a mask coded in colours, uint8 (H, W, 3) and its code."""
    pixels, form = decode(source)
    name, lossy = describe(source), form in LOSSY_FORMATS
    try:
        if isinstance(pixels, np.ndarray):
            return _labels_of_array(pixels, name, lossy)
        if pixels.mode == "P":
            return _labels_of_indices(pixels), None
        if pixels.mode in _ALPHA_MODES:
            return _labels_of_array(np.asarray(pixels.convert("RGBA")), name, lossy)
        if pixels.mode == "I" and form == "PNG":  # some Pillow versions widen 16 bits
            return _labels_of_array(np.asarray(pixels).astype(np.uint16), name, lossy)
        if pixels.mode not in ("1", "L", *_DEEP_MODES):
            pixels = pixels.convert("RGB")
        return _labels_of_array(np.asarray(pixels), name, lossy)
    except ColourError as error:
        raise ImageError(f"{name}: {error}") from error


def _labels_of_indices(image: Image.Image) -> np.ndarray:
    indices = np.asarray(image)
    table = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(indices)
    used_colours = [tuple(table[i].tolist()) for i in used if i < len(table)]
    if sorted(used_colours) == [(0, 0, 0), (255, 255, 255)] and len(used) == 2:
        # Black and white: programs store the two in either order.
        return (table[indices][..., 0] > 0).astype(np.int32)
    void = len(table) == 256 and (table[255] == voc_colours()[255]).all()
    return _spare_top(indices, 255, always=bool(void))


def _labels_of_array(pixels: np.ndarray, name: str, lossy: bool) -> tuple[np.ndarray, ColourCode | None]:
    if pixels.ndim == 3:
        pixels = _to_bytes(pixels, name)
        if pixels.shape[2] == 4:
            pixels = _drop_alpha(pixels)
        if pixels.ndim == 3 and _is_grey(pixels):
            pixels = pixels[..., 1]
        if pixels.ndim == 3:
            return pixels, read_colours(pixels, lossy)
    if pixels.dtype == bool:
        return pixels.astype(np.int32), None
    if pixels.dtype == np.uint8:
        return _labels_of_grey(pixels, lossy)
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return (pixels >= 0.5).astype(np.int32), None
        if not (np.isfinite(low) and np.isfinite(high) and (pixels == np.floor(pixels)).all()):
            raise ImageError(f"{name}: expected whole numbers or floats in 0..1 as a mask, got {low} to {high}")
        if low >= 0 and high <= 255:
            return _labels_of_grey(pixels.astype(np.uint8), lossy)
    if low < IGNORE or high > np.iinfo(np.int32).max:
        raise ImageError(f"{name}: expected ids from 0 (background) on, got values from {low} to {high}")
    return (_spare_top(pixels, 0xFFFF) if pixels.dtype.itemsize == 2 else pixels.astype(np.int32)), None


def _labels_of_grey(grey: np.ndarray, lossy: bool) -> tuple[np.ndarray, ColourCode | None]:
    code = read_levels(grey, lossy)
    if code is None:
        return _spare_top(grey, 255), None
    levels = code.colours[:, 0]
    if not ((levels > 48) & (levels < 208)).any():  # black and white
        return (grey >= 128).astype(np.int32), None
    image = np.repeat(grey[..., None], 3, axis=2)
    return (image, code) if lossy else (_spare_top(levels[paint_slots(image, code)], 255), None)


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether RGB pixels are grey: exactly, or black and white but for the noise of a lossy file."""
    spread = int((pixels.max(axis=-1) - pixels.min(axis=-1)).max())
    return spread == 0 or spread <= 4 and is_noisy_binary(pixels[..., 1])


def _drop_alpha(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) -> (H, W, 3) on black, or bool (H, W) where transparency alone draws the object."""
    solid = pixels[..., 3] >= 128
    if not solid.all() and solid.any() and not pixels[solid][:, :3].any():
        return solid
    return pixels[..., :3] * solid[..., None]


def _spare_top(values: np.ndarray, top: int, always: bool = False) -> np.ndarray:
    """Ids -> int32 labels; the largest possible value is `IGNORE`, or object 1 where there is no other id."""
    at_top = values == top
    others = always or bool(((values > 0) & ~at_top).any())
    return np.where(at_top, IGNORE if others else 1, values.astype(np.int32))
