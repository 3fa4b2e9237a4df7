"""Low-rank fine-tuning (LoRA, arXiv 2106.09685): frozen weights plus a product of two thin matrices, merged to save."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incontext.model.seggpt import SegGPT

_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class LowRankLinear(nn.Linear):
    """A linear layer whose own weights are frozen: W x + b + up (down x). At first `up` is zero."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator | None = None) -> None:
        """Takes over the weights of a layer.

        Args:
            linear: the layer; its tensors are shared, not copied.
            rank: width of the product.
            generator: source of randomness.
        """
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        bound = 1 / math.sqrt(linear.in_features)
        down = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(self.weight))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank).to(self.weight))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight, self.bias) + F.linear(F.linear(tokens, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a plain layer that computes the same, but for rounding."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = nn.Parameter(self.weight + self.up @ self.down)
        linear.bias = nn.Parameter(self.bias.clone())
        return linear


def add_low_rank(model: SegGPT, rank: int, generator: torch.Generator | None = None) -> None:
    """Replaces the linear layers of the blocks by low-rank ones, in place."""
    for block in model.blocks:
        for name in _LAYERS:
            parent, _, child = name.partition(".")
            part = block.get_submodule(parent)
            setattr(part, child, LowRankLinear(getattr(part, child), rank, generator))


def merge(model: SegGPT) -> SegGPT:
    """Returns an ordinary model that computes the same; the model itself, if it has no low-rank layers."""
    if not any(isinstance(module, LowRankLinear) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for block in plain.blocks:
        for name in _LAYERS:
            parent, _, child = name.partition(".")
            part = block.get_submodule(parent)
            setattr(part, child, getattr(part, child).merged())
    return plain
