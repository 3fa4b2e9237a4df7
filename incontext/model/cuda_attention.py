"""Attention with the decomposed relative position bias on a CUDA GPU: the bias as a part of the product.

Handed the bias of all pairs of tokens, `scaled_dot_product_attention` reads 79 MB for one canvas and block at ViT-L
size in bfloat16. Here the two parts of the bias stand beside the channels of the query, and beside those of a key
stands which row and column it is in, so that the flash kernel computes it all. On an H200 that takes ViT-L in bfloat16
from 14.3 to 10.4 ms with one example and from 74 to 44 ms with eight; flex_attention, compiled by torch 2.11, took 43
and 313 ms. Shapes as in `incontext.model.attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDEST = 256  # channels of the flash kernel
_FLASH_DTYPES = (torch.bfloat16, torch.float16)


def takes_wide(query: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Whether the flash kernel computes `attend_wide` for such tensors: on CUDA, in half precision, no gradients."""
    width = query.shape[-1] + rows.shape[-1] + columns.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in _FLASH_DTYPES
        and width <= _WIDEST
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def attend_wide(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attention whose product of query and key holds the bias.

    Args:
        query: (b, a, hq * wq, d).
        key, value: (b, a, hk * wk, d).
        rows: (b, a, hq, wq, hk), what is added by the row of the key.
        columns: (b, a, hq, wq, wk), what is added by its column.

    Returns:
        (b, a, hq * wq, d).
    """
    width, hk, wk = query.shape[-1], rows.shape[-1], columns.shape[-1]
    padding = -(width + hk + wk) % 8
    options = {"device": key.device, "dtype": key.dtype}
    row = torch.eye(hk, **options)[:, None].expand(hk, wk, hk)
    column = torch.eye(wk, **options).expand(hk, wk, wk)
    places = F.pad(torch.cat((row, column), -1).flatten(0, 1), (0, padding)).expand(*key.shape[:2], -1, -1)
    root = width**0.5  # undoes the scale of the product, which the bias has not
    bias = (each.flatten(2, 3) * root for each in (rows, columns))
    wide_query = F.pad(torch.cat((query, *bias), -1), (0, padding))
    wide_key, wide_value = torch.cat((key, places), -1), F.pad(value, (0, hk + wk + padding))
    return F.scaled_dot_product_attention(wide_query, wide_key, wide_value, scale=1 / root)[..., :width]
