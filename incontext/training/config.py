"""How to train: one frozen config, which JSON files and flags fill."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from incontext.model.config import PRESETS
from incontext.training.batches import Telling
from incontext.training.episodes import Mixture

TRAINABLE = ("all", "head", "low-rank")
OPTIMISERS = ("adamw", "muon")

_WITHOUT_EFFECT = ("evaluate_every", "minutes", "micro_batch", "checkpointing")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        preset: architecture to start from nothing; ignored where `init` names a checkpoint.
        model: fields of `SegGPTConfig` that replace the preset's or the checkpoint's, those that change no weights.
        init: checkpoint to fine-tune, a file or a name that `load_model` knows; or empty.
        trainable: which weights learn: "all", the "head" that paints, or "low-rank" additions to the linear layers
            of the blocks (LoRA, arXiv 2106.09685), which the saved model has merged into plain weights.
        rank: of the low-rank additions.
        size: (H, W) of a view while training; a multiple of the patch size.
        steps, batch_size: length of the run, and episodes per step (at one shot; others see as many images).
        echoes: how many steps use each batch that was drawn, in other colours and with another view as the query each
            time (data echoing, arXiv 1907.05550): for where drawing, not the model, takes the time.
        micro_batch: episodes that go through the model at once, to bound the memory; 0 is all of a step's. The
            result does not depend on it, but for rounding.
        checkpointing: compute activations anew in the backward pass instead of keeping them.
        shots: number of examples of a step, 0 or more -> relative frequency. All episodes of a step share it.
        learning_rate: peak. It rises linearly over `warmup` steps, stays, and falls to 0 along a cosine over the last
            `decay` share of the steps. decay = 1 is the usual cosine.
        layer_decay: factor of the learning rate from each block to the one below it; 1 treats all alike.
        optimiser: "adamw", or "muon" for the matrices of the blocks, which then learn in fewer steps.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones saved.
        beta: of the smooth-L1 loss.
        balance: (at the start, at the end) weight of the class-balanced loss against the published one, 0..1.
        matching: (at the start, at the end) weight of the `MatchingLoss`.
        classes: (at the start, at the end) weight of the `ClassLoss`.
        prompted, partial, corrected, unsaid: see `Telling`.
        views, pasted, rendered, frames, segments, stitched, largest_count, recolouring, smallest_crop, weights: see
            `Mixture`.
        seed: of everything.
        evaluate_every: steps between evaluations, which also write a checkpoint. 0: only at the end.
        precision: "fp32" or "bf16" (autocast).
        minutes: stop after so many minutes, as if interrupted; 0 is no limit.

    Raises:
        ValueError: if a field is out of its range.
    """

    preset: str = "small"
    model: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""
    trainable: str = "all"
    rank: int = 8
    size: tuple[int, int] = (96, 96)
    steps: int = 10_000
    batch_size: int = 24
    echoes: int = 1
    micro_batch: int = 0
    checkpointing: bool = False
    shots: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    layer_decay: float = 1.0
    optimiser: str = "adamw"
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    beta: float = 0.1
    balance: tuple[float, float] = (1.0, 0.5)
    matching: tuple[float, float] = (1.0, 0.1)
    classes: tuple[float, float] = (0.0, 0.0)
    prompted: float = 0.25
    partial: float = 0.15
    corrected: float = 0.1
    unsaid: int = 0
    views: float = 0.25
    pasted: float = 0.15
    rendered: float = 0.1
    frames: float = 0.05
    segments: float = 0.05
    stitched: float = 0.1
    largest_count: int = 8
    recolouring: float = 1.0
    smallest_crop: float = 0.35
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    evaluate_every: int = 500
    precision: str = "fp32"
    minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("size", "balance", "matching", "classes"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "shots", {int(n): float(share) for n, share in self.shots.items()})
        choices = {"precision": ("fp32", "bf16"), "trainable": TRAINABLE, "optimiser": OPTIMISERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not self.init and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {self.preset!r}")
        if not self.init and self.trainable != "all":
            raise ValueError(f"trainable {self.trainable!r} fine-tunes a checkpoint; name one as init")
        if min(self.steps, self.batch_size, self.echoes, self.rank, self.largest_count) < 1:
            raise ValueError("steps, batch_size, echoes, rank and largest_count must be 1 or more")
        for name in (
            "micro_batch",
            "learning_rate",
            "warmup",
            "weight_decay",
            "recolouring",
            "seed",
            "evaluate_every",
            "minutes",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("clip", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("decay", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name, most in {"balance": 1.0, "matching": math.inf, "classes": math.inf}.items():
            ends = getattr(self, name)
            if len(ends) != 2 or not all(0 <= end <= most for end in ends):
                raise ValueError(f"{name} takes two numbers in [0, {most}], at the start and at the end, got {ends}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size takes two numbers of pixels, (height, width), got {self.size}")
        if not all(weight >= 0 for weight in self.weights.values()):
            raise ValueError(f"weights of sets must be 0 or more, got {dict(self.weights)}")
        if "loss_beta" in self.model:
            raise ValueError("model: loss_beta has no part in training; give beta, a field of its own, instead")
        if min(self.shots, default=-1) < 0 or min(self.shots.values()) < 0 or sum(self.shots.values()) <= 0:
            raise ValueError(
                f"shots must map numbers of examples to their shares, such as {{1: 0.9, 4: 0.1}}; got {self.shots}"
            )
        for name in (
            "prompted",
            "partial",
            "corrected",
            "views",
            "pasted",
            "rendered",
            "frames",
            "segments",
            "stitched",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the episodes, 0 to 1, got {getattr(self, name)}")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop is a share of an image, above 0 and at most 1, got {self.smallest_crop}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if not 0 <= self.unsaid <= 255:
            raise ValueError(f"unsaid is a grey level, 0 to 255, got {self.unsaid}")

    @property
    def mixture(self) -> Mixture:
        """Which episodes are drawn."""
        return Mixture(
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(Mixture)
                if field.name != "augment"
            }
        )

    @property
    def telling(self) -> Telling:
        """What queries are told."""
        return Telling(self.prompted, self.partial, self.corrected, self.unsaid)

    def identity(self) -> str:
        """The fields that decide the result, as text. How often to look, when to pause and what fits do not."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in _WITHOUT_EFFECT}
        return json.dumps(kept, sort_keys=True)
