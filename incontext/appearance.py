"""What the examples' pixels look like: a second opinion beside the model's, for models with coarse patches.

Each pixel of the query attends to pixels of the examples, by colour, by colour blurred at some scales, and by place,
and takes over their labels: a kernel regression. Its Mahalanobis metric comes from the examples, and from the query:
a direction of colour in which whole images differ, as under other light, counts less. It knows no objects, but sees
textures, vessels and borders that are smaller than a patch.

How much it counts beside the model is decided id by id, without knowing the truth: by how well it finds an id in parts
of the examples that it has not seen, by how much of the id's shape the model's patches can hold, and by how much
farther from the examples' pixels the query's are than the examples' from each other.
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

from incontext.model.compiled import compiled_attention
from incontext.refinement import Likeness, mean_side, working_picture

KEYS = 4096
"""How many pixels of an example are kept, evenly spread: more cost more and change little."""

MOST_KEYS = 16384
"""How many pixels of several examples are compared with."""

SHARPNESS = 0.15
"""Standard deviation of the kernel, where 1 is about that of the pixels of one id."""

PLACE = 3.0
"""Weight of the place, 0..1 across the image."""

SHAPE = (0.4, 2.0)
"""(factor, exponent) of how the model is weighted by what its patches can hold of an id's shape."""

GRAIN = 0.5
"""Side of the grid on which it is seen what patches hold, in patches: a painting shows more than one value a patch."""

NEARER, NEARER_TO_SEVERAL, FARTHER = 4.0, 1.0, 2.0
"""Exponents of how the model is weighted by how far the query's pixels are from the examples': nearer than parts of the
only example are from each other; nearer than several examples are, which is usual; and farther."""

DETAIL = (2.5, 2**-1.5)
"""An image that is shown whole is looked at in steps of this many times the width of its objects, where that is less
than a patch, but not in steps below this part of a patch."""

_JUDGED = 1024  # pixels by which it is judged how well ids are found, and how far the query is
_NEAR, _FARTHEST = 0.3, 4.0  # bounds of that distance
_BLURS = (0.25, 0.5, 1.0)  # of a patch
_RIDGE = 0.1
_FLOOR = 1e-5  # variance of a colour, of 0..1, below which nothing is told apart
_BOARD = 4  # squares along a side of the checkerboard that halves an image
_RAREST = 1e-3  # share of an id that counts as the least


@dataclass(frozen=True, eq=False)
class Sample:
    """Pixels of one example, evenly spread.

    Attributes:
        features: float (n, f), n up to `KEYS`.
        values: float (n, 1 + K), how much of a pixel is background (and ids of no interest), and each id.
        held: float (K,), the IoU of each id's mask with what is left of it on a grid of `GRAIN`.
        shown: bool (K,), which ids the example shows.
    """

    features: Tensor
    values: Tensor
    held: Tensor
    shown: Tensor

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        image: np.ndarray,
        labels: np.ndarray,
        ids: Sequence[int],
        patch: tuple[float, float],
        device: torch.device,
        detail: float = 1.0,
    ) -> Sample:
        """Takes pixels from an example.

        Args:
            image: uint8 (H, W, 3).
            labels: int (H, W), ids, 0, and negative where nothing is known.
            ids: of interest.
            patch: (height, width) of one of the model's patches, in the image's pixels.
            device: where to compute.
            detail: step at which the image is looked at, in patches; see `detail_of`.
        """
        labels = torch.from_numpy(np.ascontiguousarray(labels, np.int32)).to(device)
        features = pixel_features(image, detail * mean_side(patch), device)

        def share(mask: Tensor) -> Tensor:
            return F.interpolate(mask[None, None].float(), features.shape[1:], mode="bilinear", antialias=True)[0, 0]

        shares = [share(labels >= 0)]
        held = torch.zeros(len(ids), device=device)
        shown = torch.zeros(len(ids), dtype=torch.bool, device=device)
        for k, id in enumerate(ids):  # one by one: masks of many ids at an image's own size need much memory
            mask = labels == id
            shares.append(share(mask))
            held[k], shown[k] = _held(mask, patch), mask.any()
        shares = torch.stack(shares)
        shares[0] = (shares[0] - shares[1:].sum(0)).clamp_min(0)
        known = (shares.sum(0) > 0.5).flatten().nonzero()[:, 0]
        known = known[_spread(len(known), KEYS, device)]
        values = shares.flatten(1)[:, known].T
        values = values / values.sum(1, keepdim=True)
        return cls(features.flatten(1)[:, known].T.contiguous(), values, held, shown)

    def thinned(self, most: int) -> tuple[Tensor, Tensor]:
        """Features and values of at most so many of the pixels."""
        at = _spread(len(self.features), most, self.features.device)
        return self.features[at], self.values[at]


