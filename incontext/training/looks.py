"""Colour changes and mirroring of whole views, as batched tensor operations on the device that trains.

The loader draws the numbers, so that an episode looks the same wherever it is trained on; the device does the work.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)
_MIXED = 0.1  # share of episodes whose channels are mixed


@dataclass(frozen=True)
class Looks:
    """How the views of an episode, or those of a batch of episodes, are changed. B is missing for one episode.

    Attributes:
        flips: (B, V) bool, whether a view is mirrored left to right.
        mix: (B, 3, 3), new channels as sums of old ones, the same for all views: swapped, inverted or grey. It keeps
            an episode consistent and takes away what a colour usually means.
        shift: (B, 3), added afterwards, in 0..255.
        saturation, contrast: (B, V), factors.
        gain: (B, V, 3), brightness and white balance.
    """

    flips: Tensor
    mix: Tensor
    shift: Tensor
    saturation: Tensor
    contrast: Tensor
    gain: Tensor

    @classmethod
    def stack(cls, looks: list[Looks]) -> Looks:
        """Stacks the looks of episodes to those of a batch."""
        return cls(*(torch.stack([getattr(each, field.name) for each in looks]) for field in fields(cls)))


def draw_looks(rng: np.random.Generator, views: int, strength: float, handed: bool) -> Looks:
    """Draws the looks of one episode.

    Args:
        rng: source of randomness.
        views: how many it has.
        strength: of the colour changes, 0..1. 0 also leaves channels and sides as they are.
        handed: left and right mean something: all views are mirrored, or none.
    """
    mix, shift, flips = np.eye(3), np.zeros(3), np.zeros(views, bool)
    if strength > 0:
        flips = np.full(views, rng.random() < 0.5) if handed else rng.random(views) < 0.5
        if rng.random() < _MIXED:
            mix, shift = _mix(rng)
    brightness = rng.uniform(-0.25, 0.25, (views, 1)) + rng.uniform(-0.08, 0.08, (views, 3))
    numbers = (
        mix,
        shift,
        np.exp(rng.uniform(-0.5, 0.4, views) * strength),
        np.exp(rng.uniform(-0.3, 0.3, views) * strength),
        np.exp(brightness * strength),
    )
    return Looks(torch.from_numpy(flips), *(torch.from_numpy(each.astype(np.float32)) for each in numbers))


def _mix(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    choice = rng.integers(3)
    if choice == 0:
        return np.eye(3)[rng.permutation(3)], np.zeros(3)
    if choice == 1:
        return -np.eye(3), np.full(3, 255.0)
    return np.full((3, 3), 1 / 3), np.zeros(3)


def recolour(images: Tensor, looks: Looks) -> Tensor:
    """Changes the colours of views.

    Args:
        images: float (B, V, 3, H, W) in 0..255.
        looks: of this batch, on the same device.

    Returns:
        The same shape, in 0..255.
    """
    images = torch.einsum("bij,bvjhw->bvihw", looks.mix, images) + looks.shift[:, None, :, None, None]
    weights = torch.tensor(_GREY, device=images.device)[:, None, None]
    grey = (images * weights).sum(2, keepdim=True)
    images = grey + (images - grey) * _per_view(looks.saturation)
    mean = grey.mean((-2, -1), keepdim=True)
    images = (images - mean) * _per_view(looks.contrast) + mean
    return (images * looks.gain[..., None, None]).clamp(0, 255)


def mirror(views: Tensor, flips: Tensor) -> Tensor:
    """Mirrors some views left to right.

    Args:
        views: (..., W), with `flips` along the leading axes.
        flips: bool.
    """
    flips = flips.view(*flips.shape, *[1] * (views.ndim - flips.ndim))
    return torch.where(flips, views.flip(-1), views)


def _per_view(factors: Tensor) -> Tensor:
    return factors[..., None, None, None]
