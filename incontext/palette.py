"""Label ids to colours and back.

The model paints: every id gets a colour, the background is black, and the nearest colour decides what a
painted pixel means. Colours that lie far apart make that decision safe; random ones make the model read the
colour from the example instead of knowing it by heart (SegGPT, arXiv 2304.03284, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

MAX_IDS = 255
"""The most ids of one palette."""

DEFAULT_TEMPERATURE = 2 * 64.0**2
"""Softmax temperature over squared colour distances (0..255 units).

exp(-distance^2 / temperature) is a Gaussian whose variance is half the temperature: the default says that a
painted channel is off by 64 of 255 (standard deviation). It moves confidences only, never labels.
"""


@dataclass(frozen=True, eq=False)
class Palette:
    """Ids and their colours. The background (id 0) is black, always, and not listed.

    Attributes:
        ids: K distinct ids >= 1, K in 0..255.
        colours: uint8 (K, 3), RGB, distinct and not black.

    Raises:
        ValueError: ids or colours break these rules.
    """

    ids: tuple[int, ...]
    colours: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _check_ids(self.ids))
        colours = np.asarray(self.colours)
        if colours.dtype != np.uint8 or colours.shape != (len(self.ids), 3):
            raise ValueError(
                f"colours: expected uint8 ({len(self.ids)}, 3) for {len(self.ids)} ids, "
                f"got {colours.dtype} {colours.shape}"
            )
        if len(np.unique(np.vstack([colours, np.zeros((1, 3), np.uint8)]), axis=0)) != len(colours) + 1:
            raise ValueError("colours: expected distinct colours, none of them black (that is the background)")
        object.__setattr__(self, "colours", colours)

    @classmethod
    def for_ids(cls, ids: Iterable[int]) -> Palette:
        """The palette whose colours lie as far apart, and as far from black, as a search finds; the same
        every time.

        Raises:
            ValueError: an id is below 1 or occurs twice, or there are more than `MAX_IDS`.
        """
        ids = _check_ids(ids)
        return cls(ids, far_colours(len(ids)))

    @classmethod
    def random(cls, ids: Iterable[int], generator: torch.Generator | None = None) -> Palette:
        """A palette of random colours that keep their distance from each other and from black; see
        `random_colours`.

        Raises:
            ValueError: an id is below 1 or occurs twice, or there are more than `MAX_IDS`.
        """
        ids = _check_ids(ids)
        return cls(ids, random_colours(len(ids), generator)[0])

    @property
    def separation(self) -> float:
        """The least distance between two colours, black among them (0..442; 442 for an empty palette)."""
        points = np.vstack([np.zeros((1, 3)), self.colours.astype(np.float64)])
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        distances[np.diag_indices(len(points))] = 255 * 3**0.5
        return float(distances.min())

    def paint(self, labels: np.ndarray) -> np.ndarray:
        """Labels (..., H, W) of any integer type -> uint8 (..., H, W, 3). Ids that are not listed and
        `IGNORE` are black."""
        table = np.vstack([np.zeros((1, 3), np.uint8), self.colours])
        return table[self._slots(labels)]

    def probabilities(self, painting: torch.Tensor, temperature: float = DEFAULT_TEMPERATURE) -> torch.Tensor:
        """How likely each pixel is background or each id: softmax(-distance^2 / temperature).

        Args:
            painting: float (..., 3, H, W) in 0..255.
            temperature: in squared colour units; see `DEFAULT_TEMPERATURE`.

        Returns:
            float32 (..., K + 1, H, W) that sums to 1 over K + 1; index 0 is the background, index i + 1 is
            `ids[i]`.
        """
        return torch.softmax(-self._squared_distances(painting) / temperature, dim=-3)

    def decode(
        self, painting: torch.Tensor, temperature: float = DEFAULT_TEMPERATURE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest colour of every pixel.

        Args:
            painting: float (..., 3, H, W) in 0..255.
            temperature: see `probabilities`.

        Returns:
            labels int32 (..., H, W) and confidence float32 (..., H, W): the probability of the chosen label,
            from 1 / (K + 1) to 1. Both are tensors on the painting's device.
        """
        ids = torch.tensor([0, *self.ids], dtype=torch.int32, device=painting.device)
        height, width = painting.shape[-2:]
        planes = max(1, painting.numel() // max(1, 3 * height * width))
        rows = max(1, _DECODE_VALUES // max(1, planes * width * len(ids)))
        labels, confidence = [], []
        for strip in painting.split(rows, dim=-2):  # strips bound the memory: K + 1 values per pixel add up
            best, slot = self.probabilities(strip, temperature).max(dim=-3)
            labels.append(ids[slot])
            confidence.append(best)
        return torch.cat(labels, dim=-2), torch.cat(confidence, dim=-2)

    def _slots(self, labels: np.ndarray) -> np.ndarray:
        """Labels -> index into (black, *colours)."""
        ids = np.asarray(self.ids, np.int64)
        if not len(ids):
            return np.zeros(labels.shape, np.intp)
        if ids.max() <= 0xFFFF:
            table = np.zeros(ids.max() + 2, np.intp)
            table[ids] = np.arange(1, len(ids) + 1)
            return table[np.where((labels > 0) & (labels <= ids.max()), labels, 0).astype(np.intp)]
        order = np.argsort(ids)
        at = np.searchsorted(ids[order], labels).clip(max=len(ids) - 1)
        return np.where(ids[order][at] == labels, order[at] + 1, 0)

    def _squared_distances(self, painting: torch.Tensor) -> torch.Tensor:
        """float (..., 3, H, W) -> float32 (..., K + 1, H, W)."""
        if painting.ndim < 3 or painting.shape[-3] != 3:
            raise ValueError(f"painting: expected (..., 3, H, W), got {tuple(painting.shape)}")
        points = np.vstack([np.zeros((1, 3), np.uint8), self.colours])
        points = torch.from_numpy(points).to(painting.device, torch.float32)
        painting = painting.float()
        distances = [(painting - point[:, None, None]).square().sum(dim=-3) for point in points]
        return torch.stack(distances, dim=-3)


_DECODE_VALUES = 1 << 24


@lru_cache(maxsize=256)
def far_colours(count: int) -> np.ndarray:
    """Colours far from each other and from black: uint8 (count, 3), read-only, the same every time.

    The best of several searches for the largest least distance: farthest points of a fine grid of the RGB
    cube, from several first colours, and farthest points of the smallest face-centred lattice that holds
    enough. Where colours are few, each then moves to the best place that the others leave, until none moves.
    One colour is white; three make a regular tetrahedron with black; 255 lie 51 apart.
    """
    grid = _cube(17)
    levels = next(n for n in range(2, 9) if n**3 / 2 >= count + 1 or n == 8)
    lattice = _cube(levels)
    lattice = lattice[(lattice * (levels - 1) / 255).round().sum(axis=1) % 2 == 0]
    searches = [(grid, first) for first in ((255, 255, 255), (255, 255, 0), (255, 0, 0), (128, 128, 128))]
    searches.append((lattice, lattice[-1]))
    best, widest = np.zeros((count, 3)), -1.0
    for candidates, first in searches if count else ():
        points = _farthest_points(candidates, first, count)
        if count <= _REFINED:
            _spread(points, grid)
        distances = ((points[:, None] - points[None]) ** 2).sum(axis=-1) + np.diag([np.inf] * len(points))
        if distances.min() > widest:
            best, widest = points[1:], distances.min()
    colours = best.astype(np.uint8)
    colours.flags.writeable = False
    return colours


_REFINED = 24


def _cube(levels: int) -> np.ndarray:
    """(levels^3, 3): an even grid of the RGB cube, whole numbers."""
    steps = np.linspace(0, 255, levels).round()
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)


def _farthest_points(candidates: np.ndarray, first: Sequence[float], count: int) -> np.ndarray:
    """(count + 1, 3): black, `first`, then always the candidate that is farthest from all before it."""
    points = np.zeros((count + 1, 3))
    points[1] = first
    nearest = (candidates**2).sum(axis=1)
    for k in range(2, count + 1):
        nearest = np.minimum(nearest, ((candidates - points[k - 1]) ** 2).sum(axis=1))
        points[k] = candidates[nearest.argmax()]
    return points


def _spread(points: np.ndarray, grid: np.ndarray) -> None:
    """Moves all points but the first, in place, to where others are farther away, until none gains."""
    distances = ((grid[:, None] - points[None]) ** 2).sum(axis=-1)  # (grid, points)
    for _ in range(20):
        moved = False
        for k in range(1, len(points)):
            others = np.delete(distances, k, axis=1).min(axis=1)
            best = int(others.argmax())
            if others[best] > ((np.delete(points, k, axis=0) - points[k]) ** 2).sum(axis=1).min():
                points[k] = grid[best]
                distances[:, k] = ((grid - grid[best]) ** 2).sum(axis=1)
                moved = True
        if not moved:
            return


def random_colours(count: int, generator: torch.Generator | None = None, batch: int = 1) -> np.ndarray:
    """Random colours for `batch` palettes at once: uint8 (batch, count, 3).

    Colours are uniform over the RGB cube but for their distance: each is the first of 16 draws that keeps
    away from black and from those before it, or the farthest draw where none does.

    Args:
        count: colours of each palette.
        generator: where the randomness comes from; torch's global generator where it is None.
        batch: how many palettes.
    """
    draws = torch.rand((batch, count, _DRAWS, 3), generator=generator).mul_(255).round_().numpy()
    apart = (0.6 * 255 / (count + 1) ** (1 / 3)) ** 2
    rows = np.arange(batch)
    nearest = (draws**2).sum(axis=-1)  # (batch, count, draws): squared distance to black and to every colour so far
    colours = np.empty((batch, count, 3), np.float32)
    for k in range(count):
        far = nearest[:, k] >= apart
        pick = np.where(far.any(axis=1), far.argmax(axis=1), nearest[:, k].argmax(axis=1))
        colours[:, k] = draws[rows, k, pick]
        rest = ((draws[:, k + 1 :] - colours[:, k, None, None]) ** 2).sum(axis=-1)
        nearest[:, k + 1 :] = np.minimum(nearest[:, k + 1 :], rest)
    return colours.astype(np.uint8)


_DRAWS = 16


def split_ids(ids: Sequence[int], per_pass: int) -> list[tuple[int, ...]]:
    """Ids for several passes: as few as `per_pass` allows, sizes within one of each other, order kept.

    Raises:
        ValueError: `per_pass` is not in 1..255.
    """
    if not 1 <= per_pass <= MAX_IDS:
        raise ValueError(f"per_pass: expected 1 to {MAX_IDS} ids in one pass, got {per_pass}")
    passes = -(-len(ids) // per_pass)
    bounds = [len(ids) * k // passes for k in range(passes + 1)] if passes else [0]
    return [tuple(ids[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]


@lru_cache(maxsize=1)
def voc_colours() -> np.ndarray:
    """The colours of PASCAL VOC's indexed PNGs: uint8 (256, 3), read-only; 0 is black, 255 is "void".

    Bit b of the index, counted in threes, is bit 7 - b // 3 of red, green and blue in turn.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    colours.flags.writeable = False
    return colours


def _check_ids(ids: Iterable[int]) -> tuple[int, ...]:
    ids = tuple(int(i) for i in ids)
    if len(ids) > MAX_IDS:
        raise ValueError(
            f"expected at most {MAX_IDS} ids in one palette, got {len(ids)}; split_ids makes several passes"
        )
    if len(set(ids)) != len(ids) or any(i < 1 for i in ids):
        raise ValueError(f"expected distinct ids from 1 on (0 is the background), got {ids}")
    return ids
