"""Edge-aware refinement: probabilities that follow the edges of the picture instead of the grid of patches.

The fast guided filter (He and Sun, arXiv 1505.00996; He et al., "Guided Image Filtering", TPAMI 2013) with the query as
its guide. In each window it explains the probabilities as a linear function of the picture's colour. That function is
fitted at a low resolution and applied to the picture at its own, where edges are sharp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from incontext.geodesic import Reach

REACH = 0.8
"""Radius of a window, in patches of the model: a border may lie anywhere in the patch that holds it."""

RARE = 0.2
"""How much rare ids are favoured: the exponent of their share."""

SMOOTHNESS = 1e-3
"""Variance of a colour, of 0..1, below which a change counts as noise and not as an edge."""

_DOUBT = 0.005  # probability that neither of two opinions excludes
_SHARE = 0.25  # of an object's width, that the radius of a window may have
_WINDOW = 6  # radius of a window at the resolution where functions are fitted; more costs more and shows no more


@dataclass(frozen=True, eq=False)
class Likeness:
    """What the pixels of one query look like; see `incontext.appearance`.

    Attributes:
        ids: which ids are told apart.
        shares: float (1 + K, h, w), of the background and of each id; they sum to 1.
        weights: float (1 + K,), 0..1, how much each counts beside the model.
        shown: float (1 + K,), more than 0, the share of each in the examples.
        favour: factor of the odds of every id against the background.
    """

    ids: tuple[int, ...]
    shares: Tensor
    weights: Tensor
    shown: Tensor
    favour: float = 1.0

    def join(self, probabilities: Tensor, ids: Sequence[int]) -> Tensor:
        """Joins the model's opinion with this one: a weighted geometric mean, in favour of what is rare.

        Where opinions differ, the mean leans to what covers much of the examples. An id that covers little would lose
        most of its pixels, and a pixel counts more for the IoU of a small object than of a large one.

        Args:
            probabilities: float (1 + n, h, w), of the background and of ids; they sum to 1.
            ids: these ids, all among `self.ids`.

        Returns:
            float (1 + n, h, w) that sum to 1.
        """
        at = [0, *(1 + self.ids.index(id) for id in ids)]
        weights = self.weights[at][:, None, None]
        joined = (probabilities + _DOUBT) ** (1 - weights) * (self.shares[at] + _DOUBT) ** weights
        joined = joined * (self.shown[at] ** -RARE)[:, None, None]
        joined[1:] *= self.favour
        return joined / joined.sum(0)


@dataclass(frozen=True, eq=False)
class Refinement:
    """Fits probabilities to the edges of one picture, any number of times.

    Attributes:
        image: uint8 (H, W, 3).
        patch: side of one of the model's patches, in the image's pixels; or the step at which it is looked at.
        device: where the probabilities are.
        likenesses: what its pixels look like, by the examples. Each is of other ids.
        width: of the objects in the image's pixels, where it is known: larger windows would wash them out. Where none
            is small enough, nothing is fitted: `fit` and `apply` only bring probabilities to the image's size.
        reach: what is known of the picture itself, if anything.
    """

    image: np.ndarray
    patch: float
    device: torch.device = torch.device("cpu")
    likenesses: tuple[Likeness, ...] = ()
    width: float = math.inf
    reach: Reach | None = None

    def likeness(self, ids: Sequence[int]) -> Likeness | None:
        """The one that tells these ids apart, if there is one."""
        return next((each for each in self.likenesses if set(ids) <= set(each.ids)), None)

    @property
    def working_size(self) -> tuple[int, int]:
        """(h, w) at which probabilities are to be given to `fit`."""
        return working_size(self.image.shape[:2], self.patch)

    def fit(self, probabilities: Tensor) -> Tensor:
        """Fits the linear functions.

        Args:
            probabilities: float (K, h, w) of `working_size`.

        Returns:
            Their coefficients, (4, K, h, w): of red, green, blue, and the constant.
        """
        return self._filter.fit(probabilities)

    def apply(self, coefficients: Tensor, rows: slice) -> Tensor:
        """Evaluates the functions on some rows of the image.

        Args:
            coefficients: from `fit`.
            rows: of the image.

        Returns:
            float (K, rows, W), at least 0. They sum to what was fitted, but for what was cut off at 0.
        """
        height, width = self.image.shape[:2]
        picture = self._picture[:, rows].float() / 255
        at = (torch.arange(*rows.indices(height), device=self.device) + 0.5) * coefficients.shape[-2] / height - 0.5
        at = at.clamp(0, coefficients.shape[-2] - 1)
        above = at.long()
        below = (above + 1).clamp(max=coefficients.shape[-2] - 1)
        strip = torch.lerp(coefficients[..., above, :], coefficients[..., below, :], (at - above)[:, None])
        strip = F.interpolate(strip, (strip.shape[-2], width), mode="bilinear", align_corners=False)
        values = strip[3] + sum(strip[channel] * picture[channel] for channel in range(3))
        return values.clamp_min(0)

    @property
    def radius(self) -> int:
        """Of a window, at the working size."""
        shrink = self.image.shape[0] / self.working_size[0]
        most = max(1, round(min(REACH * self.patch, _WINDOW)))
        return int(min(most, _SHARE * self.width / shrink))

    @cached_property
    def _picture(self) -> Tensor:
        """uint8 (3, H, W)."""
        return torch.tensor(self.image, device=self.device).movedim(-1, 0)

    @cached_property
    def _filter(self) -> GuidedFilter:
        guide = working_picture(self._picture, self.patch)
        return GuidedFilter(guide, self.radius)


def working_size(size: tuple[int, int], patch: float) -> tuple[int, int]:
    """(h, w) at which functions are fitted to an image.

    Args:
        size: (H, W) of the image.
        patch: side of one of the model's patches, in its pixels.
    """
    shrink = max(1.0, REACH * patch / _WINDOW)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def working_picture(picture: Tensor, patch: float) -> Tensor:
    """A picture, uint8 (3, H, W), at its `working_size`: float (3, h, w) in 0..1."""
    size = working_size(picture.shape[1:], patch)
    return F.interpolate(picture[None].float() / 255, size, mode="bilinear", align_corners=False, antialias=True)[0]


def mean_side(patch: tuple[float, float]) -> float:
    """Side of the square of a patch's area, whose (height, width) may differ where an image was stretched."""
    return (patch[0] * patch[1]) ** 0.5


