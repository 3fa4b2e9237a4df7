"""The training loop: one function, a frozen config, exact resume."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from incontext.atomic import replacing
from incontext.model.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.loss import smooth_l1
from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch, collate, pixel_weights, prefetch
from incontext.training.episodes import EpisodeSampler, Mixture
from incontext.training.matching import MatchingLoss, start_as_similarity
from incontext.training.pack import Pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        preset: architecture to start from nothing; ignored where `init` names a checkpoint.
        model: fields of `SegGPTConfig` that replace the preset's or the checkpoint's, those that change no weights.
        init: checkpoint to fine-tune, or empty.
        size: (H, W) of a view while training; a multiple of the patch size.
        steps, batch_size: length of the run, and episodes per step.
        shots: number of examples of a step -> relative frequency. All episodes of a step share it.
        learning_rate: peak. It rises linearly over `warmup` steps, stays, and falls to 0 along a cosine over the last
            `decay` share of the steps. decay = 1 is the usual cosine.
        weight_decay: AdamW's, on matrices only.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones saved.
        beta: of the smooth-L1 loss.
        balance: (at the start, at the end) weight of the class-balanced loss against the published one, 0..1.
        matching: (at the start, at the end) weight of the `MatchingLoss`.
        partial: share of queries that are partly painted already.
        views, pasted, rendered, largest_count, weights: see `Mixture`.
        seed: of everything.
        evaluate_every: steps between evaluations, which also write a checkpoint. 0: only at the end.
        precision: "fp32" or "bf16" (autocast).
        minutes: stop after so many minutes, as if interrupted; 0 is no limit.
    """

    preset: str = "small"
    model: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""
    size: tuple[int, int] = (96, 96)
    steps: int = 10_000
    batch_size: int = 24
    shots: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    beta: float = 0.1
    balance: tuple[float, float] = (1.0, 0.5)
    matching: tuple[float, float] = (1.0, 0.1)
    partial: float = 0.15
    views: float = 0.25
    pasted: float = 0.15
    rendered: float = 0.1
    largest_count: int = 6
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    evaluate_every: int = 500
    precision: str = "fp32"
    minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("size", "balance", "matching"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "shots", {int(n): float(share) for n, share in self.shots.items()})
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if not self.init and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {self.preset!r}")
        if min(self.shots) < 1 or self.steps < 1 or self.batch_size < 1:
            raise ValueError("steps, batch_size and the numbers of shots must be 1 or more")


def train(
    config: TrainConfig,
    train_pack: str | Path,
    out: str | Path,
    *,
    validation_pack: str | Path | None = None,
    device: str = "cpu",
    resume: bool = True,
) -> Path:
    """Trains a model.

    Writes to `out`: `model.safetensors` (averaged weights, loadable everywhere), `state.pt` (all that resuming needs),
    `log.csv`, `config.json`. Ended in the middle, it goes on from the last evaluation, with the same result
    as without the stop.

    Args:
        config: how to train.
        train_pack: file from `pack_folders`.
        out: folder of this run.
        validation_pack: pack of other images; every evaluation scores the model on fixed episodes from it.
        device: where to train.
        resume: go on from `state.pt` where there is one.

    Returns:
        The path of the model file.

    Raises:
        ValueError: if the folder holds a run with another config.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = _make_model(config).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimiser = _make_optimiser(model, config)
    step = _resume(out, config, model, average, optimiser) if resume else 0
    with replacing(out / "config.json") as draft:
        draft.write_text(json.dumps(dataclasses.asdict(config), indent=1))

    mixture = Mixture(config.weights, config.views, config.pasted, config.rendered, config.largest_count)
    sampler = EpisodeSampler(Pack(train_pack), mixture)
    patch = model.config.patch_size
    shots, shares = np.array(list(config.shots)), np.array(list(config.shots.values()))

    def make(index: int) -> Batch:
        rng = np.random.default_rng([config.seed, index])  # the step alone decides: a resumed run sees the same batches
        count = int(rng.choice(shots, p=shares / shares.sum()))
        batch_size = max(1, 2 * config.batch_size // (count + 1))  # the same number of images at any number of shots
        episodes = [sampler.draw(rng, config.size, count) for _ in range(batch_size)]
        return collate(episodes, patch, rng, config.partial)

    validation = fixed_episodes(validation_pack, config, patch) if validation_pack else {}
    started, lately = time.monotonic(), {"loss": [], "matching": []}
    model.train()
    for batch in prefetch(make, iter(range(step, config.steps))):
        progress = step / config.steps
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(config, step)
        torch.manual_seed(config.seed * 1_000_003 + step)
        losses = _losses(model, batch.to(device), config, progress)
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        step += 1
        _update_average(average, model, min(config.ema, (1 + step) / (10 + step)))
        for name, value in losses.items():
            lately[name].append(value.detach())
        out_of_time = config.minutes and time.monotonic() - started > 60 * config.minutes
        last = step == config.steps or out_of_time
        if last or (config.evaluate_every and step % config.evaluate_every == 0):
            row = {"step": step, "minutes": round((time.monotonic() - started) / 60, 2)}
            row |= {name: round(torch.stack(values).mean().item(), 5) for name, values in lately.items() if values}
            row |= {name: round(score, 4) for name, score in evaluate(average, validation, device).items()}
            lately = {name: [] for name in lately}
            _append(out / "log.csv", row)
            log.info("%s", "  ".join(f"{name} {value}" for name, value in row.items()))
            save_checkpoint(average, out / "model.safetensors")
            _save_state(out, config, step, model, average, optimiser)
        if out_of_time:
            break
    return out / "model.safetensors"


def _make_model(config: TrainConfig) -> SegGPT:
    if config.init:
        fields = read_checkpoint(config.init).config.to_dict() | dict(config.model)
        return load_checkpoint(config.init, config=SegGPTConfig.from_dict(fields))  # refuses what changes weights
    fields = PRESETS[config.preset].to_dict() | dict(config.model)
    model = SegGPT(SegGPTConfig.from_dict(fields))
    start_as_similarity(model, torch.Generator().manual_seed(config.seed))
    return model


def _losses(model: SegGPT, batch: Batch, config: TrainConfig, progress: float) -> dict[str, Tensor]:
    weight = pixel_weights(batch.labels, _between(config.balance, progress))
    matching_weight = _between(config.matching, progress)
    device_type = batch.query.device.type
    autocast = torch.autocast(device_type, torch.bfloat16) if config.precision == "bf16" else contextlib.nullcontext()
    with autocast, MatchingLoss(model) as matching:
        painting = model(
            batch.query,
            batch.example_images,
            batch.example_targets,
            query_target=batch.target,
            hidden=batch.hidden,
            kind=batch.kinds,
        )
        losses = {"loss": smooth_l1(painting.float(), batch.target, batch.hidden, beta=config.beta, weight=weight)}
        if matching_weight > 0:
            losses["matching"] = matching_weight * matching(batch, weight)
    return losses


def _between(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _learning_rate(config: TrainConfig, step: int) -> float:
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    start = config.steps * (1 - config.decay)
    fall = max(0.0, (step - start) / max(config.steps - start, 1e-9))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))


def _make_optimiser(model: SegGPT, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weights of linear and convolution layers decay, tokens, positions, norms and biases do not."""
    tokens = ("token", "pos_embed", "rel_pos")
    decays = {name: p.ndim > 1 and not any(token in name for token in tokens) for name, p in model.named_parameters()}
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if decays[name] == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


