"""Fixed episodes that a model is scored on while it trains, and the picture of some of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from incontext.image import denormalise
from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch, collate, decode, prepare
from incontext.training.config import TrainConfig
from incontext.training.episodes import EpisodeSampler, Mixture
from incontext.training.pack import IGNORE_ID, Pack

CLICKED = "clicked"
"""The name of the episodes without examples, whose queries have prompts on them."""

_AT_ONCE = 16
_PICTURED = 3  # episodes of each set
_GAP = 4


def fixed_episodes(pack: Pack, config: TrainConfig, patch_size: int, count: int = 32) -> dict[str, Batch]:
    """Draws the validation episodes, the same for every run at one size.

    Args:
        pack: the images.
        config: of the run; its views' size counts, and whether it trains on prompts.
        patch_size: the model's.
        count: episodes of each set.

    Returns:
        The name of each set with shared classes -> one-shot episodes of whole images as one batch; and, if the run
        trains on prompts, `CLICKED`.
    """
    plain = dict(pasted=0.0, rendered=0.0, frames=0.0, segments=0.0, stitched=0.0, augment=False)
    batches = {}
    for name in EpisodeSampler(pack, Mixture({})).by_class:
        weights = {other: float(other == name) for other in pack.sets}
        sampler = EpisodeSampler(pack, Mixture(weights, views=0.0, **plain))
        rng = np.random.default_rng(0)
        raw = collate([sampler.draw(rng, config.size) for _ in range(count)], patch_size, rng)
        batches[name] = prepare(raw, patch_size, config.unsaid)
    if config.prompted > 0 or 0 in config.shots:
        sampler, rng = EpisodeSampler(pack, Mixture({}, views=1.0, **plain)), np.random.default_rng(0)
        raw = collate([sampler.draw(rng, config.size, shots=0) for _ in range(count)], patch_size, rng)
        batches[CLICKED] = prepare(raw, patch_size, config.unsaid)
    return batches


@torch.inference_mode()
def paint_episodes(model: SegGPT, episodes: Mapping[str, Batch], device: torch.device) -> dict[str, Tensor]:
    """Returns the paintings of fixed episodes by set, each (B, 3, H, W), on the CPU."""
    paintings = {}
    for name, batch in episodes.items():
        parts = []
        kind = None if name == CLICKED else "semantic"
        for part in batch.split(_AT_ONCE):
            parts.append(part.to(device).paint(model, kind).float().cpu())
        paintings[name] = torch.cat(parts)
    return paintings


def score(paintings: Mapping[str, Tensor], episodes: Mapping[str, Batch]) -> dict[str, float]:
    """Scores paintings.

    Returns:
        The name of each set -> IoU of the painted things together, averaged over episodes, 0..1; and "mean" over the
        sets with examples.
    """
    scores = {}
    for name, batch in episodes.items():
        front, truth = decode(paintings[name], batch.colours) > 0, batch.labels > 0
        counted = (batch.labels != IGNORE_ID) & (batch.unknown[:, 0] > 0)  # what was said is no merit
        both = (front & truth & counted).sum((1, 2)).float()
        either = ((front | truth) & counted).sum((1, 2)).clamp_min(1)
        scores[name] = (both / either).mean().item()
    shown = [value for name, value in scores.items() if name != CLICKED]
    return scores | ({"mean": sum(shown) / len(shown)} if shown else {})


def picture(paintings: Mapping[str, Tensor], episodes: Mapping[str, Batch]) -> np.ndarray | None:
    """Lays some episodes out, a row each: example, its target, query with what it is told, painting, truth.

    Returns:
        uint8 (H, W, 3); None without episodes.
    """
    rows = []
    for name, batch in episodes.items():
        for index in range(min(_PICTURED, len(batch))):
            query = _bytes(batch.query[index])
            told = (batch.unknown[index, 0] == 0).numpy()[..., None]
            cells = [np.zeros_like(query)] * 2
            if batch.example_images.shape[1]:
                cells = [_bytes(batch.example_images[index, 0]), _bytes(batch.example_targets[index, 0])]
            shown = np.where(told, _bytes(batch.shown[index]), query)
            cells += [shown, _bytes(paintings[name][index]), _bytes(batch.target[index])]
            rows.append(np.concatenate([np.pad(cell, ((0, _GAP), (0, _GAP), (0, 0))) for cell in cells], axis=1))
    return np.concatenate(rows) if rows else None


def _bytes(image: Tensor) -> np.ndarray:
    return denormalise(image).round().byte().movedim(0, -1).numpy()
