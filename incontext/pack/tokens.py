"""Learned tokens: what a pack adds to the keys and values of its encoded examples.

The additions go to the blocks after the two streams merge, so they hold for any colours, and leave alone what all
queries share of the streams. They need a model whose examples do not attend to the query (`PromptCache`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from incontext.model.config import SegGPTConfig
from incontext.model.layers import KeyValue
from incontext.model.prompt_cache import PromptCache
from incontext.pack.prompt_pack import PackError


def token_shape(config: SegGPTConfig) -> tuple[int, ...]:
    """(layers, 2, heads, l, d): the tokens of one example, keys before values, for the last blocks of a model.

    Raises:
        ValueError: the model's examples attend to the query, or no block follows the merge.
    """
    layers = config.depth - 1 - config.merge_layer
    if config.examples_attend_query or not layers:
        raise ValueError(
            "tokens: expected a model whose examples do not attend to the query, with blocks after its merge_layer; "
            'learn "images", "masks" or "both" with this one'
        )
    rows, columns = config.grid
    return layers, 2, config.heads, rows * columns, config.width // config.heads


def add_tokens(cache: PromptCache, tokens: Tensor, *, mirrored: bool = False) -> PromptCache:
    """Returns an encoded prompt with learned tokens.

    Args:
        cache: of one prompt.
        tokens: (n, *token_shape), of its first n examples.
        mirrored: the examples were mirrored before they were encoded; so are their tokens then.

    Raises:
        PackError: the tokens are not those of these examples.
    """
    n, depth = len(tokens), len(cache.layers)
    first, expected = depth - tokens.shape[1], cache.layers[-1].key.shape[1:]
    if first < 0 or n > expected[0] or tokens.shape[3:] != expected[1:]:
        raise PackError(
            f"expected learned tokens (heads, l, d) = {tuple(expected[1:])} in at most {depth} blocks for at most "
            f"{expected[0]} examples, got {tuple(tokens.shape[3:])} in {tokens.shape[1]} for {n}; they are of another "
            "model"
        )
    if mirrored:
        w = cache.grid[1]
        tokens = rearrange(tokens, "... (h w) d -> ... h w d", w=w).flip(-2).flatten(-3, -2)
    added = []
    for layer, new in zip(cache.layers[first:], tokens.unbind(1), strict=True):
        parts = zip(layer, new.unbind(1), strict=True)
        added.append(KeyValue(*(torch.cat((old[:, :n] + each, old[:, n:]), dim=1) for old, each in parts)))
    return dataclasses.replace(cache, layers=(*cache.layers[:first], *added))


def stack_tokens(groups: Sequence[tuple[int, Tensor | None]]) -> Tensor | None:
    """The tokens of several groups of examples, in their order.

    Args:
        groups: the number of examples and their tokens, (n, *token_shape) or None: nothing is added to them.

    Returns:
        (N, *token_shape); None where no group has any.

    Raises:
        PackError: they are of different models.
    """
    shapes = {tuple(tokens.shape[1:]) for _, tokens in groups if tokens is not None}
    if len(shapes) > 1:
        raise PackError(f"expected tokens of one shape, got {sorted(shapes)}; they are of different models")
    if not shapes:
        return None
    (shape,) = shapes
    parts = [torch.zeros(count, *shape, dtype=torch.float16) if tokens is None else tokens for count, tokens in groups]
    return torch.cat(parts)
