"""The inpainting loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incontext.canvas import patches_to_pixels


def smooth_l1(
    painting: Tensor, target: Tensor, hidden: Tensor, *, beta: float = 0.01, weight: Tensor | None = None
) -> Tensor:
    """Smooth-L1 between painting and target, averaged over the hidden and valid pixels (SegGPT paper, section 3.1).

    Args:
        painting: (B, 3, H, W) in normalised colour space.
        target: (B, 3, H, W), same space.
        hidden: (B, h * w) bool, the patches that were to be painted. The patch size follows from H, W and its length,
            for patches that are square.
        beta: where the loss turns from quadratic to linear.
        weight: optional (B, 1, H, W), a factor per pixel; 0 marks a pixel as invalid.

    Returns:
        A scalar. Zero, with zero gradients, when no pixel is both hidden and valid.
    """
    # A half-precision sum over the pixels of a batch would lose its last digits, or overflow.
    wide = torch.promote_types(painting.dtype, torch.float32)
    painting, target = painting.to(wide), target.to(wide)
    height, width = target.shape[-2:]
    patch = round((height * width / hidden.shape[-1]) ** 0.5)
    pixels = patches_to_pixels(hidden, (height // patch, width // patch), patch)[:, None].to(painting.dtype)
    if weight is not None:
        pixels = pixels * weight
    error = F.smooth_l1_loss(painting, target, beta=beta, reduction="none")
    # Divided by no pixels, a batch in which all are ignored would turn the weights into NaN.
    count = painting.shape[1] * pixels.sum()
    return (error * pixels).sum() / torch.where(count > 0, count, torch.ones_like(count))