@dataclass(frozen=True, eq=False)
class Appearance:
    """The pixels of examples, ready to be compared with.

    Attributes:
        ids: that the examples may show.
        keys: float (n, f), features of pixels.
        values: float (n, 1 + K), the label of each: background or an id.
        covariance: float (f - 2, f - 2), of the colours within an id.
        place: weight of the place.
        found: float (1 + K,), the IoU at which labels are found in the examples' unseen parts.
        held: float (K,); see `Sample`.
        judged: float (m, f), features of fewer pixels.
        owner: int (m,), the number of the example that each of these is from.
        squares: int (m,), which of two halves of it.
        strength: factor of the odds at which it counts beside the model.
        favour: factor of the odds of every id against the background.
    """

    ids: tuple[int, ...]
    keys: Tensor
    values: Tensor
    covariance: Tensor
    place: float
    found: Tensor
    held: Tensor
    judged: Tensor
    owner: Tensor
    squares: Tensor
    strength: float = 1.0
    favour: float = 1.0

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        ids: Sequence[int],
        samples: Sequence[Sample],
        *,
        placed: bool = True,
        keys: int = KEYS,
        strength: float = 1.0,
        favour: float = 1.0,
    ) -> Appearance | None:
        """Learns the appearance of ids.

        Args:
            ids: those that the samples were taken for.
            samples: of the examples, at least one.
            placed: whether the place in the image means something. It does not in tiles.
            keys: how many pixels are kept at most.
            strength: factor of the odds at which it counts beside the model; above 0.
            favour: factor of the odds of every id against the background; above 0.

        Returns:
            The appearance; None if no pixel of the examples is labelled.
        """
        features, values, _ = _join(samples, keys)
        if not len(features):
            return None
        place = PLACE if placed else 0.0
        covariance = _covariance(features, values)
        judged, labels, owner = _join(samples, _JUDGED)
        squares = (judged[:, -2:] * _BOARD).long().sum(1) % 2
        found = _found((judged @ _metric(covariance, place))[:, :-2], labels, owner, squares)
        shown = torch.stack([each.shown for each in samples])
        held = (torch.stack([each.held for each in samples]) * shown).sum(0) / shown.sum(0).clamp_min(1)
        return cls(
            tuple(ids), features, values, covariance, place, found, held, judged, owner, squares, strength, favour
        )

    @torch.inference_mode()
    def find(self, features: Tensor) -> Likeness:
        """Compares the pixels of a query.

        Args:
            features: float (f, h, w), from `pixel_features`.

        Returns:
            The likeness, at this size.
        """
        size = features.shape[1:]
        pixels = features.flatten(1).T
        drift = pixels[:, :-2].mean(0) - self.keys[:, :-2].mean(0)
        metric = _metric(self.covariance + torch.outer(drift, drift), self.place)
        pixels = pixels @ metric
        shares = _attend(pixels, self.keys @ metric, self.values)
        return Likeness(self.ids, shares.T.reshape(-1, *size), self._weights(pixels, metric), self._shown, self.favour)

    def _weights(self, pixels: Tensor, metric: Tensor) -> Tensor:
        """(1 + K,): how much each label's likeness counts, for a query's pixels in the metric's space."""
        few = pixels[_spread(len(pixels), _JUDGED, pixels.device)]
        judged, several = self.judged @ metric, bool((self.owner > 0).any())
        usual = max(_apart(judged, self.owner), _apart(judged, self.squares))  # several may show one scene
        far = torch.cdist(few, judged).amin(1).median() / usual if usual else judged.new_tensor(1.0)
        far = far.clamp(_NEAR, _FARTHEST)
        far = far ** (FARTHER if far > 1 else NEARER_TO_SEVERAL if several else NEARER)
        factor, exponent = SHAPE
        found = self.found[1:]
        weights = found / (found + factor / self.strength * far * self.held**exponent + 1e-3)
        background = weights[found > 0].mean().nan_to_num(0.0)
        return torch.cat((background[None], weights))

    @cached_property
    def _shown(self) -> Tensor:
        """(1 + K,): the share of each label in the examples; of ids that none shows, the mean of the others."""
        shares = self.values.mean(0)
        seen = shares[1:] > 0
        rest = shares[1:][seen].mean() if bool(seen.any()) else shares.new_tensor(1.0)
        return torch.cat((shares[:1], torch.where(seen, shares[1:], rest))).clamp_min(_RAREST)


