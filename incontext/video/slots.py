"""Object ids and the colours that stand for them: ids are the user's, slots and colours are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from incontext.palette import MAX_IDS, Palette, far_colours, split_ids


@dataclass(frozen=True)
class Slots:
    """Where each object's colour is: in which pass of the model, and in which place of that pass.

    Objects that come together share passes; whoever comes later gets a pass of its own. The frames before do not show
    the newcomer, or show it as background, and would speak against it; a pass is shown only frames that hold one
    of its ids. So an id keeps its pass and its colour for as long as the tracker lives.

    Attributes:
        palettes: one for each pass.
    """

    palettes: tuple[Palette, ...] = ()

    @property
    def ids(self) -> frozenset[int]:
        """The ids of all passes."""
        return frozenset(id for palette in self.palettes for id in palette.ids)

    @property
    def passes(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each pass, in the order of their slots."""
        return tuple(palette.ids for palette in self.palettes)

    def grow(self, ids: Iterable[int], per_pass: int, palette: Callable[[tuple[int, ...]], Palette]) -> Slots:
        """Slots with further ids.

        Args:
            ids: those that have a slot are left alone.
            per_pass: how many ids one pass separates well.
            palette: gives the ids of one pass their colours.

        Returns:
            Self, where nothing is new.
        """
        new = sorted(set(ids) - self.ids)
        return Slots((*self.palettes, *map(palette, split_ids(new, per_pass)))) if new else self

    def paint(self, labels: np.ndarray) -> np.ndarray:
        """Labels (H, W) in one palette for all ids, whatever their passes: uint8 (H, W, 3)."""
        ids = np.array(sorted(self.ids), np.int64)
        if not len(ids):
            return np.zeros((*labels.shape, 3), np.uint8)
        joint = far_colours(min(len(ids), MAX_IDS))
        table = np.vstack([np.zeros((1, 3), np.uint8), joint[np.arange(len(ids)) % len(joint)]])
        at = np.searchsorted(ids, labels).clip(max=len(ids) - 1)
        return table[np.where(ids[at] == labels, at + 1, 0)]
