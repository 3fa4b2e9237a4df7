"""Decoding: from whatever holds a picture (path, file object, PIL image, array) to upright pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
"""File formats (PIL's names) that don't keep a pixel's exact value."""


class ImageError(ValueError):
    """A picture or mask cannot be used. The message names it, says what was expected, and what to do."""


def describe(source: Any) -> str:
    """What a picture is called in messages: its path, or else its type."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(name) if name else f"<{type(source).__name__}>"


def decode(source: Any) -> tuple[Image.Image | np.ndarray, str | None]:
    """Decodes a picture and turns it upright by its EXIF orientation. Of several pages the first counts.

    Args:
        source: path, binary file object, PIL image, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Returns:
        The loaded PIL image and PIL's name of its file format; an array comes back as it is (without an axis
        of one channel), with None.

    Raises:
        ImageError: the file is missing, empty, truncated, too large or no picture, or the array has another
            form.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, (str, os.PathLike)):
        image = _open(_check_file(Path(source)), name)
    elif hasattr(source, "read"):
        image = _open(source, name)
    else:
        return _check_array(np.asarray(source), name), None
    kind = image.format
    try:
        image.load()
    except Exception as error:  # decoders raise all sorts of errors on broken files
        raise ImageError(
            f"{name}: expected a whole {kind} picture, got a damaged or truncated one ({error}); replace it"
        ) from error
    try:
        return ImageOps.exif_transpose(image), kind
    except Exception:
        return image, kind  # a broken EXIF block tells no orientation, but the picture itself is sound


def _open(file: Any, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: expected at most {2 * Image.MAX_IMAGE_PIXELS} pixels, got more ({error}); "
            "cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except Exception as error:  # decoders raise all sorts of errors on broken files
        raise ImageError(
            f"{name}: expected a picture (PNG, JPEG, WebP, TIFF, BMP, ...), "
            "got a file that is none or is damaged; convert or replace it"
        ) from error


def _check_file(path: Path) -> Path:
    if not path.exists():
        raise ImageError(f"{path}: expected a picture, but there is no such file; check the path")
    if not path.is_file():
        raise ImageError(f"{path}: expected a picture, got a folder; name the pictures in it")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: expected a picture, got an empty file (0 bytes); replace it")
    return path


def _check_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name}: expected a path, PIL image or array of numbers, got {array.dtype} values")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)) or 0 in array.shape:
        hint = "; move the channels to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"{name}: expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}{hint}"
        )
    return array