class GuidedFilter:
    """Least-squares fits of values as linear functions of colour, window by window."""

    def __init__(self, guide: Tensor, radius: int, smoothness: float = SMOOTHNESS) -> None:
        """
        Args:
            guide: (3, h, w) in 0..1.
            radius: a window has 2 * radius + 1 pixels a side, fewer at the border; values of single pixels, at 0, stay
                what they are.
            smoothness: ridge term: how much colours must vary for the fit to follow them.
        """
        self.guide, self.radius = guide, radius
        self._mean = _box(guide, radius)
        pairs = [(i, j) for i in range(3) for j in range(i, 3)]
        products = _box(torch.stack([guide[i] * guide[j] for i, j in pairs]), radius)
        covariance = [
            products[n] - self._mean[i] * self._mean[j] + (i == j) * smoothness for n, (i, j) in enumerate(pairs)
        ]
        self._inverse = _invert_symmetric(covariance)

    def fit(self, values: Tensor) -> Tensor:
        """Fits.

        Args:
            values: (K, h, w).

        Returns:
            (4, K, h, w): mean coefficients, over all windows that hold a pixel, of red, green, blue and 1.
        """
        count = len(values)
        mean = _box(values, self.radius)
        x, y, z = (
            _box(channel * values, self.radius) - at * mean for channel, at in zip(self.guide, self._mean, strict=True)
        )
        xx, xy, xz, yy, yz, zz = self._inverse
        slopes = torch.stack((xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z))
        offset = mean - (slopes * self._mean[:, None]).sum(0)
        return _box(torch.cat((slopes, offset[None])).flatten(0, 1), self.radius).unflatten(0, (4, count))


def _invert_symmetric(matrix: list[Tensor]) -> Tensor:
    """Inverts 3 x 3 matrices by cofactors. They are given and returned as their rows' upper parts:
    xx, xy, xz, yy, yz, zz."""
    xx, xy, xz, yy, yz, zz = matrix
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    return torch.stack((a, b, c, d, e, f)) / (xx * a + xy * b + xz * c)


def _box(planes: Tensor, radius: int) -> Tensor:
    """Means over windows of (n, h, w), of what lies inside the picture."""
    side = 2 * radius + 1
    planes = planes[None]
    planes = F.avg_pool2d(planes, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(planes, (1, side), 1, (0, radius), count_include_pad=False)[0]
