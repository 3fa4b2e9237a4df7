"""The parts of a SegGPT block: patch embedding, attention with relative position, MLP, block.

Shapes in comments: b rows of the batch (queries, times two while the streams are apart), n examples, l tokens of one
half, a heads, d channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

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


class Attention(nn.Module):
    """Multi-head attention on the canvas, with the decomposed relative position bias of MViTv2 (arXiv 2112.01526).

    The bias is q . R_h[i - j] + q . R_w[i - j] with the unscaled q, as in the published weights.
    """

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        if config.relative_position:
            (h, w), head_dim = config.grid, config.width // config.heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * (2 * h) - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, head_dim))
        else:
            self.rel_pos_h = self.rel_pos_w = None

    def split_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects tokens (..., l, D) to query, key and value, each (..., a, l, d)."""
        return rearrange(self.qkv(tokens), "... l (three a d) -> three ... a l d", three=3, a=self.heads).unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], rows: slice) -> Tensor:
        """Attention of tokens in some rows of a canvas to all tokens of another set of whole canvas rows.

        Args:
            query: (b, a, lq, d), the tokens of the canvas rows `rows`.
            key, value: (b, a, lk, d). lk tokens are whole rows, the last of which is the last that both sets share:
                an example's own rows (rows 0..h), the whole canvas (0..2h), or the query's own rows (h..2h).
            grid: (h, w), patches of one half of the canvas.
            rows: canvas rows of the tokens in `query`.

        Returns:
            (b, lq, D), before the output projection.
        """
        bias = None
        if self.rel_pos_h is not None:
            stop = rows.stop  # the keys end where the queries end
            key_rows = torch.arange(stop - key.shape[-2] // grid[1], stop, device=query.device)
            query_rows = torch.arange(rows.start, rows.stop, device=query.device)
            bias = self._relative_position_bias(query, grid, query_rows, key_rows)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return rearrange(mixed, "b a l d -> b l (a d)")

    def _relative_position_bias(
        self, query: Tensor, grid: tuple[int, int], query_rows: Tensor, key_rows: Tensor
    ) -> Tensor:
        """Returns the bias (b, a, lq, lk) that the position of each pair of tokens adds to its score."""
        h, w = grid
        columns = torch.arange(w, device=query.device)
        table_h = _resize_table(self.rel_pos_h, 2 * (2 * h) - 1)[query_rows[:, None] - key_rows + 2 * h - 1]
        table_w = _resize_table(self.rel_pos_w, 2 * w - 1)[columns[:, None] - columns + w - 1]
        query = rearrange(query, "b a (h w) d -> b a h w d", w=w)
        bias_h = torch.einsum("b a h w d, h k d -> b a h w k", query, table_h)
        bias_w = torch.einsum("b a h w d, w k d -> b a h w k", query, table_w)
        return rearrange(bias_h[..., :, None] + bias_w[..., None, :], "b a h w i j -> b a (h w) (i j)")


def _resize_table(table: Tensor, length: int) -> Tensor:
    """Linearly resizes a relative position table (rows, d) to another canvas size, as ViTDet does."""
    if table.shape[0] == length:
        return table
    resized = F.interpolate(rearrange(table, "l d -> 1 d l"), size=length, mode="linear", align_corners=False)
    return rearrange(resized, "1 d l -> l d")


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

    def forward(self, query: Tensor, examples: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Both halves attend to the whole canvas, as in the published model.

        Args:
            query: (b, l, D).
            examples: (b, n, l, D), n >= 1.
            grid: (h, w), patches of one half.

        Returns:
            The two, updated.
        """
        n, (h, _) = examples.shape[1], grid
        parts_query = self.attn.split_heads(self.norm1(query))
        parts_examples = self.attn.split_heads(self.norm1(examples))
        canvas = [_stack_canvas(e, q) for e, q in zip(parts_examples, parts_query, strict=True)]
        mixed = self.attn.attend(*canvas, grid, slice(0, 2 * h))
        mixed_examples, mixed_query = rearrange(mixed, "(b n) (two l) c -> two b n l c", n=n, two=2)
        attended = self.attn.proj(mixed_query.mean(1)), self.attn.proj(mixed_examples)
        return self._finish((query, examples), attended)

    def encode_examples(self, examples: Tensor, grid: tuple[int, int]) -> tuple[Tensor, KeyValue]:
        """The examples attend to themselves only; their keys and values are kept for the query.

        Args:
            examples: (b, n, l, D).
            grid: (h, w), patches of one half.

        Returns:
            The examples, updated, and what `decode_query` needs of them.
        """
        n, (h, _) = examples.shape[1], grid
        query, key, value = self.attn.split_heads(self.norm1(examples))
        mixed = self.attn.attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), grid, slice(0, h))
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
        own = self.attn.split_heads(self.norm1(query))
        if examples is None:
            mixed = self.attn.attend(*own, grid, slice(h, 2 * h))
        else:
            n = examples.key.shape[1]
            key, value = _stack_canvas(examples.key, own[1]), _stack_canvas(examples.value, own[2])
            rows = repeat(own[0], "b a l d -> (b n) a l d", n=n)
            mixed = self.attn.attend(rows, key, value, grid, slice(h, 2 * h))
            mixed = rearrange(mixed, "(b n) l c -> b n l c", n=n).mean(1)
        (query,) = self._finish((query,), (self.attn.proj(mixed),))
        return query

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
    return torch.cat((examples, query), dim=-2).flatten(0, 1)
