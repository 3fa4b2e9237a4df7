"""The parts of a SegGPT block: patch embedding, MLP, and the block around them and `incontext.model.attention`.

Shapes in comments: b rows of the batch (queries, times two while the streams are apart), n examples, l tokens of one
half, a heads, d channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from incontext.model.attention import Attention, join_heads, runs_fused
from incontext.model.config import SegGPTConfig


class KeyValue(NamedTuple):
    """Keys and values of the examples in one block, each (b, n, a, l, d)."""

    key: Tensor
    value: Tensor


class PatchEmbed(nn.Module):
    """Linear embedding of non-overlapping patches: (..., 3, H, W) to (..., h * w, D)."""

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        lead = images.shape[:-3]
        tokens = self.proj(images.flatten(0, -4) if len(lead) > 1 else images)
        return rearrange(tokens, "b c h w -> b (h w) c").unflatten(0, lead)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block over canvases that share their query half.

    With N examples there are N canvases. The feature ensemble averages the attention output of the query half over
    them (SegGPT paper, section 3.3), before the residual; all that follows acts per token. So the query half stays the
    same in all N canvases, and is held and computed once.
    """

    def __init__(self, config: SegGPTConfig, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.drop = drop

    def forward(
        self, query: Tensor, examples: Tensor, grid: tuple[int, int], *, border_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Both halves attend to the whole canvas, as in the published model.

        Args:
            query: (b, l, D).
            examples: (b, n, l, D), n >= 1.
            grid: (h, w), patches of one half.
            border_only: compute no more of the examples than their last row: of the last block nothing else is used.

        Returns:
            The two, updated: (b, l, D) and (b, n, l or w, D).
        """
        own = self.attn.split_heads(self.norm1(query))
        shown = self.attn.split_heads(self.norm1(examples))
        if border_only:
            examples = examples[:, :, -grid[1] :]
            shown = (shown[0][..., -grid[1] :, :], *shown[1:])
        mix = self._mix_apart if examples.shape[1] > 1 and runs_fused(own[0]) else self._mix_canvases
        mixed_query, mixed_examples = mix(own, shown, grid)
        return self._finish((query, examples), (self.attn.proj(mixed_query), self.attn.proj(mixed_examples)))

    def encode_examples(self, examples: Tensor, grid: tuple[int, int]) -> tuple[Tensor, KeyValue]:
        """The examples attend to themselves only; their keys and values are kept for the query.

        Args:
            examples: (b, n, l, D).
            grid: (h, w), patches of one half.

        Returns:
            The examples, updated, and what `decode_query` needs of them.
        """
        n, rows = examples.shape[1], slice(0, grid[0])
        query, key, value = self.attn.split_heads(self.norm1(examples))
        mixed = self.attn.attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), grid, rows, rows)
        (examples,) = self._finish((examples,), (self.attn.proj(mixed.unflatten(0, (-1, n))),))
        return examples, KeyValue(key, value)

    def decode_query(self, query: Tensor, examples: KeyValue | None, grid: tuple[int, int]) -> Tensor:
        """The query attends to itself and to each example's kept keys and values; the outputs are averaged over n.

        Args:
            query: (b, l, D).
            examples: keys and values of this block, or None when there are no examples.
            grid: (h, w), patches of one half.

        Returns:
            The query, updated.
        """
        h, _ = grid
        own, rows = self.attn.split_heads(self.norm1(query)), slice(h, 2 * h)
        if examples is None:
            mixed = self.attn.attend(*own, grid, rows, rows)
        elif examples.key.shape[1] > 1 and runs_fused(own[0]):
            mixed = self._mix_query(own, *(kept.to(own[0].dtype) for kept in examples), grid)
        else:
            n = examples.key.shape[1]
            key, value = _stack_canvas(examples.key, own[1]), _stack_canvas(examples.value, own[2])
            spread = repeat(own[0], "b a l d -> (b n) a l d", n=n)
            mixed = self.attn.attend(spread, key, value, grid, rows, slice(0, 2 * h))
            mixed = rearrange(mixed, "(b n) l c -> b n l c", n=n).mean(1)
        (query,) = self._finish((query,), (self.attn.proj(mixed),))
        return query

    def _mix_canvases(
        self, own: tuple[Tensor, ...], shown: tuple[Tensor, ...], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Attention within whole canvases, the query's half averaged over them.

        Args:
            own: query, key and value of the query's half, each (b, a, l, d).
            shown: those of the examples, each (b, n, a, l, d); the query may have their last rows alone.
            grid: (h, w).

        Returns:
            (b, l, D) for the query, (b, n, l, D) for the examples' rows in `shown`, before the output projection.
        """
        h, w = grid
        n, start = shown[0].shape[1], h - shown[0].shape[-2] // w
        canvas = [_stack_canvas(e, q) for e, q in zip(shown, own, strict=True)]
        mixed = self.attn.attend(*canvas, grid, slice(start, 2 * h), slice(0, 2 * h))
        mixed = rearrange(mixed, "(b n) l c -> b n l c", n=n)
        return mixed[:, :, (h - start) * w :].mean(1), mixed[:, :, : (h - start) * w]

    def _mix_apart(
        self, own: tuple[Tensor, ...], shown: tuple[Tensor, ...], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The same as `_mix_canvases`, of parts: the query's attention to itself is computed once for all canvases."""
        h, w = grid
        n, start = shown[0].shape[1], h - shown[0].shape[-2] // w
        key, value = (_stack_canvas(e, q) for e, q in zip(shown[1:], own[1:], strict=True))
        mixed_examples = self.attn.attend(shown[0].flatten(0, 1), key, value, grid, slice(start, h), slice(0, 2 * h))
        return self._mix_query(own, shown[1], shown[2], grid), mixed_examples.unflatten(0, (-1, n))

    def _mix_query(self, own: tuple[Tensor, ...], key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """The query's attention to itself, once, and to each example (b, n, a, l, d), averaged: (b, l, D)."""
        above, below = slice(0, grid[0]), slice(grid[0], 2 * grid[0])
        to_itself = self.attn.mix(*own, grid, below, below)
        to_examples = self.attn.mix(own[0], key.flatten(0, 1), value.flatten(0, 1), grid, below, above)
        return join_heads(to_itself.mean_with(to_examples))

    def _finish(self, halves: tuple[Tensor, ...], attended: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Both residual branches, given the attention output of each half of the canvas."""
        keep = self._survival(halves[0])
        halves = tuple(half + _scale(out, keep) for half, out in zip(halves, attended, strict=True))
        keep = self._survival(halves[0])
        return tuple(half + _scale(self.mlp(self.norm2(half)), keep) for half in halves)

    def _survival(self, tokens: Tensor) -> Tensor | None:
        """Stochastic depth (arXiv 1603.09382): per row, 0 or 1 / (1 - drop). None where nothing changes."""
        if not self.training or self.drop == 0.0:
            return None
        keep = torch.empty(tokens.shape[0], device=tokens.device, dtype=tokens.dtype)
        return keep.bernoulli_(1.0 - self.drop).div_(1.0 - self.drop)


def _scale(branch: Tensor, keep: Tensor | None) -> Tensor:
    return branch if keep is None else branch * keep.view(-1, *[1] * (branch.ndim - 1))


def _stack_canvas(examples: Tensor, query: Tensor) -> Tensor:
    """Stacks each example (b, n, a, l, d) above its query (b, a, l, d): ((b n), a, 2l, d)."""
    query = repeat(query, "b a l d -> b n a l d", n=examples.shape[1])
    return torch.cat((examples.to(query.dtype), query), dim=-2).flatten(0, 1)
