"""How good a pack is on held-out views: its loss and IoU; and what fits it there: temperature, strength, favour."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from incontext.appearance_cache import AppearanceCache
from incontext.canvas import hidden_half
from incontext.decoding import Decoder
from incontext.image import denormalise, normalise
from incontext.model.loss import smooth_l1
from incontext.pack.prompt_pack import PromptPack, paint_slots, slot_colours
from incontext.palette import Palette
from incontext.prompt import Prompt
from incontext.training.learned_prompt import paint
from incontext.training.tune_data import IGNORED, Views

_TEMPERATURES = np.geomspace(256, 1 << 18, 21)
_STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0)
_FAVOURS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


class Score(NamedTuple):
    """
    Attributes:
        loss: mean of the training loss over passes and views.
        iou: mean over the classes that occur of intersection over union, summed over all views; 0..1.
    """

    loss: float
    iou: float


@torch.no_grad()
def score(model: nn.Module, pack: PromptPack, views: Views, balance: float, beta: float, batch_size: int) -> Score:
    """Scores a pack in its own colours.

    Args:
        model: the pack's.
        pack: the pack.
        views: images with their truth.
        balance, beta: of the loss; see `TuneConfig`.
        batch_size: views at once.
    """
    losses, both, either, there = [], 0, 0, 0
    for start in range(0, len(views), batch_size):
        batch = views[start : start + batch_size]
        paintings = paint_views(model, pack, batch)
        labels = torch.from_numpy(batch.slots.astype(np.int64)).to(paintings[0].device)
        for palette, painting in zip(pack.palettes, paintings, strict=True):
            losses.append(len(batch) * loss(painting, labels, slot_colours(pack.ids, palette), balance, beta).item())
        found = probabilities(paintings, pack.palettes, pack.temperature).argmax(1)
        counts = _count(found, labels, len(pack.ids))
        both, either, there = both + counts[0], either + counts[1], there + counts[2]
    occurs = there > 0
    iou = float((both[occurs] / either[occurs]).mean()) if occurs.any() else 0.0
    return Score(sum(losses) / (len(views) * len(pack.palettes)), iou)


@torch.no_grad()
def fit_temperature(model: nn.Module, pack: PromptPack, views: Views, batch_size: int) -> float:
    """The temperature at which the truth is likeliest, of a fixed row of them."""
    costs = np.zeros(len(_TEMPERATURES))
    for start in range(0, len(views), batch_size):
        batch = views[start : start + batch_size]
        paintings = paint_views(model, pack, batch)
        labels = torch.from_numpy(batch.slots.astype(np.int64)).to(paintings[0].device)
        valid = labels != IGNORED
        truth = torch.where(valid, labels, 0)[:, None]
        for k, temperature in enumerate(_TEMPERATURES):
            likely = probabilities(paintings, pack.palettes, temperature).gather(1, truth)[:, 0]
            costs[k] -= likely[valid].clamp_min(1e-6).log().sum().item()
    return float(_TEMPERATURES[costs.argmin()])


@torch.no_grad()
def fit_looks(model: nn.Module, pack: PromptPack, views: Views, batch_size: int) -> PromptPack:
    """The pack with the strength and the favour, of fixed rows, that give the best IoU.

    Views are segmented as a predictor does it. Where several values are as good, the nearest to 1 is taken.
    """
    looks = AppearanceCache(model.config.image_size, model.config.patch_size, torch.device("cpu"))
    paintings: list[list[Tensor]] = []  # of each view, in all passes
    for start in range(0, len(views), batch_size):
        passes = paint_views(model, pack, views[start : start + batch_size])
        paintings += map(list, zip(*(denormalise(each).cpu() for each in passes), strict=True))
    for field, values in (("strength", _STRENGTHS), ("favour", _FAVOURS), ("strength", _STRENGTHS)):
        candidates = [dataclasses.replace(pack, **{field: value}) for value in values]
        ious = [_iou_as_predicted(looks, each, views, paintings) for each in candidates]
        best = max(zip(ious, values, candidates, strict=True), key=lambda each: (each[0], -abs(math.log(each[1]))))
        pack = best[2]
    return pack


def _iou_as_predicted(
    looks: AppearanceCache, pack: PromptPack, views: Views, paintings: Sequence[Sequence[Tensor]]
) -> float:
    """Mean IoU of the classes that occur, over all views, of paintings that are decoded as a predictor does."""
    prompt, ids = Prompt.build([pack], pack.ids_per_pass), np.array([0, *pack.ids])
    counts = np.zeros((3, len(pack.ids)))
    for image, slots, passes in zip(views.images, views.slots, paintings, strict=True):
        refinement = looks.refinement(image, prompt)
        decoder = Decoder(slots.shape, pack.palettes, torch.device("cpu"), pack.temperature, refinement)
        for painting in passes:
            decoder.add([painting])
        found = (decoder.finish({}).labels[..., None] == ids).argmax(-1)
        counts += _count(torch.from_numpy(found), torch.from_numpy(slots.astype(np.int64)), len(pack.ids))
    both, either, there = counts
    return float((both / either.clip(1))[there > 0].mean()) if there.any() else 0.0


def loss(painting: Tensor, labels: Tensor, colours: Tensor, balance: float, beta: float) -> Tensor:
    """The training loss of whole paintings.

    Args:
        painting: (B, 3, h, w), normalised.
        labels: int (B, h, w): 0 background, 1..K, `IGNORED`.
        colours: (K + 1, 3), normalised; what is not asked for is black.
        balance: weight of the class-balanced loss against the published one, 0..1.
        beta: of the smooth-L1.
    """
    colours = colours.to(painting.device)
    known = torch.where(labels == IGNORED, 0, labels)
    asked = (colours != colours[0]).any(1).long()  # foreground is what is painted in this pass
    weight = _weights(asked[known].bool(), labels != IGNORED, balance)
    all_hidden = hidden_half(len(labels), tuple(labels.shape[1:]), painting.device)  # a flag for each pixel
    return smooth_l1(painting, paint_slots(known, colours), all_hidden, beta=beta, weight=weight)


def _weights(front: Tensor, valid: Tensor, balance: float) -> Tensor:
    """Weight of each pixel, (B, 1, h, w): between 1 and, at balance 1, what gives foreground and background of each
    view half the weight each. 0 where a pixel is not valid."""
    front, back = front & valid, ~front & valid
    total, fronts, backs = (each.sum((1, 2), keepdim=True).clamp_min(1) for each in (valid, front, back))
    even = total / 2 * (front / fronts + back / backs)
    both = front.any(2).any(1) & back.any(2).any(1)
    even = torch.where(both[:, None, None], even, valid.float())
    return ((1 - balance) * valid + balance * even)[:, None]


def paint_views(model: nn.Module, pack: PromptPack, views: Views) -> list[Tensor]:
    """Paintings of views, (B, 3, h, w) in normalised space for each pass; black where no example shows any of it."""
    parameter = next(model.parameters())
    queries = normalise(views.images).to(parameter.device, parameter.dtype)
    paintings = []
    for palette in pack.palettes:
        images, targets = (each[None].to(parameter.device, parameter.dtype) for each in pack.canvases(palette))
        if images.shape[1]:
            tokens = pack.kept_tokens(palette)
            tokens = None if tokens is None else tokens.to(parameter.device, parameter.dtype)
            painting = paint(model, queries, images, targets, pack.kind, pack.ensemble, tokens=tokens)
        else:
            painting = normalise(np.zeros_like(views.images)).to(parameter.device)
        paintings.append(painting.float())
    return paintings


def probabilities(paintings: Sequence[Tensor], palettes: Sequence[Palette], temperature: float) -> Tensor:
    """Paintings of all passes -> (B, K + 1, h, w), merged as `incontext.decoding.Decoder` does."""
    each = [
        palette.probabilities(denormalise(painting), temperature)
        for palette, painting in zip(palettes, paintings, strict=True)
    ]
    if len(each) == 1:
        return each[0]
    background = torch.stack([part[:, 0] for part in each]).amin(0)
    merged = torch.cat([background[:, None], *(part[:, 1:] for part in each)], 1)
    return merged / merged.sum(1, keepdim=True)


def _count(found: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Pixels of each class in both, in either and in the truth: (3, K)."""
    valid = labels != IGNORED
    table = torch.bincount(found[valid] * (classes + 1) + labels[valid], minlength=(classes + 1) ** 2)
    table = table.reshape(classes + 1, classes + 1).cpu().numpy().astype(np.float64)
    both, truth = table.diagonal()[1:], table.sum(0)[1:]
    return np.stack([both, table.sum(1)[1:] + truth - both, truth])
