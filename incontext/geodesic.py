"""How far the known pixels of a query reach along its picture: clicks, scribbles, boxes and masks painted on it.

A pixel is near to a click where a path leads to it along which colours hardly change: the geodesic distance of Bai and
Sapiro ("A geodesic framework for fast interactive image segmentation and matting", ICCV 2007). A click reaches the
pixels that are nearer to it than to any click that says otherwise, up to where the distances of the whole picture part
into near and far, by the criterion of Otsu ("A threshold selection method from gray-level histograms", 1979) on their
logarithms.

It knows no objects, but it sees borders, and it does what a click says, where a model paints what it believes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from incontext.image import resize_image

SIDE = 96
"""Longest side, in pixels, at which paths are looked for."""

STEEPNESS = 4.0
"""Exponent of the distance in the odds of a label."""

ALONE = 0.3
"""How much the model counts beside what clicks reach, where no example says what is meant."""

CORRECTION = 0.8
"""How far clicks reach beside examples, where they only correct, as a share of how far they would."""

_SMOOTHING = 1.0  # standard deviation, in pixels, before colours are compared
_STEP = 0.5  # cost of one pixel of a path in the flat, in units of CIELAB
_SAME = 10.0  # distances well below this, in units of CIELAB, are the same to the criterion of near and far
_PARTS = np.linspace(0.02, 0.7, 64)  # shares of a picture that clicks may reach
_BOUNDS = (-2.0, 3.0)  # of the logarithm of how many times nearer
_UNKNOWN = -9.0  # of a label that is known nowhere
_DOUBT = 0.005  # probability of what a model excludes
_FEWEST = 64  # pixels that near and far are parted among
_LEAST = 1e-3  # distance
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, eq=False)
class Reach:
    """What the known pixels of one picture reach.

    Attributes:
        ids: that are known somewhere.
        away: float (1 + K, h, w), distances to known pixels of the background and of each id; infinite where none is.
        alone: nothing but the known pixels says what is meant, so that what they do not reach is background.
    """

    ids: tuple[int, ...]
    away: np.ndarray
    alone: bool

    @classmethod
    def of(cls, image: np.ndarray, given: np.ndarray, *, alone: bool) -> Reach:
        """Looks for paths.

        Args:
            image: uint8 (H, W, 3).
            given: int (H, W), ids, 0 for the background, negative where nothing is known.
            alone: whether nothing else says what is meant.
        """
        shrink = min(1.0, SIDE / max(given.shape))
        size = tuple(max(1, round(side * shrink)) for side in given.shape)
        rows, columns = np.nonzero(given >= 0)
        labels = given[rows, columns]
        at = (rows * size[0] // given.shape[0]) * size[1] + columns * size[1] // given.shape[1]
        ids = tuple(id for id in np.unique(labels).tolist() if id)
        away = np.full((1 + len(ids), *size), np.inf)
        graph = _graph(_colours(resize_image(image, size)))
        for slot, id in enumerate((0, *ids)):
            known = np.unique(at[labels == id])
            if len(known):
                away[slot] = dijkstra(graph, directed=False, indices=known, min_only=True).reshape(size)
        return cls(ids, away, alone)

    def join(self, probabilities: Tensor, ids: Sequence[int]) -> Tensor:
        """Joins what is known with what a model says.

        Args:
            probabilities: float (1 + n, h, w), of the background and of ids; they sum to 1.
            ids: these ids.

        Returns:
            float (1 + n, h, w) that sum to 1.
        """
        guess = F.interpolate(probabilities[None], self.away.shape[1:], mode="bilinear")[0].argmax(0).cpu().numpy()
        slots = [1 + self.ids.index(id) if id in self.ids else None for id in ids]
        others = [slot for slot in range(1 + len(self.ids)) if slot not in slots]
        away = [self.away[others].min(0)]  # to these ids, others are background
        away += [np.full_like(away[0], np.inf) if slot is None else self.away[slot] for slot in slots]
        near = torch.from_numpy(self._nearness(np.stack(away), guess)).to(probabilities)
        near = F.interpolate(near[None], probabilities.shape[1:], mode="bilinear")[0]
        odds = (probabilities + _DOUBT).log()
        if self.alone:
            odds = ALONE * odds
            near[0].clamp_(min=0)
        else:
            near = near.clamp(min=0) * (near == near.amax(0))
        return (odds + STEEPNESS * near).softmax(0)

    def _nearness(self, away: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """The logarithm of how many times nearer each pixel is than the farthest that is reached.

        Where a model has an opinion, a click corrects it: near and far part among the pixels that it would change.

        Args:
            away: float (1 + n, h, w).
            guess: int (h, w), 0..n, what the model says.

        Returns:
            float (1 + n, h, w).
        """
        near = np.full_like(away, _UNKNOWN)
        known = [slot for slot in range(len(away)) if np.isfinite(away[slot]).all()]
        reached = {}
        for slot in known:
            changed = away[slot][guess != slot]
            whole = self.alone or len(changed) < _FEWEST
            reached[slot] = _farthest_near(away[slot].ravel() if whole else changed)
            reached[slot] *= 1.0 if self.alone else CORRECTION
        if self.alone and 0 in reached:  # no background of its own, but for what is clicked
            reached[0] = max((limit for slot, limit in reached.items() if slot), default=reached[0])
        for slot, limit in reached.items():
            near[slot] = np.log((limit + _LEAST) / (away[slot] + _LEAST)).clip(*_BOUNDS)
        return near


def _colours(image: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB under D65, smoothed: uint8 (h, w, 3) -> float (h, w, 3)."""
    light = image / 255
    light = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    ratio = light @ _XYZ.T / _XYZ.sum(1)
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    lab = np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)
    return gaussian_filter(lab, (_SMOOTHING, _SMOOTHING, 0))


def _graph(colours: np.ndarray) -> csr_matrix:
    """Pixels and their eight neighbours; an edge costs what colours change along it."""
    height, width, _ = colours.shape
    number = np.arange(height * width).reshape(height, width)
    starts, ends, costs = [], [], []
    for down, right in _STEPS:
        here = np.s_[: height - down, max(0, -right) : width - max(0, right)]
        there = np.s_[down:, max(0, right) : width + min(0, right)]
        change = np.linalg.norm(colours[here] - colours[there], axis=-1)
        starts.append(number[here].ravel())
        ends.append(number[there].ravel())
        costs.append((change + _STEP * np.hypot(down, right)).ravel())
    edges = np.concatenate(starts), np.concatenate(ends)
    return csr_matrix((np.concatenate(costs), edges), shape=(number.size, number.size))


def _farthest_near(distances: np.ndarray) -> float:
    """The distance at which near and far part, so that their logarithms differ most (Otsu)."""
    values = np.sort(np.log(distances + _SAME))
    total = values.cumsum()
    near = np.unique((_PARTS * len(values)).astype(int).clip(1, max(1, len(values) - 1)))
    far = len(values) - near
    means = total[near - 1] / near, (total[-1] - total[near - 1]) / np.maximum(far, 1)
    best = near[(near * far * (means[0] - means[1]) ** 2).argmax()]
    return float(np.exp(values[[best - 1, min(best, len(values) - 1)]].mean()) - _SAME)
