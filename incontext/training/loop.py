"""The training loop: one function; what it is made of lies beside it."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from incontext.atomic import replacing
from incontext.model.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.seggpt import SegGPT
from incontext.model.zoo import find_entry, locate, pull
from incontext.training.batches import Batch, RawBatch, prepare
from incontext.training.class_loss import make_classifier
from incontext.training.config import TrainConfig
from incontext.training.distributed import Group, joined
from incontext.training.loader import StepBatches, load
from incontext.training.logs import RunLog
from incontext.training.losses import Weights, correct_batch, losses, weigh
from incontext.training.low_rank import merge
from incontext.training.matching import start_as_similarity
from incontext.training.optimiser import choose_trainable, make_optimiser, set_learning_rate, update_average
from incontext.training.pack import Pack
from incontext.training.state import RunState
from incontext.training.validation import fixed_episodes, paint_episodes, picture, score


def train(
    config: TrainConfig,
    train_pack: str | Path,
    out: str | Path,
    *,
    validation_pack: str | Path | None = None,
    device: str = "cpu",
    resume: bool = True,
    workers: int = 0,
    tensorboard: bool = False,
) -> Path:
    """Trains a model. Under `torchrun`, several processes train one, with the result of one process but for
    stochastic depth, which each draws for itself.

    Writes to `out`: `model.safetensors` (averaged weights, loadable everywhere), `state.pt` (all that resuming needs),
    `log.csv`, `config.json`, `pictures/` of fixed validation episodes. Ended in the middle, it goes on from the last
    evaluation, with the same result as without the stop.

    Args:
        config: how to train.
        train_pack: file from `incontext train pack`.
        out: folder of this run; all processes see it.
        validation_pack: pack of other images; every evaluation scores the model on fixed episodes from it.
        device: where to train.
        resume: go on from `state.pt` where there is one.
        workers: processes that make batches; 0 makes them in a thread.
        tensorboard: also log to `tensorboard/`.

    Returns:
        The path of the model file.

    Raises:
        ValueError: if the folder holds a run with another config or pack, or the data do not suffice for this one.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with joined(torch.device(device)) as (group, own_device):
        model = make_model(config)
        patch = model.config.patch_size
        batches = StepBatches(Pack(train_pack), config, patch, group)
        state = _start(config, model, batches.sampler.spans, own_device)
        state.pack = batches.sampler.pack.digest
        if resume:
            state.resume(out / "state.pt", config)
        if group.leads:
            with replacing(out / "config.json") as draft:
                draft.write_text(json.dumps(dataclasses.asdict(config), indent=1))
        if state.step < config.steps:
            validation = {}
            if validation_pack and group.leads:
                validation = fixed_episodes(Pack(validation_pack), config, patch)
            stream = load(batches, state.step, workers, own_device)
            _run(config, state, stream, validation, out, group, own_device, tensorboard)
    return out / "model.safetensors"


def make_model(config: TrainConfig) -> SegGPT:
    """Returns the model that a run starts from, on the CPU."""
    if config.init:
        entry = find_entry(config.init)
        path = config.init if entry is None else locate(entry) or pull(entry)
        fields = read_checkpoint(path).config.to_dict() | dict(config.model)
        return load_checkpoint(path, config=SegGPTConfig.from_dict(fields))  # refuses what changes weights
    fields = PRESETS[config.preset].to_dict() | dict(config.model)
    model = SegGPT(SegGPTConfig.from_dict(fields))
    start_as_similarity(model, torch.Generator().manual_seed(config.seed))
    return model


def _start(config: TrainConfig, model: SegGPT, spans: Mapping[str, tuple[int, int]], device: torch.device) -> RunState:
    choose_trainable(model, config)
    model.activation_checkpointing = config.checkpointing
    model.to(device).train()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    classifier = None
    if max(config.classes) > 0 and spans:
        count = sum(count for _, count in spans.values())
        classifier = make_classifier(model, count, torch.Generator().manual_seed(config.seed)).to(device)
    return RunState(model, average, make_optimiser(model, config, classifier), classifier)


def _run(
    config: TrainConfig,
    state: RunState,
    stream: Iterator[tuple[RawBatch, int]],
    validation: Mapping[str, Batch],
    out: Path,
    group: Group,
    device: torch.device,
    tensorboard: bool,
) -> None:
    """Takes steps until they, or the minutes, are up."""
    log = RunLog(out, state.step, tensorboard) if group.leads else None
    started, lately = time.monotonic(), []
    for raw, echo in stream:
        raw = raw.to(device).echo(echo) if echo else raw.to(device)
        batch = prepare(raw, state.model.config.patch_size, config.unsaid)
        lately.append(_step(config, state, batch, group))
        late = bool(config.minutes) and time.monotonic() - started > 60 * config.minutes
        late = bool(group.sum(torch.tensor(float(late), device=device))) if config.minutes else False
        last = state.step == config.steps or late
        if last or (config.evaluate_every and state.step % config.evaluate_every == 0):
            means = _means(lately, group)
            lately = []
            if log:
                row = {"step": state.step, "minutes": round((time.monotonic() - started) / 60, 2)} | means
                paintings = paint_episodes(state.average, validation, device)
                row |= {name: round(value, 4) for name, value in score(paintings, validation).items()}
                log.add(row, picture(paintings, validation))
                save_checkpoint(merge(state.average), out / "model.safetensors")
                state.save(out / "state.pt", config)
        if late:
            break
    if log:
        log.close()


def _step(config: TrainConfig, state: RunState, batch: Batch, group: Group) -> dict[str, Tensor]:
    """Takes one step; returns this process's share of each loss of the joint batch."""
    model, progress = state.model, state.step / config.steps
    torch.manual_seed(config.seed * 1_000_003 + state.step + (group.rank << 40))
    set_learning_rate(state.optimiser, config, state.step)
    batch = correct_batch(model, batch, config)
    totals = group.sum(weigh(batch, config, progress).totals).clamp_min(1e-6)
    learning = state.learning
    for parameter in learning:
        parameter.grad = None
    shares: dict[str, Tensor] = {}
    for part in batch.split(config.micro_batch or len(batch)):
        weights = weigh(part, config, progress)
        found = losses(model, part, weights, config, progress, state.classifier)
        # Means over parts of a batch count by what they are means of; then their sum is the mean over the whole.
        parts = dict(zip(Weights._fields, weights.totals / totals, strict=True))
        weighted = {name: value * parts[name] for name, value in found.items()}
        sum(weighted.values()).backward()
        for name, value in weighted.items():
            shares[name] = shares.get(name, 0) + value.detach()
    group.sum_gradients(learning)
    nn.utils.clip_grad_norm_(learning, config.clip)
    state.optimiser.step()
    state.step += 1
    update_average(state.average, model, min(config.ema, (1 + state.step) / (10 + state.step)))
    return shares


def _means(lately: list[dict[str, Tensor]], group: Group) -> dict[str, float]:
    """Means of the losses since the last evaluation; those that some steps lack are means over the others.

    All losses and steps go in one message, of the same shape in every process: processes may lack different ones.
    """
    names = sorted(Weights._fields)
    none = torch.zeros_like(lately[0]["loss"])
    shares = torch.stack([each.get(name, none) for each in lately for name in names])
    found = shares.new_tensor([name in each for each in lately for name in names])
    shares, found = group.sum(torch.stack((shares, found))).unflatten(1, (len(lately), len(names)))
    counts = (found > 0).sum(0)  # steps in which any process found it
    means = (shares.sum(0) / counts).tolist()
    return {name: round(mean, 5) for name, mean, count in zip(names, means, counts.tolist(), strict=True) if count}
