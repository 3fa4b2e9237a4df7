"""Short names for what a mask was made with: 16 hexadecimal digits each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from incontext.pack import PromptPack
from incontext.prompt import Source

_DIGITS = 16


def fingerprint_of(values: Any) -> str:
    """Of whatever JSON can say."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def labels_fingerprint(labels: np.ndarray) -> str:
    """Of integers (H, W)."""
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels))
    return digest.hexdigest()[:_DIGITS]


def prompt_fingerprint(sources: Sequence[Source]) -> str:
    """Of examples' pixels and labels and of packs, in their order. Names don't count: they don't reach the model.

    Args:
        sources: packs with the ids that they have in the prompt, which the names of its classes decide.
    """
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, PromptPack):
            digest.update(pack_fingerprint(source).encode())
        else:
            digest.update(labels_fingerprint(source.labels).encode())
            digest.update(np.ascontiguousarray(source.image))
    return digest.hexdigest()[:_DIGITS]


def pack_fingerprint(pack: PromptPack) -> str:
    """Of what reaches the model: ids, colours, and all tensors, those of an encoded prompt too."""
    digest = hashlib.sha256(repr([each.ids for each in pack.palettes]).encode())
    for palette in pack.palettes:
        digest.update(np.ascontiguousarray(palette.colours))
    tensors = {each.name: getattr(pack, each.name) for each in fields(pack)}
    for number, cache in enumerate(pack.caches or ()):
        kept = [tensor for layer in cache.layers for tensor in layer]
        tensors |= {f"cache {number} {k}": tensor for k, tensor in enumerate([*kept, cache.border])}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGITS]
