"""How many operations a forward pass takes: products only, two for each multiply and add."""

from __future__ import annotations

from incontext.model.config import SegGPTConfig


def count_operations(config: SegGPTConfig, way: str, queries: int, examples: int) -> float:
    """Counts what one way of `incontext.bench.sides` computes for B queries.

    Args:
        config: the model.
        way: one of `WAYS`.
        queries: B.
        examples: N.

    Returns:
        Floating point operations.
    """
    (h, w), n = config.grid, examples
    half = h * w
    streams = config.merge_layer + 1
    if way == "transformers":
        blocks = (config.depth + streams) * _block(config, 2 * half * n, (2 * half) ** 2 * n)
        return queries * (
            blocks + _embedding(config, 4 * half * n) + _head(config, 2 * half * n, 2 * half * n * config.patch_size**2)
        )
    pixels = half * config.patch_size**2 + w * config.patch_size  # and the pixel row above, which the head sees
    head = _head(config, half + w, pixels)
    if way == "cached" or (way == "next" and not config.examples_attend_query):
        blocks = config.depth * _block(config, half, _query_pairs(half, n))
        return queries * (blocks + _embedding(config, half) + head)
    if not config.examples_attend_query:
        apart = _block(config, half * n, half**2 * n) + _block(config, half, _query_pairs(half, n))
        return queries * ((config.depth + streams) * apart + _embedding(config, half * (2 * n + 1)) + head)
    pairs = (2 * half) ** 2 * n if way == "plain" or n == 1 else 2 * half**2 * n + _query_pairs(half, n)
    whole = _block(config, half * (n + 1), pairs)
    if way == "plain":
        blocks = (config.depth + streams) * whole
    else:  # of the last block's examples only keys, values and the last row are used
        left_out = (half - w) * n
        short = whole - _after_attention(config, left_out) - _attention(config, 2 * half * left_out)
        blocks = (config.depth - 1 + (streams if way == "first" else 0)) * whole + short
    pictures = half * (n + 1) if way == "next" else half * (2 * n + 1)
    return queries * (blocks + _embedding(config, pictures) + head)


def _query_pairs(half: int, n: int) -> int:
    """Pairs of tokens in the query's attention: to itself once, and to each example."""
    return half**2 * (n + 1)


def _block(config: SegGPTConfig, tokens: int, pairs: int) -> float:
    """One block: `tokens` go through its layers, `pairs` of query and key are compared."""
    return 2 * tokens * 3 * config.width**2 + _after_attention(config, tokens) + _attention(config, pairs)


def _after_attention(config: SegGPTConfig, tokens: int) -> float:
    """Output projection and MLP."""
    return 2 * tokens * (1 + 2 * config.mlp_ratio) * config.width**2


def _attention(config: SegGPTConfig, pairs: int) -> float:
    """Scores and weighted values; the relative position adds one product per row and column of keys."""
    h, w = config.grid
    position = (1 / w + 1 / (2 * h)) if config.relative_position else 0.0
    return 2 * pairs * config.width * (2 + position)


def _embedding(config: SegGPTConfig, tokens: int) -> float:
    return 2 * tokens * 3 * config.patch_size**2 * config.width


def _head(config: SegGPTConfig, tokens: int, pixels: int) -> float:
    """The linear layer on tokens, both convolutions on pixels."""
    channels = config.decoder_width
    linear = 2 * tokens * len(config.tap_layers) * config.width * config.patch_size**2 * channels
    return linear + 2 * pixels * channels * (9 * channels + 3)
