"""What is measured: models of a size, and inputs for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from incontext.model.config import PRESETS
from incontext.model.seggpt import SegGPT

SIZES = ("bundled", "vit-large", "tiny")
"""Models by name. The bundled one has its own weights; the others have random ones, which compute as fast."""

_PRESETS = {"vit-large": "seggpt-vit-large", "tiny": "tiny"}


class Inputs(NamedTuple):
    """Tensors for `SegGPT.forward`, normalised; all queries share their examples."""

    query: Tensor  # (B, 3, H, W)
    images: Tensor  # (1, N, 3, H, W)
    targets: Tensor  # (1, N, 3, H, W)

    def expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same with B in place of 1, without a copy."""
        return self.query, *(each.expand(len(self.query), -1, -1, -1, -1) for each in (self.images, self.targets))


def build_model(size: str, device: torch.device) -> SegGPT:
    """Returns a model in evaluation mode whose weights need no gradients.

    Args:
        size: one of `SIZES`.
        device: where to.

    Raises:
        ValueError: for another size.
    """
    if size == "bundled":
        from incontext.model.zoo import load_model

        return load_model(device=device).requires_grad_(False)
    if size not in _PRESETS:
        raise ValueError(f"model: expected one of {SIZES}, got {size!r}")
    with torch.device("meta"):
        model = SegGPT(PRESETS[_PRESETS[size]])
    model.to_empty(device=device).requires_grad_(False)
    _draw_weights(model)
    return model.eval()


def make_inputs(model: SegGPT, queries: int, examples: int) -> Inputs:
    """Rendered scenes for B queries and N examples that show the same task, on the model's device."""
    import numpy as np

    from incontext.image import normalise
    from incontext.palette import Palette
    from incontext.scenes import render_scene, task_labels

    task, generator, size = "spheres", np.random.default_rng(0), model.config.image_size
    scenes = [render_scene(generator, size, task=task) for _ in range(examples + queries)]
    images = normalise(np.stack([scene.image for scene in scenes]))
    labels = np.stack([task_labels(scene, task) for scene in scenes[:examples]])
    targets = normalise(Palette.for_ids((1,)).paint(labels))
    device = model.pos_embed.device
    return Inputs(images[examples:].to(device), images[None, :examples].to(device), targets[None].to(device))


@torch.no_grad()
def _draw_weights(model: SegGPT) -> None:
    """Draws weights large enough that every input shows in the painting: fresh ones would hide differences."""
    generator = torch.Generator(model.pos_embed.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.normal_(generator=generator)
        if "norm" in name or name.startswith("decoder_pred.1"):
            parameter.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.mul_(0.1)
        elif name.endswith("weight"):
            parameter.mul_((parameter.shape[0] / parameter.numel()) ** 0.5)
        elif "rel_pos" in name:
            parameter.mul_(0.3)
