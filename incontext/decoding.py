"""Paintings to labels: nearest colours at full resolution, several passes merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from incontext.palette import MAX_IDS, Palette, far_colours
from incontext.refinement import Likeness, Refinement
from incontext.tiling import resize_painting
from incontext.types import Segmentation

_STRIP = 1 << 22
"""Values (ids times pixels) decoded at once, which bounds the memory."""

_TOGETHER = 0.8  # how much the pass of several ids counts beside those of each alone, as to what is background


class Decoder:
    """Collects the paintings of one image, pass by pass, and turns them into a segmentation.

    Each pass knows the background and its own ids only. Over all passes an id keeps the probability that its
    pass gives it, the background gets the least that any pass leaves to it (a pixel is background if every
    pass says so), and all is scaled to sum to 1. With one pass that changes nothing. The label is the
    likeliest; its probability is the confidence.

    Passes of one id that follow a pass which has that id among others are a second opinion on the same part of the
    ids (see `Prompt.passes`). A model that was asked for several objects at once tells them from the background well,
    and each from the others less well than one that was asked for it alone.

    What the pixels look like (see `Likeness`) tells all of its ids apart at once, so it joins what the passes of
    these ids say together. Their probabilities wait for that at the refinement's `working_size`; but for them, memory
    does not grow with the number of passes.
    """

    def __init__(
        self,
        size: tuple[int, int],
        palettes: Sequence[Palette],
        device: torch.device,
        temperature: float,
        refinement: Refinement | None = None,
    ) -> None:
        """
        Args:
            size: (H, W) of the image.
            palettes: one for each pass, in the order of the calls of `add`; as in `Prompt.passes`.
            device: where the paintings are.
            temperature: see `Palette.probabilities`.
            refinement: fits probabilities to the looks of the image, if wanted.
        """
        self._parts = _parts(palettes)
        self._done = 0  # so many parts
        self._open: list[Sequence[Tensor]] = []  # views of the next part's passes
        self.refinement = refinement
        self.temperature = temperature
        self._waiting: list[tuple[tuple[int, ...], Tensor]] = []
        self._ids = [id for part in self._parts for id in part[0].ids]
        self._background = torch.ones(size, device=device)
        self._best = torch.zeros(size, device=device)
        self._slot = torch.zeros(size, dtype=torch.int32, device=device)  # 1 + index into _ids
        self._total = torch.zeros(size, device=device)  # over all ids
        self._painting = torch.zeros(3, *size, device=device)
        joint = far_colours(min(len(self._ids), MAX_IDS)).astype(np.float32)
        order = np.argsort(np.argsort(self._ids)) % len(joint)
        self._colours = torch.from_numpy(joint[order]).to(device)

    def add(self, views: Sequence[Tensor]) -> None:
        """Takes in one pass.

        Args:
            views: paintings of the whole image, float (3, h, w) in 0..255 each, of any one size. Their
                probabilities are averaged, not their colours: halfway between red and blue lies a purple that may be
                a third id.
        """
        part, size = self._parts[self._done], tuple(self._best.shape)
        if len(self._parts) == 1 and not self._open:
            self._painting = resize_painting(torch.stack(list(views)).mean(0)[None], size)[0]
        if self.refinement is not None:
            size = self.refinement.working_size
        views = [resize_painting(view[None], size)[0] for view in views]
        self._open.append(views)
        if len(self._open) < len(part):
            return
        if self.refinement is None:
            self._merge(part[0].ids, self._probabilities)
        else:
            self._waiting.append((part[0].ids, self._probabilities(slice(None))))
        self._open, self._done = [], self._done + 1

    def _merge(self, ids: Sequence[int], probabilities: Callable[[slice], Tensor]) -> None:
        """Takes in what is said of the background and some ids, by a function that gives (1 + n, rows, W)."""
        height, width = self._best.shape
        slots = torch.tensor([self._ids.index(id) for id in ids], device=self._best.device)
        step = max(1, _STRIP // (width * (len(ids) + 1)))
        for top in range(0, height, step):
            rows = slice(top, top + step)
            values = probabilities(rows)
            best, slot = values[1:].max(dim=0)
            better = best > self._best[rows]
            self._best[rows] = torch.where(better, best, self._best[rows])
            self._slot[rows] = torch.where(better, slots[slot].int() + 1, self._slot[rows])
            self._total[rows] += values[1:].sum(0)
            self._background[rows] = torch.minimum(self._background[rows], values[0])
            if len(self._parts) > 1:
                self._painting[:, rows] += torch.einsum("k h w, k c -> c h w", values[1:], self._colours[slots])

    def _merge_refined(self) -> None:
        """Joins passes with what the pixels look like and what is known of some, and fits them to the picture."""
        for likeness, parts in self._by_likeness():
            ids = tuple(id for part, _ in parts for id in part)
            if likeness is None:
                joined = parts[0][1]
            else:
                joined = likeness.join(_merge_passes([each for _, each in parts]), ids)
            if self.refinement.reach is not None:
                joined = self.refinement.reach.join(joined, ids)
            coefficients = self.refinement.fit(joined)
            self._merge(ids, lambda rows, of=coefficients: _scaled(self.refinement.apply(of, rows)))
        self._waiting.clear()

    def _by_likeness(self) -> list[tuple[Likeness | None, list[tuple[tuple[int, ...], Tensor]]]]:
        """Passes that one likeness knows, together; others each for itself."""
        together: dict[int | Likeness, tuple[Likeness | None, list]] = {}
        for number, (ids, probabilities) in enumerate(self._waiting):
            likeness = self.refinement.likeness(ids)
            key = number if likeness is None else likeness
            together.setdefault(key, (likeness, []))[1].append((ids, probabilities))
        return list(together.values())

    def _probabilities(self, rows: slice) -> Tensor:
        """What the passes of one part say of some rows: (1 + n, rows, W)."""
        each = []
        for palette, views in zip(self._parts[self._done], self._open, strict=True):
            likely = [palette.probabilities(view[:, rows], self.temperature) for view in views]
            each.append(torch.stack(likely).mean(0) if len(likely) > 1 else likely[0])
        together, *alone = each
        return _second(together, _merge_passes(alone)) if alone else together

    def finish(self, names: Mapping[int, str], given: np.ndarray | None = None) -> Segmentation:
        """Decides every pixel.

        Args:
            names: id -> name.
            given: int (H, W), labels that are known, negative elsewhere; they stand as they are, at
                confidence 1.

        Returns:
            The segmentation. Its painting is what the model painted; of several passes, whose colours mean
            different ids, it is the mean of one palette's colours for all ids, by their probabilities.
            `scores` has the mean confidence over each id that occurs.
        """
        if self._done < len(self._parts):
            expected, got = (sum(map(len, parts)) for parts in (self._parts, self._parts[: self._done]))
            raise RuntimeError(f"expected {expected} passes before finish, got {got + len(self._open)}")
        if self._waiting:
            self._merge_refined()
        whole = self._total + self._background
        is_object = self._best > self._background
        confidence = (torch.where(is_object, self._best, self._background) / whole).clamp(0, 1).cpu().numpy()
        slots = torch.where(is_object, self._slot, 0).cpu().numpy()
        painting = self._painting if len(self._parts) == 1 else self._painting / whole
        painting = painting.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        labels = np.array([0, *self._ids], np.int32)[slots]
        if given is not None:
            known = given >= 0
            labels = np.where(known, given, labels).astype(np.int32)
            confidence = np.where(known, np.float32(1), confidence)
            order = np.argsort([0, *self._ids])
            slots[known] = order[np.searchsorted(np.array([0, *self._ids])[order], given[known])]
        areas = np.bincount(slots.ravel(), minlength=len(self._ids) + 1)
        sums = np.bincount(slots.ravel(), confidence.ravel(), minlength=len(self._ids) + 1)
        scores = {
            id: float(min(1.0, total / area))
            for id, area, total in sorted(zip(self._ids, areas[1:], sums[1:], strict=True))
            if area
        }
        return Segmentation(labels, confidence, np.ascontiguousarray(painting), scores, names)


def _parts(palettes: Sequence[Palette]) -> list[list[Palette]]:
    """Puts the passes of single ids to the pass of several that they follow."""
    parts: list[list[Palette]] = []
    for palette in palettes:
        if parts and set(palette.ids) <= set(parts[-1][0].ids):
            parts[-1].append(palette)
        else:
            parts.append([palette])
    return parts


def _second(together: Tensor, alone: Tensor) -> Tensor:
    """Joins what one pass says of several ids with what passes of each alone say, (1 + n, h, w) both."""
    background = torch.lerp(alone[0], together[0], _TOGETHER)
    return torch.cat([background[None], _scaled(together[1:] + alone[1:]) * (1 - background)])


def _merge_passes(passes: Sequence[Tensor]) -> Tensor:
    """Probabilities of all ids from those of each pass.

    Args:
        passes: float (1 + n, h, w) each, of the background and of the pass's ids.

    Returns:
        float (1 + the sum of all n, h, w): the ids as their passes say, and the least background of all; scaled to
        sum to 1.
    """
    background = torch.stack([each[0] for each in passes]).amin(0)
    return _scaled(torch.cat([background[None], *(each[1:] for each in passes)]))


def _scaled(values: Tensor) -> Tensor:
    """To sum to 1 over the first axis."""
    return values / values.sum(0).clamp_min(1e-6)