def detail_of(width: float) -> float:
    """The step at which images are looked at, in patches: 1, or less for objects that are thinner.

    A power of the fourth root of 2, so that samples of examples serve prompts whose objects are a little wider or not.

    Args:
        width: of the objects, in patches; more than 0.
    """
    times, least = DETAIL
    if times * width >= 1:
        return 1.0
    return min(1.0, max(least, 2 ** (round(4 * math.log2(times * width)) / 4)))


@torch.inference_mode()
def pixel_features(image: np.ndarray, patch: float, device: torch.device) -> Tensor:
    """What pixels are compared by.

    Args:
        image: uint8 (H, W, 3).
        patch: side of one of the model's patches, or the step at which it is looked at, in the image's pixels.
        device: where to compute.

    Returns:
        float (f, h, w) at the `working_size` of `incontext.refinement`: colours in 0..1, sharp and blurred, then y and
        x in 0..1.
    """
    pixels = working_picture(torch.tensor(image, device=device).movedim(-1, 0), patch)
    height, width = pixels.shape[1:]
    unit = patch * (height * width / (image.shape[0] * image.shape[1])) ** 0.5
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) / width).expand(height, width)
    blurred = [_blur(pixels, max(0.5, share * unit)) for share in _BLURS]
    return torch.cat([pixels, *blurred, torch.stack((y, x))])


