"""What an image is like, as a vector: to find images that resemble each other, and images that stand for many.

A vector joins two views of an image, each of unit length: what the model's own encoder makes of it, and how colours
and edges are laid out in it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from incontext.atomic import replacing
from incontext.image import normalise, open_image, resize_image
from incontext.picture_file import ImageError, describe
from incontext.predictor import Predictor
from incontext.prefetch import prefetch

_BATCH = 16
_SAVED_EVERY = 512  # new vectors
_LAYOUT = 8  # squared cells whose colours count
_CELLS, _DIRECTIONS = 4, 8  # squared cells whose edges count, and how many directions edges have
_EDGE_SIDE = 64  # pixels of the picture in which edges are looked for


@dataclass(frozen=True, eq=False)
class _Picture:
    """An image that is yet to be embedded: its content's hash, and uint8 (h, w, 3) at the model's input size."""

    key: str
    pixels: np.ndarray


class Embedder:
    """Embeds images; with a cache, each content once.

    Attributes:
        predictor: whose model encodes the images.
        file: where vectors are kept from run to run, or None.
    """

    def __init__(self, predictor: Predictor, cache: str | os.PathLike | None = None) -> None:
        """
        Args:
            predictor: its model encodes the images. A model without `norm`, the layer whose outputs are read, adds
                nothing to colours and edges.
            cache: a folder for vectors, which are found again by an image's content and the model's fingerprint;
                made where it is missing.
        """
        self.predictor = predictor
        self.file = None if cache is None else Path(cache) / f"embeddings-{predictor.fingerprint[:16]}.npz"
        self._kept = {} if self.file is None else _load(self.file)
        self._unsaved = 0

    def embed(
        self, images: Sequence[Any], *, progress: Callable[[Iterable], Iterable] = iter
    ) -> tuple[np.ndarray, dict[int, ImageError]]:
        """Embeds images.

        Args:
            images: paths, PIL images or arrays.
            progress: wraps the loop over images, for example in `tqdm`.

        Returns:
            Vectors, float32 (n, D), zero where an image cannot be read; and those images: index -> error.
        """
        found: dict[int, np.ndarray] = {}
        errors: dict[int, ImageError] = {}
        waiting: dict[int, _Picture] = {}
        for index, read in enumerate(progress(prefetch(self._read, images, threads=4, ahead=2 * _BATCH))):
            if isinstance(read, ImageError):
                errors[index] = read
            elif isinstance(read, _Picture):
                waiting[index] = read
            else:
                found[index] = read
            if len(waiting) == _BATCH:
                found.update(self._encode(waiting))
                waiting = {}
        found.update(self._encode(waiting))
        self._save()
        width = len(next(iter(found.values()))) if found else 0
        vectors = np.zeros((len(images), width), np.float32)
        for index, vector in found.items():
            vectors[index] = vector
        return vectors, errors

    def _read(self, image: Any) -> np.ndarray | _Picture | ImageError:
        """A known image's vector, a new image, or what is wrong with it. Runs in any thread."""
        try:
            key = _content(image)
            if key in self._kept:
                return self._kept[key]
            return _Picture(key, resize_image(open_image(image), self.predictor.model.config.image_size))
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{describe(image)}: expected a picture, but it cannot be read: {error}")

    def _encode(self, pictures: dict[int, _Picture]) -> dict[int, np.ndarray]:
        if not pictures:
            return {}
        pixels = np.stack([picture.pixels for picture in pictures.values()])
        views = (model_features(self.predictor, pixels), np.stack([look_features(each) for each in pixels]))
        vectors = np.concatenate([_unit(view) for view in views if view.size], axis=1).astype(np.float32)
        if self.file is not None:  # without a file nothing is kept: queries of a long job would fill the memory
            self._kept.update((picture.key, vector) for picture, vector in zip(pictures.values(), vectors, strict=True))
            self._unsaved += len(vectors)
            if self._unsaved >= _SAVED_EVERY:
                self._save()
        return dict(zip(pictures, vectors, strict=True))

    def _save(self) -> None:
        """Writes all vectors, if there are new ones. Another process's are not lost but made again when missing."""
        if self._unsaved:
            with replacing(self.file) as draft:
                np.savez(draft, keys=np.array(list(self._kept)), vectors=np.stack(list(self._kept.values())))
        self._unsaved = 0


def centred(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Vectors (..., D) seen from a collection's centre (D,), at unit length: what all images share tells nothing."""
    return _unit(vectors - centre)


@torch.inference_mode()
def model_features(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """What the model's encoder makes of images, without any example.

    The query's half of the canvas goes through the blocks alone, all of it hidden. Of each layer that the head reads,
    the mean over the image's patches and their spread are taken.

    Args:
        predictor: whose model to use.
        pixels: uint8 (n, h, w, 3) of the model's input size.

    Returns:
        float32 (n, taps * 2 * D); (n, 0) where the model has no layer `norm` to read from.
    """
    model = predictor.model
    if not isinstance(getattr(model, "norm", None), torch.nn.Module):
        return np.zeros((len(pixels), 0), np.float32)
    taps: list[torch.Tensor] = []
    handle = model.norm.register_forward_hook(lambda module, inputs, output: taps.append(output))
    was_training = model.training
    try:
        model.eval()
        query = normalise(pixels).to(predictor.device, next(model.parameters()).dtype)
        rows, columns = model.config.grid
        hidden = torch.ones(len(query), rows * columns, dtype=torch.bool, device=query.device)
        model(query, query_target=torch.zeros_like(query), hidden=hidden, kind=predictor.kind)
    finally:
        handle.remove()
        model.train(was_training)
    parts = [part for tap in taps for part in (tap.float().mean(1), tap.float().std(1))]
    return torch.cat(parts, dim=1).cpu().numpy()


def look_features(pixels: np.ndarray) -> np.ndarray:
    """How colours and edges are laid out in an image.

    Args:
        pixels: uint8 (h, w, 3).

    Returns:
        float64 (320,): brightness and two differences of colours in 8 x 8 cells, and in 4 x 4 cells how strong
        edges of 8 directions are. Either part has unit length.
    """
    small = resize_image(pixels, (_LAYOUT, _LAYOUT)).astype(np.float64) / 255
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    colours = (
        np.stack([red + green + blue, red - green, (red + green) / 2 - blue]) - np.array([1.5, 0, 0])[:, None, None]
    )
    grey = resize_image(pixels, (_EDGE_SIDE, _EDGE_SIDE)).mean(axis=-1) / 255
    down, right = ndimage.gaussian_filter(grey, 1, (1, 0)), ndimage.gaussian_filter(grey, 1, (0, 1))
    turn = np.arctan2(down, right) % np.pi / np.pi * _DIRECTIONS
    cell = np.arange(_EDGE_SIDE) * _CELLS // _EDGE_SIDE
    bins = (cell[:, None] * _CELLS + cell) * _DIRECTIONS + np.minimum(turn.astype(int), _DIRECTIONS - 1)
    edges = np.bincount(bins.ravel(), np.hypot(down, right).ravel(), minlength=_CELLS**2 * _DIRECTIONS)
    return np.concatenate([_unit(colours.ravel()), _unit(edges)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _content(image: Any) -> str:
    """A hash of a file's bytes, or of an image's pixels."""
    if isinstance(image, (str, os.PathLike)):
        with open(image, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    pixels = open_image(image)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _load(file: Path) -> dict[str, np.ndarray]:
    """Vectors of earlier runs. A file that is damaged is no reason to stop: its vectors are made again."""
    try:
        with np.load(file) as stored:
            return dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
