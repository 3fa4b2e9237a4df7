"""The prompt pack: learned examples, and all that is needed to use them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from incontext.image import denormalise, normalise
from incontext.model.seggpt import KINDS, PromptCache
from incontext.pack.swatches import Swatches
from incontext.palette import DEFAULT_TEMPERATURE, MAX_IDS, Palette

ENSEMBLES = ("feature", "spatial")

Scalar = str | int | float | bool
"""What a pack can tell of how it was made and how good it is."""

_NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 2000


class PackError(ValueError):
    """A prompt pack is damaged, does not fit its model, or cannot be combined with another."""


@dataclass(frozen=True, eq=False)
class PromptPack:
    """N examples for one model, learned (`incontext.tune`) or compiled from real ones (`compile_pack`).

    Masks hold classes, never colours, so the examples can be painted in any palette. What is learned is stored
    in half precision, here as in the file: a pack that was saved and loaded is the same to the last bit.

    Attributes:
        name: letters, digits, "_", ".", "+", "-".
        images: (N, 3, h, w) of the model's input size: uint8 pixels, or float16 in normalised space.
        masks: uint8 (N, h, w), 0 background, k the k-th of `ids`; or float16 (N, K + 1, h, w), the share that
            the background and each class have in a pixel.
        palettes: the classes of each pass of the model, with the colours that are used unless a predictor
            chooses others. Each id is in one of them.
        names: id -> name, for every id, all different: packs are merged by names.
        fingerprint: of the model that it was made for; see `incontext.model.checkpoint.fingerprint`.
        model: name of that model, for people.
        ids_per_pass: how many classes that model separates well in one pass.
        kind: "instance" or "semantic".
        ensemble: how the examples work together, "feature" or "spatial".
        temperature: of confidences; see `Palette.probabilities`.
        strength: how much more than usual it counts what pixels look like, as a factor of odds; see
            `incontext.appearance`.
        favour: factor of the odds of every class against the background where looks are joined. Of several packs the
            geometric means of both count; beside examples they are 1.
        tile: side of the square, in pixels of the user's images, that an example shows and that queries are to
            be cut into; None where examples are whole images.
        made: how it was made, in words and numbers.
        evaluation: how good it is.
        tokens: what is added to the keys and values of the encoded examples in the last blocks: float16
            (N, layers, 2, heads, l, d), or None; see `incontext.pack.tokens`. For the feature ensemble alone.
        pictures: uint8 (N, 3, h, w), what learned images were at the start, or None: pixels of queries are compared
            with these, as learning leaves its traces on the others; see `incontext.appearance`.
        swatches: pixels of more images than the pack shows, which queries are compared with instead; or None.
        caches: the encoded prompt of each pass (in `palettes`' colours, with its tokens), or None.

    Raises:
        PackError: a field is out of its range, or does not fit the others.
    """

    name: str
    images: Tensor
    masks: Tensor
    palettes: tuple[Palette, ...]
    names: Mapping[int, str]
    fingerprint: str
    model: str = "unnamed"
    ids_per_pass: int = 6
    kind: str = "semantic"
    ensemble: str = "feature"
    temperature: float = DEFAULT_TEMPERATURE
    strength: float = 1.0
    favour: float = 1.0
    tile: int | None = None
    made: Mapping[str, Scalar] = field(default_factory=dict)
    evaluation: Mapping[str, Scalar] = field(default_factory=dict)
    tokens: Tensor | None = None
    pictures: Tensor | None = None
    swatches: Swatches | None = None
    caches: tuple[PromptCache, ...] | None = None

    def __post_init__(self) -> None:
        _require(
            isinstance(self.name, str) and _NAME.fullmatch(self.name), "name", "letters, digits, _ . + -", self.name
        )
        _require(
            _FINGERPRINT.fullmatch(str(self.fingerprint)), "fingerprint", "64 hexadecimal digits", self.fingerprint
        )
        _require(self.kind in KINDS, "kind", f"one of {KINDS}", self.kind)
        _require(self.ensemble in ENSEMBLES, "ensemble", f"one of {ENSEMBLES}", self.ensemble)
        usable = math.isfinite(self.temperature) and self.temperature > 0
        _require(usable, "temperature", "a number above 0", self.temperature)
        for name in ("strength", "favour"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "a number above 0", value)
        _require(self.tile is None or 1 <= self.tile <= 1 << 20, "tile", "a side in pixels, or None", self.tile)
        _require(1 <= self.ids_per_pass <= MAX_IDS, "ids_per_pass", f"1 to {MAX_IDS}", self.ids_per_pass)
        ids = self.ids
        _require(ids and len(set(ids)) == len(ids), "palettes", "each id once, and at least one", ids)
        _require(len(ids) <= MAX_IDS, "palettes", f"at most {MAX_IDS} ids", len(ids))
        _require(set(self.names) == set(ids), "names", f"a name for each of the ids {sorted(ids)}", dict(self.names))
        _require(len(set(self.names.values())) == len(ids), "names", "different names", dict(self.names))
        for texts in ({"model": self.model}, self.names, self.made, self.evaluation):
            _check_scalars(texts)
        self._check_tensors()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all passes, in the order that masks count them in."""
        return tuple(id for palette in self.palettes for id in palette.ids)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of its images."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def shown(self) -> tuple[frozenset[int], ...]:
        """For each example the ids that it shows."""
        if self.masks.ndim == 3:
            slots = [set(np.unique(mask.numpy()).tolist()) - {0} for mask in self.masks]
        else:
            slots = [set((shares.amax((1, 2)) > 0.5).nonzero().flatten().tolist()) - {0} for shares in self.masks]
        return tuple(frozenset(self.ids[slot - 1] for slot in each) for each in slots)

    def canvases(self, palette: Palette) -> tuple[Tensor, Tensor]:
        """The examples of one pass as the model takes them: those that show an id of the palette, and those
        that show background only.

        Returns:
            Images and targets, each float32 (n, 3, h, w), normalised.
        """
        keep = self.kept(palette)
        return self.pixels()[keep], paint_slots(self.masks[keep], slot_colours(self.ids, palette))

    def kept(self, palette: Palette) -> list[int]:
        """Which examples `canvases` takes."""
        return [k for k, ids in enumerate(self.shown) if not ids or ids.intersection(palette.ids)]

    def kept_tokens(self, palette: Palette) -> Tensor | None:
        """The tokens of the examples that `canvases` takes, float16 (n, layers, 2, heads, l, d); None without."""
        return None if self.tokens is None else self.tokens[self.kept(palette)]

    def pixels(self) -> Tensor:
        """The images in normalised space, float32 (N, 3, h, w)."""
        if self.images.dtype == torch.uint8:
            return normalise(rearrange(self.images, "n c h w -> n h w c"))
        return self.images.float()

    def looks(self) -> Tensor:
        """What the examples look like, uint8 (N, 3, h, w): `pictures`, or else the images."""
        if self.pictures is not None or self.images.dtype == torch.uint8:
            return self.images if self.pictures is None else self.pictures
        return denormalise(self.pixels()).round().clamp(0, 255).byte()

    @cached_property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the examples look like, uint8 (h, w, 3), with labels, int32 (h, w): the likeliest of shares."""
        slots = self.masks if self.masks.ndim == 3 else self.masks.argmax(1)
        pictures = rearrange(self.looks(), "n c h w -> n h w c").numpy()
        return list(zip(pictures, np.array([0, *self.ids], np.int32)[slots.numpy()], strict=True))

    def cache(self, palette: Palette, *, ensemble: str, kind: str) -> PromptCache | None:
        """The kept encoding of a pass, if there is one in just these colours."""
        if self.caches is None or (ensemble, kind) != (self.ensemble, self.kind):
            return None
        for own, cache in zip(self.palettes, self.caches, strict=True):
            if own.ids == palette.ids and np.array_equal(own.colours, palette.colours):
                return cache
        return None

    def renumber(self, ids: Mapping[int, int]) -> PromptPack:
        """The same pack with other ids: old -> new, those that are not named stay. Nothing is copied."""
        palettes = tuple(Palette([ids.get(id, id) for id in each.ids], each.colours) for each in self.palettes)
        names = {ids.get(id, id): name for id, name in self.names.items()}
        return dataclasses.replace(self, palettes=palettes, names=names)

    def check_model(self, fingerprint: str) -> None:
        """Makes sure that a model is the one that the pack was made for.

        Raises:
            PackError: it is another.
        """
        if fingerprint != self.fingerprint:
            raise PackError(
                f"the pack {self.name!r} was made for another model: expected {self.model!r} with fingerprint "
                f"{self.fingerprint[:12]}, got a model with fingerprint {fingerprint[:12]}; load the pack's own "
                "model (not a float16 copy of it), or make the pack anew for this one with `incontext tune` or "
                "`incontext packs compile`"
            )

    @classmethod
    def load(cls, path: str | Path) -> PromptPack:
        """Reads a pack; see `incontext.pack.pack_file.read_pack`."""
        from incontext.pack.pack_file import read_pack  # it needs PromptPack

        return read_pack(path)

    def save(self, path: str | Path) -> None:
        """Writes NAME.safetensors, and its card NAME.md beside it; see `incontext.pack.pack_file.write_pack`."""
        from incontext.pack.pack_file import write_pack  # it needs PromptPack

        write_pack(self, path)

    def __repr__(self) -> str:
        return f"PromptPack({self.name!r}, examples={len(self.images)}, ids={self.ids}, model={self.model!r})"

    def _check_tensors(self) -> None:
        images, masks = self.images, self.masks
        fits = images.ndim == 4 and images.shape[1] == 3 and 0 not in images.shape
        _require(fits, "images", "(N, 3, h, w)", tuple(images.shape))
        _require(images.dtype in (torch.uint8, torch.float16), "images", "uint8 or float16", images.dtype)
        count, _, *size = images.shape
        expected = (count, *size) if masks.dtype == torch.uint8 else (count, 1 + len(self.ids), *size)
        _require(masks.dtype in (torch.uint8, torch.float16), "masks", "uint8 or float16", masks.dtype)
        _require(tuple(masks.shape) == expected, "masks", f"shape {expected} like the images", tuple(masks.shape))
        if masks.dtype == torch.uint8:
            _require(int(masks.max()) <= len(self.ids), "masks", f"values up to {len(self.ids)}", int(masks.max()))
        if self.tokens is not None:
            _require(self.tokens.dtype == torch.float16, "tokens", "float16", self.tokens.dtype)
            shape = tuple(self.tokens.shape)
            fits = len(shape) == 6 and shape[0] == count and shape[2] == 2 and 0 not in shape
            _require(fits, "tokens", f"({count}, layers, 2, heads, l, d)", shape)
            _require(self.ensemble == "feature", "tokens", "a pack for the feature ensemble", self.ensemble)
        if self.pictures is not None:
            _require(self.pictures.dtype == torch.uint8, "pictures", "uint8", self.pictures.dtype)
            shape = tuple(images.shape)
            _require(self.pictures.shape == shape, "pictures", f"shape {shape}", tuple(self.pictures.shape))
        for name, tensor in (("images", images), ("masks", masks), ("tokens", self.tokens), *self._check_swatches()):
            if tensor is None:
                continue
            finite = bool(tensor.float().isfinite().all()) if tensor.is_floating_point() else True
            _require(finite, name, "finite numbers", "NaN or infinity")
        if self.caches is not None:
            _require(len(self.caches) == len(self.palettes), "caches", "one for each pass", len(self.caches))

    def _check_swatches(self) -> list[tuple[str, Tensor]]:
        """Makes sure that the swatches' shapes fit; returns them, named, for what all tensors must be."""
        if self.swatches is None:
            return []
        found, classes = vars(self.swatches), len(self.ids)
        fits = self.swatches.features.ndim == 3 and 0 not in self.swatches.features.shape
        shape = tuple(self.swatches.features.shape)
        _require(fits, "swatches", "features (N, n, f)", shape)
        count, pixels, _ = shape
        half, byte = torch.float16, torch.uint8
        expected = {
            "features": (shape, half),
            "values": ((count, pixels, 1 + classes), half),
            "held": ((count, classes), half),
            "shown": ((count, classes), byte),
            "scale": ((2,), torch.float32),
        }
        for name, wanted in expected.items():
            _require(
                (tuple(found[name].shape), found[name].dtype) == wanted, f"swatches.{name}", wanted, found[name].shape
            )
        _require(
            bool((self.swatches.scale > 0).all()), "swatches.scale", "numbers above 0", self.swatches.scale.tolist()
        )
        return [(f"swatches.{name}", tensor) for name, tensor in found.items()]


def slot_colours(ids: tuple[int, ...], palette: Palette) -> Tensor:
    """The colour of the background and of each of K ids in normalised space: float32 (K + 1, 3). Ids that
    are not in the palette are black."""
    table = np.zeros((1 + len(ids), 3), np.uint8)
    for id, colour in zip(palette.ids, palette.colours, strict=True):
        if id in ids:
            table[1 + ids.index(id)] = colour
    return rearrange(normalise(table[None]), "c 1 k -> k c").contiguous()


def paint_slots(masks: Tensor, colours: Tensor) -> Tensor:
    """Paints masks.

    Args:
        masks: integer (N, h, w), indices into colours; or float (N, K + 1, h, w), the share of each colour.
        colours: float (K + 1, 3).

    Returns:
        (N, 3, h, w), of the colours' type.
    """
    if masks.ndim == 3:
        return rearrange(colours[masks.long()], "n h w c -> n c h w").contiguous()
    return torch.einsum("n k h w, k c -> n c h w", masks.to(colours.dtype), colours)


def _require(condition: object, name: str, expected: str, got: object) -> None:
    if not condition:
        raise PackError(f"{name}: expected {expected}, got {str(got)[:200]!r}")


def _check_scalars(fields: Mapping[object, object]) -> None:
    """Texts reach terminals and web pages: no control characters, no novels."""
    for key, value in fields.items():
        for text in (key, value):
            if isinstance(text, str):
                clean = text.isprintable() and 0 < len(text) <= _LONGEST_TEXT
                _require(clean, "texts", f"1 to {_LONGEST_TEXT} printable characters", ascii(text[:100]))
        number = isinstance(value, float) and not math.isfinite(value)
        _require(isinstance(value, (str, int, float, bool)) and not number, str(key), "a text or a number", value)
