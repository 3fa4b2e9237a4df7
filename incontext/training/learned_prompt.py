"""The examples that tuning learns, and the frozen model that they are learned through."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from incontext.canvas import spatial_grid
from incontext.image import normalise
from incontext.model.layers import KeyValue
from incontext.model.prompt_cache import PromptCache
from incontext.pack.prompt_pack import paint_slots
from incontext.pack.tokens import add_tokens
from incontext.training.tune_data import IGNORED, Views

LEARNABLE = ("images", "masks", "both", "tokens")

_CERTAINTY = 4.0  # logit of a pixel's class at the start, over those of the others


class LearnedPrompt(nn.Module):
    """N examples whose images, or masks, or both, or tokens are learned. Masks are shares of classes, never colours.

    Attributes:
        images: (N, 3, h, w) in normalised space.
        masks: int (N, h, w) classes, or where they are learned logits (N, K + 1, h, w).
        tokens: (N, *token_shape), zeros at the start, where they are learned; else None.
        pictures: uint8 (N, 3, h, w), what the images were at the start, where they are learned; else None.
        shown: for each example the classes (1..K) that it shows at the start.
    """

    def __init__(
        self,
        start: Views,
        classes: int,
        learn: str,
        noise: torch.Generator | None = None,
        token_shape: tuple[int, ...] = (),
    ) -> None:
        """
        Args:
            start: the examples to start from.
            classes: K.
            learn: "images", "masks", "both" or "tokens".
            noise: draws the images instead; masks are those of `start`.
            token_shape: of the tokens of one example, where they are learned; see `incontext.pack.tokens`.
        """
        super().__init__()
        images = normalise(start.images)
        slots = torch.from_numpy(np.where(start.slots == IGNORED, 0, start.slots)).long()
        is_learned = learn in ("images", "both")
        kept = is_learned and noise is None
        self.pictures = rearrange(torch.from_numpy(start.images), "n h w c -> n c h w").contiguous() if kept else None
        if noise is not None:
            images = torch.randn(images.shape, generator=noise)
        self.images = nn.Parameter(images, requires_grad=is_learned)
        self.shown = tuple(start.shown(k) for k in range(len(start)))
        if learn in ("masks", "both"):
            one_hot = rearrange(F.one_hot(slots, classes + 1), "n h w k -> n k h w")
            self.masks = nn.Parameter(_CERTAINTY * one_hot.float())
        else:
            self.register_buffer("masks", slots)
        tokens = torch.zeros(len(start), *token_shape)
        self.register_parameter("tokens", nn.Parameter(tokens) if learn == "tokens" else None)

    def canvases(self, keep: Sequence[int], colours: Tensor) -> tuple[Tensor, Tensor]:
        """Images and painted masks of some of the examples, each (1, n, 3, h, w).

        Args:
            keep: which.
            colours: (K + 1, 3) in normalised space, of the background and each class.
        """
        masks = self.masks[list(keep)]
        if masks.is_floating_point():
            masks = masks.softmax(1)
        return self.images[list(keep)][None], paint_slots(masks, colours)[None]

    def tensors(self) -> dict[str, Tensor | None]:
        """Images, masks, tokens and pictures as a `PromptPack` holds them."""
        masks = self.masks.detach().cpu()
        return {
            "images": self.images.detach().cpu().half(),
            "masks": masks.softmax(1).half() if masks.is_floating_point() else masks.to(torch.uint8),
            "tokens": None if self.tokens is None else self.tokens.detach().cpu().half(),
            "pictures": self.pictures,
        }


def paint(
    model: nn.Module,
    queries: Tensor,
    images: Tensor,
    targets: Tensor,
    kind: str,
    ensemble: str,
    *,
    tokens: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Paints queries that share a prompt; gradients flow to the prompt.

    Args:
        model: a `SegGPT`.
        queries: (B, 3, h, w), normalised.
        images, targets: (1, N, 3, h, w).
        kind: "instance" or "semantic".
        ensemble: "feature" or "spatial".
        tokens: (N, *token_shape), what is added to the encoded examples.
        seen: int (B, n), which of the examples each query looks at; all of them, by default. For the feature ensemble.

    Returns:
        (B, 3, h, w), normalised.
    """
    if ensemble == "spatial":
        images, targets = spatial_grid(images, "bicubic"), spatial_grid(targets, "nearest")
    if model.config.examples_attend_query:
        if seen is None:
            images, targets = (each.expand(len(queries), -1, -1, -1, -1) for each in (images, targets))
        else:
            images, targets = images[0][seen], targets[0][seen]
        return model(queries, images, targets, kind=kind)
    cache = model.encode_prompt(images, targets, kind=kind)
    if tokens is not None:
        cache = add_tokens(cache, tokens)
    return model.forward_cached(queries, cache if seen is None else see(cache, seen))


def see(cache: PromptCache, seen: Tensor) -> PromptCache:
    """The cache of one prompt as that of B queries that look at some of its examples each.

    The half of the target stream that all queries share has looked at all of them: it is computed once.

    Args:
        cache: of N examples.
        seen: int (B, n), numbers below N.
    """

    def pick(kept: Tensor) -> Tensor:
        """(b, N, a, l, d) to ((b B), n, a, l, d): the image streams stay before the target streams."""
        return kept.index_select(1, seen.flatten()).unflatten(1, seen.shape).flatten(0, 1)

    layers = tuple(KeyValue(pick(layer.key), pick(layer.value)) for layer in cache.layers)
    border, target = (each.expand(len(seen), -1, -1) for each in (cache.border, cache.target))
    return dataclasses.replace(cache, layers=layers, border=border, target=target)


@contextmanager
def frozen(model: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Keeps gradients away from a model's weights, and its layers in evaluation mode; leaves it as it was.

    Args:
        model: the model.
        checkpointing: recompute activations instead of keeping them.
    """
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    training, kept = model.training, model.activation_checkpointing
    model.requires_grad_(False).eval()
    model.activation_checkpointing = checkpointing
    try:
        yield
    finally:
        model.activation_checkpointing = kept
        model.train(training)
        for parameter, each in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(each)