@torch.no_grad()
def _update_average(average: SegGPT, model: SegGPT, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def fixed_episodes(pack: str | Path, config: TrainConfig, patch_size: int, count: int = 32) -> dict[str, Batch]:
    """Draws the validation episodes: per set with shared classes, `count` one-shot episodes of whole images.

    Returns:
        The name of each set -> its episodes as one batch.
    """
    opened, batches = Pack(pack), {}
    for name in EpisodeSampler(opened, Mixture({})).by_class:
        weights = {other: float(other == name) for other in opened.sets}
        sampler = EpisodeSampler(opened, Mixture(weights, views=0.0, pasted=0.0, rendered=0.0, augment=False))
        rng = np.random.default_rng(0)
        batches[name] = collate([sampler.draw(rng, config.size) for _ in range(count)], patch_size, rng)
    return batches


@torch.inference_mode()
def evaluate(model: SegGPT, episodes: Mapping[str, Batch], device: str) -> dict[str, float]:
    """Scores a model on fixed episodes.

    Returns:
        The name of each set -> IoU of the painted things, averaged over episodes, and "mean" over the sets.
    """
    scores = {}
    for name, batch in episodes.items():
        batch = batch.to(device)
        painting = model(batch.query, batch.example_images, batch.example_targets, kind="semantic")
        distance = (painting[:, None] - batch.colours[..., None, None]).square().sum(2)
        front, truth = distance.argmin(1) > 0, batch.labels > 0
        valid = batch.labels != 255
        both = (front & truth & valid).sum((1, 2)).float()
        either = ((front | truth) & valid).sum((1, 2)).clamp_min(1)
        scores[name] = (both / either).mean().item()
    if scores:
        scores["mean"] = sum(scores.values()) / len(scores)
    return scores


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to the log, in place of those from the same step on that an interrupted run left."""
    rows: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["step"]) < row["step"]]
    rows.append(row)
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for each in rows for name in each)))
        writer.writeheader()
        writer.writerows(rows)


def _save_state(
    out: Path,
    config: TrainConfig,
    step: int,
    model: SegGPT,
    average: SegGPT,
    optimiser: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "config": _comparable(config),
    }
    with replacing(out / "state.pt") as draft:
        torch.save(state, draft)


def _resume(out: Path, config: TrainConfig, model: SegGPT, average: SegGPT, optimiser: torch.optim.Optimizer) -> int:
    path = out / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["config"] != _comparable(config):
        raise ValueError(
            f"{out} holds a run with another config: {state['config']}; give the same flags to go on with it, or "
            "another folder to start anew"
        )
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    log.info("resumed at step %d", state["step"])
    return state["step"]


def _comparable(config: TrainConfig) -> str:
    """The fields that decide the result, as text. How often to look and when to pause do not."""
    fields = dataclasses.asdict(config)
    for name in ("evaluate_every", "minutes"):
        fields.pop(name)
    return json.dumps(fields, sort_keys=True)
