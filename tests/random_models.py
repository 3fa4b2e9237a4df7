"""Models with random weights that are large enough for every input to matter, and random inputs for them."""

from __future__ import annotations

import dataclasses

import torch

from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.seggpt import SegGPT

TINY = PRESETS["tiny"]
TINY_CACHED = dataclasses.replace(TINY, examples_attend_query=False)


def random_model(config: SegGPTConfig = TINY, seed: int = 0) -> SegGPT:
    """A model in evaluation mode. Fresh weights are too small: paintings would hardly differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = SegGPT(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "norm" in name or name.startswith("decoder_pred.1"):
                parameter.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.mul_(0.1)
            elif name.endswith("weight"):
                fan_in = parameter.numel() / parameter.shape[0]
                parameter.mul_((2.0 if "qkv" in name else 1.0) / fan_in**0.5)
            elif "rel_pos" in name:
                parameter.mul_(0.3)
    return model.eval()


def random_inputs(
    batch: int, count: int, size: tuple[int, int] = TINY.image_size, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (B, 3, H, W), example images and example targets (B, N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, 3, *size, generator=generator)
    images = torch.randn(batch, count, 3, *size, generator=generator)
    targets = torch.randn(batch, count, 3, *size, generator=generator)
    return query, images, targets


def random_painted(batch: int, config: SegGPTConfig = TINY, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A query target (B, 3, H, W), and `hidden` (B, h * w) that leaves about four patches in ten visible."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(batch, 3, *config.image_size, generator=generator)
    hidden = torch.rand(batch, config.grid[0] * config.grid[1], generator=generator) > 0.4
    return target, hidden
