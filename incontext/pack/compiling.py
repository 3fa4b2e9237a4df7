"""Packs without learning: examples made ready once, and prompts encoded ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import nn

from incontext.canvas import spatial_grid
from incontext.example_crops import crop_examples
from incontext.image import resize_image, resize_labels
from incontext.model.checkpoint import fingerprint
from incontext.model.layers import KeyValue
from incontext.model.seggpt import PromptCache
from incontext.pack.prompt_pack import PackError, PromptPack
from incontext.pack.tokens import add_tokens
from incontext.palette import Palette, split_ids
from incontext.types import Example


def compile_pack(
    model: nn.Module,
    examples: Sequence[Example],
    name: str,
    *,
    model_name: str = "unnamed",
    kind: str = "semantic",
    ensemble: str = "feature",
    tile: int | None = None,
    ids_per_pass: int | None = None,
) -> PromptPack:
    """Makes a pack of examples as they are. It segments as they do, to the last bit, but where tiles and several
    passes come together, which may be cut in other places, and where examples have pixels of which nothing is known:
    in a pack these are background, as the model sees them anyway, when pixels are compared, too.

    Args:
        model: whose input size the examples are brought to.
        examples: one id means the same in all of them.
        name: of the pack.
        model_name: what people call the model.
        kind: "instance" or "semantic".
        ensemble: "feature" or "spatial".
        tile: cut the examples by squares of this side; see `incontext.example_crops`.
        ids_per_pass: how many ids get a colour in one pass; as the model separates well, by default.

    Raises:
        PackError: there is no id, one id has two names, or a field is out of its range.
    """
    names = class_names(examples, name)
    ids = tuple(names)
    if not ids:
        raise PackError("expected examples that show at least one id, got only background")
    size, most = model.config.image_size, ids_per_pass or model.config.ids_per_pass
    pairs = [(each.image, each.labels) for each in examples]
    if tile is not None:
        pairs = crop_examples(pairs, ids, tile)
    images = np.stack([resize_image(image, size) for image, _ in pairs])
    masks = np.stack([slots_of(resize_labels(labels, size), ids) for _, labels in pairs])
    return PromptPack(
        name=name,
        images=rearrange(torch.from_numpy(images), "n h w c -> n c h w").contiguous(),
        masks=torch.from_numpy(masks),
        palettes=tuple(Palette.for_ids(part) for part in split_ids(ids, most)),
        names=names,
        fingerprint=fingerprint(model),
        model=model_name,
        ids_per_pass=most,
        kind=kind,
        ensemble=ensemble,
        tile=tile,
        made={"method": "compiled from real examples", "examples": len(examples)},
    )


def encode_pack(pack: PromptPack, model: nn.Module) -> PromptPack:
    """The pack with its prompt encoded: a query then costs no more than itself.

    Encoding is kept in the model's own precision: about 8 MB for each example of the bundled model.

    Raises:
        PackError: the model is not the pack's.
        ValueError: the model's examples attend to the query, so that nothing of them can be kept.
    """
    pack.check_model(fingerprint(model))
    parameter = next(model.parameters())
    caches = []
    for palette in pack.palettes:
        images, targets = (each[None] for each in pack.canvases(palette))
        if pack.ensemble == "spatial":
            images, targets = spatial_grid(images, "bicubic"), spatial_grid(targets, "nearest")
        with torch.inference_mode():
            images, targets = (each.to(parameter.device, parameter.dtype) for each in (images, targets))
            cache = model.encode_prompt(images, targets, kind=pack.kind)
            tokens = pack.kept_tokens(palette)
            if tokens is not None:
                cache = add_tokens(cache, tokens.to(parameter.device, parameter.dtype))
            caches.append(_own(cache))
    return dataclasses.replace(pack, caches=tuple(caches))


def class_names(examples: Sequence[Example], name: str) -> dict[int, str]:
    """Every id of the examples with its name, sorted by id. Ids without a name get one from `name`, since
    packs are merged by names.

    Raises:
        PackError: one id has two names, or two ids have one.
    """
    given: dict[int, str] = {}
    for example in examples:
        for id, text in example.names.items():
            if given.setdefault(id, text) != text:
                raise PackError(f"id {id}: expected one name, got {given[id]!r} and {text!r}; renumber the examples")
    ids = sorted({id for example in examples for id in example.ids})
    names = {id: given.get(id, name if len(ids) == 1 else f"{name} {id}") for id in ids}
    if len(set(names.values())) != len(names):
        raise PackError(f"expected a different name for each id, got {names}; name them")
    return names


def slots_of(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Labels (H, W) -> uint8 (H, W): k for the k-th of the ids, 0 elsewhere."""
    slots = np.zeros(labels.shape, np.uint8)
    for slot, id in enumerate(ids, start=1):
        slots[labels == id] = slot
    return slots


def _own(cache: PromptCache) -> PromptCache:
    """A cache in main memory that shares it with nothing."""
    layers = tuple(KeyValue(*(each.cpu().clone() for each in layer)) for layer in cache.layers)
    return PromptCache(layers, cache.border.cpu().clone(), cache.grid, cache.kind)
