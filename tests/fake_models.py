"""Models whose right answer is known, for tests of what surrounds a model."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from incontext.model.config import PRESETS
from incontext.types import Example


class FakeModel(nn.Module):
    """Has a config and the forward signature of `SegGPT`, and remembers its calls."""

    def __init__(self, **changes) -> None:
        super().__init__()
        self.config = dataclasses.replace(PRESETS["tiny"], **changes)
        self.calls: list[dict] = []

    def forward(
        self,
        query,
        example_images=None,
        example_targets=None,
        *,
        query_target=None,
        hidden=None,
        kind="instance",
    ) -> Tensor:
        self.calls.append(
            {
                "query": query,
                "images": example_images,
                "targets": example_targets,
                "query_target": query_target,
                "hidden": hidden,
                "kind": kind,
            }
        )
        return self.paint(query, example_images, example_targets, query_target)

    def paint(self, query, images, targets, query_target) -> Tensor:
        raise NotImplementedError


class ColourMatcher(FakeModel):
    """Segments perfectly where colour decides: paints each query pixel like the example pixel of nearest
    colour."""

    def paint(self, query, images, targets, query_target):
        if images is None:
            return query_target
        painted = []
        for one, shown, paint in zip(query, images, targets, strict=True):
            known = shown.transpose(0, 1).flatten(1)  # (3, N * h * w)
            nearest = torch.cdist(one.flatten(1).T, known.T).argmin(1)
            painted.append(paint.transpose(0, 1).flatten(1)[:, nearest].unflatten(1, one.shape[1:]))
        return torch.stack(painted)


class MaskCopier(FakeModel):
    """Paints the first example's target, wherever the query's objects are."""

    def paint(self, query, images, targets, query_target):
        return targets[:, 0]


# What things look like in scenes: far-apart colours, none of them the palette's own.
LOOKS = np.array(
    [
        (40, 40, 40),
        (220, 60, 60),
        (60, 220, 60),
        (60, 60, 220),
        (220, 220, 60),
        (220, 60, 220),
        (60, 220, 220),
        (230, 230, 230),
        (140, 60, 20),
        (20, 90, 160),
    ],
    np.uint8,
)


def scene(labels: np.ndarray, ids=None) -> np.ndarray:
    """Renders labels (H, W): uint8 (H, W, 3), every id in its own look. `ids` says which look is whose."""
    ids = list(range(1, len(LOOKS))) if ids is None else list(ids)
    image = np.broadcast_to(LOOKS[0], (*labels.shape, 3)).copy()
    for look, id in zip(LOOKS[1:], ids, strict=False):
        image[labels == id] = look
    return image


def blocks(ids, size=(32, 32), seed=0, side=8) -> np.ndarray:
    """Random labels (H, W) in blocks of `side` pixels; every id occurs, and so does the background."""
    rng = np.random.default_rng(seed)
    rows, columns = (length // side for length in size)
    cells = rng.choice([0, *ids], size=rows * columns)
    cells[rng.permutation(rows * columns)[: len(ids) + 1]] = [0, *ids]
    return np.kron(cells.reshape(rows, columns), np.ones((side, side), int)).astype(np.int32)


def example(ids, size=(32, 32), seed=1, looks=None, names=None, side=8) -> Example:
    """An example of `blocks`."""
    labels = blocks(ids, size, seed, side)
    return Example(scene(labels, looks or ids), labels, names or {})
