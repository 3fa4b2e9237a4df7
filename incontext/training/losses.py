"""The losses of a batch, each with what it was averaged over, so that parts of a batch add up to the whole."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from incontext.model.loss import smooth_l1
from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch, decode, pixel_weights
from incontext.training.class_loss import ClassLoss, class_weights
from incontext.training.config import TrainConfig
from incontext.training.matching import MatchingLoss
from incontext.training.prompts import correct


class Weights(NamedTuple):
    """Weights of a batch's pixels and tokens, named as the losses are.

    Attributes:
        loss: (B, 1, H, W), of the painting loss: 0 where something is said already, and where labels are ignored.
        matching: (B, 1, H, W), of the matching loss.
        classes: (B, V, l), of the class loss.
    """

    loss: Tensor
    matching: Tensor
    classes: Tensor

    @property
    def totals(self) -> Tensor:
        """(3,): what each loss is averaged over."""
        return torch.stack([weight.sum() for weight in self])


def weigh(batch: Batch, config: TrainConfig, progress: float) -> Weights:
    """Weighs the pixels of a batch, at a point of the run in 0..1.

    Painted are the patches of which nothing is said; and in those that are shown, the pixels beside what is said.
    """
    weight = pixel_weights(batch.labels, between(config.balance, progress))
    return Weights(weight * batch.unknown, weight, class_weights(batch))


def losses(
    model: SegGPT,
    batch: Batch,
    weights: Weights,
    config: TrainConfig,
    progress: float,
    classifier: nn.Linear | None = None,
) -> dict[str, Tensor]:
    """Runs the model; returns the name of each loss -> its mean over this batch, times its factor in the sum."""
    factor, naming_factor = between(config.matching, progress), between(config.classes, progress)
    # The head has no part in attention, and without examples there is nothing to match.
    learns = config.trainable != "head"
    matches = factor > 0 and learns and batch.example_images.shape[1] > 0
    names = naming_factor > 0 and learns and classifier is not None and bool(weights.classes.any())
    with autocast(config, batch.query.device.type), contextlib.ExitStack() as stack:
        matching = stack.enter_context(MatchingLoss(model)) if matches else None
        naming = stack.enter_context(ClassLoss(model, classifier)) if names else None
        painting = batch.paint(model)
        everywhere = torch.ones_like(batch.hidden)  # the weights say where
        found = {"loss": smooth_l1(painting.float(), batch.target, everywhere, beta=config.beta, weight=weights.loss)}
        if matching:
            found["matching"] = factor * matching(batch, weights.matching)
        if naming:
            found["classes"] = naming_factor * naming(batch, weights.classes)
    return found


@torch.no_grad()
def correct_batch(model: SegGPT, batch: Batch, config: TrainConfig) -> Batch:
    """Lets the model paint the queries marked as `corrected`, and tells them what it got wrong; see `prompts.correct`.

    Args:
        model: left in the mode that it is in.
        batch: on the model's device.
        config: how to train.

    Returns:
        The batch, with more said.
    """
    marked = batch.corrected.nonzero()[:, 0]
    if not len(marked):
        return batch
    said, training, paintings = batch.said.cpu().numpy().copy(), model.training, []
    chosen = batch.take(marked)
    model.eval()
    for part in chosen.split(config.micro_batch or len(batch)):
        with autocast(config, batch.query.device.type):
            painting = part.paint(model)
        paintings.append(decode(painting, part.colours))
    model.train(training)
    painted, labels = (each.cpu().numpy().astype(np.uint8) for each in (torch.cat(paintings), chosen.labels))
    for place, row in enumerate(marked.tolist()):
        rng = np.random.default_rng(int(chosen.seeds[place]))
        said[row] = correct(rng, labels[place], painted[place], said[row], model.config.patch_size)
    return batch.tell(torch.from_numpy(said).to(batch.said.device), model.config.patch_size)


def autocast(config: TrainConfig, device_type: str) -> contextlib.AbstractContextManager:
    """The context in which the model runs at the config's precision."""
    return torch.autocast(device_type, torch.bfloat16) if config.precision == "bf16" else contextlib.nullcontext()


def between(ends: tuple[float, float], progress: float) -> float:
    """Goes evenly from one number to another while `progress` goes from 0 to 1."""
    return ends[0] + (ends[1] - ends[0]) * progress
