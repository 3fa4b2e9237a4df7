"""A model made ready to predict and nothing else: its precision, where its weights are packed, and graphs on CUDA."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn

from incontext.model.fast_linear import FastLinear, computes_bfloat16, gains_by_packing
from incontext.model.graphs import GraphedSegGPT
from incontext.model.layers import Mlp
from incontext.model.seggpt import SegGPT

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
"""What the large matrices of a model are computed in; see `for_inference`."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(precision: str, device: torch.device) -> str:
    """Turns "auto" into the fastest precision of a device that keeps the range of float32.

    Args:
        precision: one of `PRECISIONS`.
        device: where the model runs.

    Returns:
        "bf16" where the device has instructions for it, else "fp32"; the others as they are.

    Raises:
        ValueError: for another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and computes_bfloat16() else "fp32"


def for_inference(model: SegGPT, precision: str = "fp32", *, packed: bool | None = None) -> SegGPT:
    """Returns a model for prediction alone, at some precision and as fast as this machine can.

    In half precision the products of the blocks and of the head's linear layer are computed in it; the tokens between
    the blocks, norms, softmax, embeddings and the head's convolutions stay float32, which keeps the painting several
    times closer to float32 than a model cast as a whole.

    Args:
        model: on the device that it is to run on. It is not changed; what need not change is shared with the result,
            so the memory of the rest is free when it goes.
        precision: one of `PRECISIONS`.
        packed: keep the weights in oneDNN's layout; by default where `gains_by_packing`.

    Returns:
        A model that is replayed from CUDA graphs on such a GPU (see `incontext.model.graphs`). Elsewhere the model
        itself where there is nothing to do, as with "fp32" on another GPU or of a model that was cast as a whole, and
        where it has been made ready before.

    Raises:
        ValueError: for an unknown precision.
    """
    device = model.pos_embed.device
    precision = pick_precision(precision, device)
    if isinstance(model.decoder_embed, FastLinear):
        return model
    if precision == "fp32" and model.pos_embed.dtype is not torch.float32:
        return _with_graphs(model)  # cast as a whole, on purpose
    dtype = _DTYPES[precision]
    packed = gains_by_packing(dtype, device) if packed is None else packed
    if not packed and dtype is torch.float32:
        return _with_graphs(model)
    faster = _share(model)
    for block in faster.blocks:
        block.attn.qkv, block.attn.proj = (_fast(each, dtype, packed) for each in (block.attn.qkv, block.attn.proj))
        block.mlp = _FastMlp(block.mlp, dtype, packed)
    faster.decoder_embed = _fast(faster.decoder_embed, dtype, packed)
    faster.keeps_positions = True
    return _with_graphs(faster.eval())


def with_prompt_caching(model: SegGPT) -> SegGPT:
    """Returns a model with the same weights whose examples do not attend to the query, so that prompts can be cached.

    AN APPROXIMATION for weights that were trained otherwise, such as the published ones: they have never seen such
    attention, and how much it changes their masks must be measured on the images at hand.

    Args:
        model: not changed; the weights are shared.
    """
    other = _share(model)
    other.config = dataclasses.replace(model.config, examples_attend_query=False)
    return other


def _with_graphs(model: SegGPT) -> SegGPT:
    """Returns a model like this one with CUDA graphs, or on another device the model itself."""
    if model.pos_embed.device.type != "cuda" or isinstance(model, GraphedSegGPT):
        return model
    other = GraphedSegGPT.of(_share(model))
    other.keeps_positions = True
    for block in other.blocks:
        block.attn.keeps_tables = True
    return other.eval()


class _FastMlp(nn.Module):
    """`Mlp` with the GELU in its first layer."""

    def __init__(self, mlp: Mlp, dtype: torch.dtype, packed: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = _fast(mlp.fc1, dtype, packed, gelu=True), _fast(mlp.fc2, dtype, packed)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(tokens))


def _fast(linear: nn.Linear, dtype: torch.dtype, packed: bool, gelu: bool = False) -> FastLinear:
    return FastLinear(linear.weight.detach().to(dtype), linear.bias.detach().to(dtype), packed, gelu)


def _share(module: nn.Module) -> nn.Module:
    """A copy of a module tree whose tensors are the same ones."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
