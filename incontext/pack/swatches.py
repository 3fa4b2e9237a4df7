"""Pixels of many examples, few of each: what a pack keeps of the images that it was learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Swatches:
    """What queries are compared with, pixel by pixel, in place of the few examples that a pack shows the model.

    Attributes:
        features: float16 (N, n, f), of n pixels of each of N images; see `incontext.appearance.pixel_features`.
        values: float16 (N, n, K + 1), how much of a pixel is background, and each class in the order of the pack's ids.
        held: float16 (N, K), how much of each class's shape the model's patches can hold, 0..1.
        shown: uint8 (N, K), 1 for the classes that an image shows.
        scale: float32 (2,): the step at which the images are looked at, and the width of their objects, in patches.
    """

    features: Tensor
    values: Tensor
    held: Tensor
    shown: Tensor
    scale: Tensor

    @property
    def detail(self) -> float:
        """The step at which the images are looked at, in patches."""
        return float(self.scale[0])

    @property
    def width(self) -> float:
        """Of the objects, in patches."""
        return float(self.scale[1])

    def for_ids(self, own: Sequence[int], ids: Sequence[int]) -> Swatches:
        """The swatches of a pack with the ids `own`, with the columns of other ids."""
        values = torch.cat((self.values[..., :1], pick_columns(self.values[..., 1:], own, ids)), -1)
        held, shown = (pick_columns(each, own, ids) for each in (self.held, self.shown))
        return replace(self, values=values, held=held, shown=shown)


def pick_columns(values: Tensor, own: Sequence[int], ids: Sequence[int]) -> Tensor:
    """What columns (..., k) say of the ids `own`, as those of other ids, (..., K): zero for an id that is not there."""
    columns = values.new_zeros(*values.shape[:-1], len(ids))
    for column, id in enumerate(ids):
        if id in own:
            columns[..., column] = values[..., own.index(id)]
    return columns