def _blur(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian means of (c, h, w), with the border repeated."""
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]
    planes = planes[:, None]
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel)
    return F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.mT)[:, 0]


def _spread(count: int, most: int, device: torch.device) -> Tensor:
    """At most so many indexes below a count, evenly spread."""
    if count <= most:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, most, device=device, dtype=torch.float64).round().long()


def _join(samples: Sequence[Sample], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features and values of at most so many pixels of all samples, and the number of the sample that each is from."""
    parts = [sample.thinned(max(1, most // len(samples))) for sample in samples]
    owner = [torch.full((len(features),), k, device=features.device) for k, (features, _) in enumerate(parts)]
    return torch.cat([each[0] for each in parts]), torch.cat([each[1] for each in parts]), torch.cat(owner)


def _covariance(features: Tensor, values: Tensor) -> Tensor:
    """(f - 2, f - 2): the mean covariance of the colours within an id, every id counting alike."""
    weights = values[:, values.sum(0) > 0.5]
    weights = weights / weights.sum(0)
    colours = features[:, :-2]
    means = weights.T @ colours
    covariance = (colours.T * weights.mean(1)) @ colours - means.T @ means / len(means)
    return covariance + torch.diag(_RIDGE * covariance.diag() + _FLOOR)


def _metric(covariance: Tensor, place: float) -> Tensor:
    """(f, f): whitens the colours, scales the place."""
    count = len(covariance)
    metric = torch.zeros(count + 2, count + 2, device=covariance.device)
    metric[:count, :count] = (
        torch.linalg.cholesky(torch.linalg.inv(covariance.double())).to(metric) * (3 / count) ** 0.5
    )
    metric[count, count] = metric[count + 1, count + 1] = place
    return metric


def _apart(pixels: Tensor, part: Tensor) -> float:
    """How far pixels are from the nearest one of another part, the median; 0 where there is one part only."""
    numbers = part.unique().tolist()
    if len(numbers) < 2:
        return 0.0
    nearest = [torch.cdist(pixels[part == number], pixels[part != number]).amin(1) for number in numbers]
    return float(torch.cat(nearest).median())


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Means of values (n, v), weighted for each query by a Gaussian of its distance to the keys: (m, v)."""
    centre = keys.mean(0)
    queries, keys = queries - centre, keys - centre
    # |q - k|^2 but for |q|^2, which a softmax does not see, is a scalar product with one more coordinate.
    queries = torch.cat([queries, torch.ones_like(queries[:, :1])], 1)
    keys = torch.cat([keys, -keys.square().sum(1, keepdim=True) / 2], 1)
    depth = -(-max(keys.shape[1], values.shape[1]) // 8) * 8  # the quick kernels want one depth, a multiple of 8
    queries, keys, padded = (F.pad(each, (0, depth - each.shape[1]))[None, None] for each in (queries, keys, values))
    compiled = compiled_attention(queries.dtype) if queries.device.type == "cpu" else None
    if compiled is not None:  # whose scale is that of attention
        means, _ = compiled(queries * (SHARPNESS**-2 * depth**0.5), keys, padded, None, None, 0, 0)
    else:
        means = F.scaled_dot_product_attention(queries, keys, padded, scale=SHARPNESS**-2)
    return means[0, 0, :, : values.shape[1]]


def _found(keys: Tensor, values: Tensor, owner: Tensor, squares: Tensor) -> Tensor:
    """(1 + K,): the IoU at which each label is found in pixels by other pixels.

    Between examples (`owner`) where several show an id, else between the two colours of a checkerboard on each
    (`squares`).
    """
    found = _crossed(keys, values, squares)
    if int(owner.max()) > 0:
        several = torch.stack([(values[owner == k] > 0.5).any(0) for k in range(int(owner.max()) + 1)]).sum(0) > 1
        found = torch.where(several, _crossed(keys, values, owner), found)
    return found


def _crossed(keys: Tensor, values: Tensor, part: Tensor) -> Tensor:
    """(1 + K,): the IoU of each label when every part is labelled by all the others."""
    labels, guesses = values.argmax(1), torch.full((len(values),), -1, device=values.device)
    for number in part.unique().tolist():
        mine = part == number
        if not bool(mine.all()):
            guesses[mine] = _attend(keys[mine], keys[~mine], values[~mine]).argmax(1)
    each = torch.arange(values.shape[1], device=values.device)[:, None]
    right, guessed = labels == each, guesses == each
    return (right & guessed).sum(1) / (right | guessed).sum(1).clamp_min(1)


def _held(mask: Tensor, patch: tuple[float, float]) -> Tensor:
    """The IoU of a mask, bool (H, W), with what is left of it on a grid of `GRAIN`."""
    size = mask.shape
    grid = [max(1, round(side / (GRAIN * step))) for side, step in zip(size, patch, strict=True)]
    coarse = F.interpolate(mask[None, None].float(), grid, mode="area")
    coarse = F.interpolate(coarse, size, mode="bilinear")[0, 0] > 0.5
    return (mask & coarse).sum() / (mask | coarse).sum().clamp_min(1)
