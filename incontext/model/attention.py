"""Attention with the decomposed relative position bias, exact, in two forms.

The plain form hands the whole bias to torch's `scaled_dot_product_attention`; it has gradients and runs everywhere.
The fused form, for prediction on a CPU, never holds more of the bias than stays in cache, and tells the log-sum-exp of
the scores too, so that attention to several sets of keys can be computed one by one and merged. It is computed by
attention.cpp, where its user had that compiled; else by torch's own kernel, a few heads at a time (at ViT-L size the
bias of a head takes 10 MB), or, where oneDNN is faster, as products of matrices, some rows of a head at a time. All but
torch's kernel have their scores and softmax in float32 throughout. For a GPU see `incontext.model.cuda_attention`.

Shapes in comments: b rows of the batch, a heads, l tokens, d channels of a head; (h, w) patches of one half of the
canvas.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from incontext.model.compiled import compiled_attention
from incontext.model.config import SegGPTConfig
from incontext.model.cuda_attention import attend_wide, takes_wide
from incontext.model.fast_linear import gains_by_products, plain_product

# What `scaled_dot_product_attention` calls on a CPU. Only this form returns the log-sum-exp.
_FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_SMALL = 2**20  # elements of a bias that is put together at once: 4 MB, which stays in cache
_KEPT_TABLES = 8  # sets of shapes
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # float64 has its log-sum-exp rounded to float32


class Bias(NamedTuple):
    """What the position of each pair of tokens adds to its score, in two parts."""

    rows: Tensor  # (b, a, hq, wq, hk), by the row of the key
    columns: Tensor  # (b, a, hq, wq, wk), by the column of the key

    def whole(self) -> Tensor:
        """(b, a, lq, lk)."""
        return (self.rows[..., :, None] + self.columns[..., None, :]).flatten(4, 5).flatten(2, 3)


class Mixed(NamedTuple):
    """The outcome of attention to one set of keys, which can be merged with that to others."""

    values: Tensor  # (b, a, lq, d)
    logsumexp: Tensor | None  # (b, a, lq), of the scores

    def mean_with(self, others: Mixed) -> Tensor:
        """Returns (b, a, lq, d), attention to these keys and each of n other sets at once, averaged over the sets.

        Args:
            others: values ((b n), a, lq, d) and their log-sum-exp, of the same queries.
        """
        values, logsumexp = (each.unflatten(0, (len(self.values), -1)) for each in others)
        shares = torch.sigmoid(logsumexp - self.logsumexp[:, None])
        own = (1 - shares.mean(1))[..., None].to(values.dtype) * self.values
        return own + (shares[..., None].to(values.dtype) * values).mean(1)


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

    Attributes:
        keeps_tables: keep R_h[i - j] and R_w[i - j], for models whose weights stay as they are: on a GPU the dozen
            small kernels that make them cost time.
    """

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.keeps_tables = False
        self._kept_tables: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()
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
        if runs_fused(query):
            return join_heads(self._mix(query, key, value, grid, rows, key_rows, sums=False).values)
        bias = self._bias(query, grid, rows, key_rows)
        if bias is not None and takes_wide(query, *bias):
            return join_heads(attend_wide(query, key, value, *bias))
        mask = None if bias is None else bias.whole()
        mix = _attend_by_products if _gains_by_products(query) else F.scaled_dot_product_attention
        return join_heads(mix(query, key, value, attn_mask=mask))

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], rows: slice, key_rows: slice
    ) -> Mixed:
        """The same as `attend`, ready to be merged with attention to other keys. Only where it `runs_fused`.

        The query may have b rows beside (b n) rows of keys and values: each attends to its n sets of keys one by one.
        """
        return self._mix(query, key, value, grid, rows, key_rows, sums=True)

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: tuple[int, int],
        rows: slice,
        key_rows: slice,
        *,
        sums: bool,
    ) -> Mixed:
        """Without `sums` there may be no log-sum-exp in the result."""
        compiled = compiled_attention(query.dtype)
        if compiled is not None and query.dtype is key.dtype is value.dtype:
            tables = self._reversed_tables(grid)
            return Mixed(*compiled(query, key, value, *tables, rows.start, key_rows.start))
        large = query[0, :, :, 0].numel() * key.shape[-2] > _SMALL
        if self.rel_pos_h is not None and large and gains_by_products(query.dtype, query.device):
            bias = self._bias(query.float(), grid, rows, key_rows)
            return _attend_by_heads(query, key, value, bias, sums)
        return _attend_fused(query, key, value, self._bias(query, grid, rows, key_rows))

    def _bias(self, query: Tensor, grid: tuple[int, int], rows: slice, key_rows: slice) -> Bias | None:
        if self.rel_pos_h is None:
            return None
        table_h, table_w = self._pair_tables(grid, rows, key_rows, query.dtype)
        query = rearrange(query, "b a (h w) d -> b a h w d", w=grid[1])
        return Bias(
            torch.einsum("b a h w d, h k d -> b a h w k", query, table_h),
            torch.einsum("b a h w d, w k d -> b a h w k", query, table_w),
        )

    def _pair_tables(
        self, grid: tuple[int, int], rows: slice, key_rows: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """(hq, hk, d) and (wq, wk, d): R_h[i - j] of each pair of rows, R_w[i - j] of each pair of columns."""
        if not self.keeps_tables or torch.is_grad_enabled():
            return self._gather_tables(grid, rows, key_rows, dtype)
        key = (self.rel_pos_h.device, dtype, grid, rows.start, rows.stop, key_rows.start, key_rows.stop)
        tables = self._kept_tables.get(key)
        if tables is None:
            tables = self._gather_tables(grid, rows, key_rows, dtype)
            if tables[0].device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return tables  # they have no values yet
            self._kept_tables[key] = tables
            if len(self._kept_tables) > _KEPT_TABLES:
                self._kept_tables.popitem(last=False)
        self._kept_tables.move_to_end(key)
        return tables

    def _gather_tables(
        self, grid: tuple[int, int], rows: slice, key_rows: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        (h, w), device = grid, self.rel_pos_h.device
        query_rows = torch.arange(rows.start, rows.stop, device=device)
        keys = torch.arange(key_rows.start, key_rows.stop, device=device)
        columns = torch.arange(w, device=device)
        table_h, table_w = (table.to(dtype) for table in self._tables(grid))
        return table_h[query_rows[:, None] - keys + 2 * h - 1], table_w[columns[:, None] - columns + w - 1]

    def _tables(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(4h - 1, d) and (2w - 1, d): R_h and R_w, the middle one for a key in the query's own place."""
        h, w = grid
        return _resize_table(self.rel_pos_h, 2 * (2 * h) - 1), _resize_table(self.rel_pos_w, 2 * w - 1)

    def _reversed_tables(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """(d, 4h - 1) and (d, 2w - 1) in float32, as attention.cpp takes them, or twice None."""
        if self.rel_pos_h is None:
            return None, None
        return tuple(table.float().flip(0).T.contiguous() for table in self._tables(grid))


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
    sets = key.shape[0] // query.shape[0]
    if sets > 1:
        query, bias = spread(query, sets), bias and Bias(*(spread(part, sets) for part in bias))
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


def _attend_by_heads(query: Tensor, key: Tensor, value: Tensor, bias: Bias, sums: bool) -> Mixed:
    """Attention as products of matrices, for some rows of a head at a time: bias, scores and softmax stay in cache.

    Args:
        query: (b, a, lq, d).
        key, value: (b n, a, lk, d).
        bias: that of the query's b rows, in float32.
        sums: tell the log-sum-exp.
    """
    batch, heads, length, width = query.shape
    sets, (h, w) = key.shape[0] // batch, bias.rows.shape[2:4]
    most = max(1, _SMALL // (w * key.shape[2]))  # rows of the grid at once
    step = math.ceil(h / math.ceil(h / most))
    mask = bias.rows.new_empty(step, w, bias.rows.shape[-1], bias.columns.shape[-1])
    scaled, keys, kept = (query.float() * width**-0.5).contiguous(), key.float().contiguous(), value.contiguous()
    values = query.new_empty(len(key), length, heads, width).transpose(1, 2)  # so that heads join without a copy
    logsumexp = mask.new_empty(len(key), heads, length) if sums else None
    for b, a, top in itertools.product(range(batch), range(heads), range(0, h, step)):
        rows, columns = (part[b, a, top : top + step] for part in bias)
        masked = torch.add(rows[..., None], columns[..., None, :], out=mask[: len(rows)]).flatten(2, 3).flatten(0, 1)
        tokens = slice(top * w, (top + step) * w)
        for each in range(b * sets, (b + 1) * sets):
            scores = plain_product(scaled[b, a, tokens], keys[each, a], masked)
            peak = scores.amax(-1) if sums else None
            shares = torch.softmax(scores, -1, out=scores)
            if sums:  # the largest share is 1 / sum(exp(score - peak))
                logsumexp[each, a, tokens] = peak - shares.amax(-1).log_()
            values[each, a, tokens] = plain_product(shares.to(value.dtype), kept[each, a].T)
    return Mixed(values, logsumexp)


def spread(tokens: Tensor, count: int) -> Tensor:
    """(b, ...) to ((b n), ...), without a copy where b is 1."""
    return tokens[:, None].expand(-1, count, *[-1] * (tokens.ndim - 1)).flatten(0, 1)


def _resize_table(table: Tensor, length: int) -> Tensor:
    """Linearly resizes a relative position table (rows, d) to another canvas size, as ViTDet does."""
    if table.shape[0] == length:
        return table
    resized = F.interpolate(rearrange(table, "l d -> 1 d l"), size=length, mode="linear", align_corners=False)
    return rearrange(resized, "1 d l -> l d")
