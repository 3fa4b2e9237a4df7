"""Edge-aware refinement: probabilities that follow the edges of the picture instead of the grid of patches.

The fast guided filter (He and Sun, arXiv 1505.00996; He et al., "Guided Image Filtering", TPAMI 2013) with the query as
its guide. In each window it explains the probabilities as a linear function of the picture's colour. That function is
fitted at a low resolution and applied to the picture at its own, where edges are sharp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 0.8
"""Radius of a window, in patches of the model: a border may lie anywhere in the patch that holds it."""

SMOOTHNESS = 1e-3
"""Variance of a colour, of 0..1, below which a change counts as noise and not as an edge."""

_WINDOW = 6  # radius of a window at the resolution where functions are fitted; more costs more and shows no more


@dataclass(frozen=True, eq=False)
class Refinement:
    """Fits probabilities to the edges of one picture.

    Attributes:
        image: uint8 (H, W, 3).
        patch: side of one of the model's patches, in the image's pixels.
    """

    image: np.ndarray
    patch: float

    @property
    def working_size(self) -> tuple[int, int]:
        """(h, w) at which probabilities are to be given to `fit`."""
        shrink = max(1.0, self._radius / _WINDOW)
        height, width = self.image.shape[:2]
        return max(1, round(height / shrink)), max(1, round(width / shrink))

    def fit(self, probabilities: Tensor) -> Tensor:
        """Fits the linear functions.

        Args:
            probabilities: float (K, h, w) of `working_size`.

        Returns:
            Their coefficients, (4, K, h, w): of red, green, blue, and the constant.
        """
        picture = torch.from_numpy(self.image).to(probabilities.device)
        guide = picture.movedim(-1, 0)[None].float() / 255
        guide = F.interpolate(guide, self.working_size, mode="bilinear", align_corners=False, antialias=True)[0]
        return guided_coefficients(guide, probabilities, max(1, round(min(self._radius, _WINDOW))))

    def apply(self, coefficients: Tensor, rows: slice) -> Tensor:
        """Evaluates the functions on some rows of the image.

        Args:
            coefficients: from `fit`.
            rows: of the image.

        Returns:
            float (K, rows, W), at least 0, with sum 1 over K.
        """
        height, width = self.image.shape[:2]
        device = coefficients.device
        picture = torch.from_numpy(self.image[rows]).to(device).movedim(-1, 0).float() / 255
        at = (torch.arange(*rows.indices(height), device=device) + 0.5) * coefficients.shape[-2] / height - 0.5
        at = at.clamp(0, coefficients.shape[-2] - 1)
        above = at.long()
        below = (above + 1).clamp(max=coefficients.shape[-2] - 1)
        strip = torch.lerp(coefficients[..., above, :], coefficients[..., below, :], (at - above)[:, None])
        strip = F.interpolate(strip, (strip.shape[-2], width), mode="bilinear", align_corners=False)
        values = strip[3] + sum(strip[channel] * picture[channel] for channel in range(3))
        values = values.clamp_min(0)
        return values / values.sum(0).clamp_min(1e-6)

    @property
    def _radius(self) -> float:
        """Of a window, in the image's pixels."""
        return REACH * self.patch


def guided_coefficients(guide: Tensor, values: Tensor, radius: int, smoothness: float = SMOOTHNESS) -> Tensor:
    """Least-squares fit of values as linear functions of colour, window by window.

    Args:
        guide: (3, h, w) in 0..1.
        values: (K, h, w).
        radius: a window has 2 * radius + 1 pixels a side, fewer at the border.
        smoothness: ridge term: how much colours must vary for the fit to follow them.

    Returns:
        (4, K, h, w): mean coefficients, over all windows that hold a pixel, of red, green, blue and 1.
    """
    count = len(values)
    mean_guide, mean_values = _box(guide, radius), _box(values, radius)
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    products = _box(torch.stack([guide[i] * guide[j] for i, j in pairs]), radius)
    spread = [products[n] - mean_guide[i] * mean_guide[j] + (i == j) * smoothness for n, (i, j) in enumerate(pairs)]
    joint = _box((guide[:, None] * values).flatten(0, 1), radius).unflatten(0, (3, count))
    joint = joint - mean_guide[:, None] * mean_values
    slopes = torch.stack(_solve_symmetric(spread, joint.unbind(0)))
    offset = mean_values - (slopes * mean_guide[:, None]).sum(0)
    return _box(torch.cat((slopes, offset[None])).flatten(0, 1), radius).unflatten(0, (4, count))


def _solve_symmetric(matrix: list[Tensor], right: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Solves 3 x 3 systems by cofactors. The matrix is given as its rows' upper parts: xx, xy, xz, yy, yz, zz."""
    xx, xy, xz, yy, yz, zz = matrix
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    determinant = xx * a + xy * b + xz * c
    x, y, z = right
    return (
        (a * x + b * y + c * z) / determinant,
        (b * x + d * y + e * z) / determinant,
        (c * x + e * y + f * z) / determinant,
    )


def _box(planes: Tensor, radius: int) -> Tensor:
    """Means over windows of (n, h, w), of what lies inside the picture."""
    side = 2 * radius + 1
    planes = planes[None]
    planes = F.avg_pool2d(planes, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(planes, (1, side), 1, (0, radius), count_include_pad=False)[0]
