"""The optimiser: which weights learn, at which rate, and how the rate goes over a run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from incontext.model.seggpt import SegGPT
from incontext.training.config import TrainConfig
from incontext.training.low_rank import add_low_rank
from incontext.training.muon import Muon

_HEAD = ("decoder_embed", "decoder_pred")
_TOKENS = ("token", "pos_embed", "rel_pos")


def choose_trainable(model: SegGPT, config: TrainConfig) -> None:
    """Freezes what is not to learn, and adds low-rank weights where they are asked for; changes the model in place."""
    if config.trainable == "all":
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.trainable == "head" and name.startswith(_HEAD))
    if config.trainable == "low-rank":
        add_low_rank(model, config.rank, torch.Generator().manual_seed(config.seed))


class Optimisers:
    """Several optimisers that act as one.

    Attributes:
        parts: each with parameters of its own.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Takes a step with each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict`."""
        for part, each in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(each)


def make_optimiser(
    model: nn.Module, config: TrainConfig, classifier: nn.Module | None = None
) -> torch.optim.Optimizer | Optimisers:
    """The optimiser of the weights that learn.

    Weights of linear and convolution layers decay; tokens, positions, norms and biases do not. Each group has a
    "scale" that its learning rate is multiplied by. With `Muon` the matrices of the blocks take its orthogonal steps,
    all else is AdamW's.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(token in name for token in _TOKENS)
            turns = config.optimiser == "muon" and decays and parameter.ndim == 2 and name.startswith("blocks.")
            scale = config.layer_decay ** (model.config.depth + 1 - layer_of(name, model.config.depth))
            groups.setdefault((scale, decays, turns), []).append(parameter)
    options: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (scale, decays, turns), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True):
        options[turns].append(
            {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "scale": scale}
        )
    if classifier is not None:
        options[False].append(
            {"params": list(classifier.parameters()), "weight_decay": config.weight_decay, "scale": 1.0}
        )
    adam = torch.optim.AdamW(options[False], lr=config.learning_rate, betas=(0.9, 0.98))
    if not options[True]:
        return adam
    muon = Muon(options[True], lr=config.learning_rate)
    return Optimisers(adam, muon)


def layer_of(name: str, depth: int) -> int:
    """Returns how far up a parameter acts: 0 patches, tokens and positions; 1..depth the blocks; depth + 1 the head."""
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    return depth + 1 if name.startswith(("norm.", *_HEAD)) else 0


def set_learning_rate(optimiser: torch.optim.Optimizer | Optimisers, config: TrainConfig, step: int) -> float:
    """Sets the rate of every group for a step; returns that of the head."""
    rate = learning_rate(config, step)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def learning_rate(config: TrainConfig, step: int) -> float:
    """Returns the rate of a step: warm-up, plateau, half a cosine down to 0."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    start = config.steps * (1 - config.decay)
    fall = max(0.0, (step - start) / max(config.steps - start, 1e-9))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards the model's."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
