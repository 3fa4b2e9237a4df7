"""The mean of several models: a "model soup" (Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch

from incontext.model.seggpt import SegGPT

# Of no weight's shape or meaning.
_SETTINGS = ("image_size", "stochastic_depth", "loss_beta", "ids_per_pass", "one_by_one", "refine")


def average_models(models: Sequence[SegGPT]) -> SegGPT:
    """Returns a model whose every weight is the mean of theirs, with the settings of the last one.

    It is worth something only for models that training leads from one to the other, or from common weights.

    Args:
        models: two or more of one architecture; they are not changed.

    Raises:
        ValueError: if there are fewer than two, or their architectures differ.
    """
    if len(models) < 2:
        raise ValueError(f"expected two models or more, got {len(models)}")
    shapes = [dataclasses.replace(each.config, **_settings(models[-1])) for each in models]
    for number, shape in enumerate(shapes):
        if shape != models[-1].config:
            raise ValueError(
                f"expected models of one architecture, got {models[number].config} and {models[-1].config}"
            )
    mean, states = copy.deepcopy(models[-1]), [each.state_dict() for each in models]
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return mean


def _settings(model: SegGPT) -> dict:
    return {name: getattr(model.config, name) for name in _SETTINGS}
