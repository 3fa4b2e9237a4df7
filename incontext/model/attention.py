"""Attention with the decomposed relative position bias, exact, in two forms.

The plain form hands the whole bias to torch's `scaled_dot_product_attention`; it has gradients and runs everywhere.
The fused form, for prediction on a CPU, never holds more of the bias than a few heads need (at ViT-L size 10 MB a head,
which stays in cache), and tells the log-sum-exp of the scores too, so that attention to several sets of keys can be
computed one by one and merged.

Shapes in comments: b rows of the batch, a heads, l tokens, d channels of a head; (h, w) patches of one half of the
canvas.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from incontext.model.config import SegGPTConfig

# What `scaled_dot_product_attention` calls on a CPU. Only this form returns the log-sum-exp.
_FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_SMALL = 2**20  # elements of a bias that is put together whole: 4 MB, which stays in cache
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # float64 has its log-sum-exp rounded to float32


class Bias(NamedTuple):
    """What the position of each pair of tokens adds to its score, in two parts."""

    rows: Tensor  # (b, a, hq, wq, hk), by the row of the key
    columns: Tensor  # (b, a, hq, wq, wk), by the column of the key

    def whole(self) -> Tensor:
        """(b, a, lq, lk)."""
        return (self.rows[..., :, None] + self.columns[..., None, :]).flatten(4, 5).flatten(2, 3)


class Mixed(NamedTuple):
    """The outcome of attention to one set of keys, which can be merged with that to another."""

    values: Tensor  # (b, a, lq, d)
    logsumexp: Tensor  # (b, a, lq), of the scores

    def merge(self, other: Mixed) -> Tensor:
        """Returns (b, a, lq, d), attention to both sets of keys at once. Either may have 1 in place of b."""
        share = torch.sigmoid(self.logsumexp - other.logsumexp)[..., None]
        return other.values + share.to(other.values.dtype) * (self.values - other.values)


def runs_fused(tokens: Tensor) -> bool:
    """Whether the fused form can compute this: no gradients, on a CPU, not traced into a graph."""
    return (
        _FLASH_CPU is not None
        and tokens.device.type == "cpu"
        and tokens.dtype in _FUSED_DTYPES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


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

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], rows: slice, key_rows: slice
    ) -> Tensor:
        """Attention of tokens in some rows of a canvas to all tokens of a set of canvas rows.

        Args:
            query: (b, a, lq, d), the tokens of the canvas rows `rows`.
            key, value: (b, a, lk, d), the tokens of the canvas rows `key_rows`.
            grid: (h, w), patches of one half of the canvas.
            rows, key_rows: within 0..2h.

        Returns:
            (b, lq, D), before the output projection.
        """
        bias = self._bias(query, grid, rows, key_rows)
        if runs_fused(query):
            values = _attend_fused(query, key, value, bias).values
        else:
            mask = None if bias is None else bias.whole()
            mix = _attend_by_products if _gains_by_products(query) else F.scaled_dot_product_attention
            values = mix(query, key, value, attn_mask=mask)
        return join_heads(values)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], rows: slice, key_rows: slice
    ) -> Mixed:
        """The same as `attend`, ready to be merged with attention to other keys. Only where it `runs_fused`."""
        return _attend_fused(query, key, value, self._bias(query, grid, rows, key_rows))

    def _bias(self, query: Tensor, grid: tuple[int, int], rows: slice, key_rows: slice) -> Bias | None:
        if self.rel_pos_h is None:
            return None
        h, w = grid
        query_rows = torch.arange(rows.start, rows.stop, device=query.device)
        keys = torch.arange(key_rows.start, key_rows.stop, device=query.device)
        columns = torch.arange(w, device=query.device)
        table_h = _resize_table(self.rel_pos_h, 2 * (2 * h) - 1)[query_rows[:, None] - keys + 2 * h - 1].to(query.dtype)
        table_w = _resize_table(self.rel_pos_w, 2 * w - 1)[columns[:, None] - columns + w - 1].to(query.dtype)
        query = rearrange(query, "b a (h w) d -> b a h w d", w=w)
        return Bias(
            torch.einsum("b a h w d, h k d -> b a h w k", query, table_h),
            torch.einsum("b a h w d, w k d -> b a h w k", query, table_w),
        )


def join_heads(values: Tensor) -> Tensor:
    """(..., a, l, d) to (..., l, D)."""
    return rearrange(values, "... a l d -> ... l (a d)")


def _gains_by_products(tokens: Tensor) -> bool:
    """Whether plain products are faster than torch's kernel: in bfloat16 on a CPU, with gradients, about 3.5 times."""
    return tokens.device.type == "cpu" and tokens.dtype is torch.bfloat16 and tokens.requires_grad


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Scaled dot product attention that keeps its type throughout, under autocast too."""
    with torch.autocast("cpu", enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        return scores.softmax(-1) @ value


def _attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> Mixed:
    """Attention whose bias is put together for a few heads at a time, in memory that is used again."""
    if bias is None:
        return Mixed(*_FLASH_CPU(query, key, value))
    batch, heads, length, width = query.shape
    if batch * heads * length * key.shape[2] <= _SMALL:
        return Mixed(*_FLASH_CPU(query, key, value, attn_mask=bias.whole()))
    together = min(heads, torch.get_num_threads())  # so each thread has whole heads to work on
    mask = query.new_empty(together, *bias.rows.shape[2:], bias.columns.shape[-1])
    rows, columns = bias.rows.contiguous(), bias.columns.contiguous()
    values = query.new_empty(batch, length, heads, width).transpose(1, 2)  # so that heads join without a copy
    logsumexp = query.new_empty(batch, heads, length, dtype=torch.float32)
    for b in range(batch):
        for start in range(0, heads, together):
            part = (slice(b, b + 1), slice(start, start + together))
            masked = mask[: min(together, heads - start)]
            torch.add(rows[part][0, ..., None], columns[part][0, ..., None, :], out=masked)
            masked = masked.flatten(3, 4).flatten(1, 2)[None]
            values[part], logsumexp[part] = _FLASH_CPU(query[part], key[part], value[part], attn_mask=masked)
    return Mixed(values, logsumexp)


def _resize_table(table: Tensor, length: int) -> Tensor:
    """Linearly resizes a relative position table (rows, d) to another canvas size, as ViTDet does."""
    if table.shape[0] == length:
        return table
    resized = F.interpolate(rearrange(table, "l d -> 1 d l"), size=length, mode="linear", align_corners=False)
    return rearrange(resized, "1 d l -> l d")
