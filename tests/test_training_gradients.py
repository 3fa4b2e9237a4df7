"""What a step computes: its losses, and gradients that add up over parts of a batch and over processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from random_models import random_model
from training_runs import BASE, PLAIN, rows, state, write_pack

from incontext.training import loader, loop
from incontext.training.batches import collate
from incontext.training.class_loss import ClassLoss, class_weights, make_classifier
from incontext.training.distributed import Group
from incontext.training.episodes import EpisodeSampler
from incontext.training.loader import StepBatches, load
from incontext.training.loop import make_model, train
from incontext.training.losses import correct_batch, losses, weigh
from incontext.training.pack import Pack

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("sets"))


def test_the_loss_is_about_what_is_not_said(pack):
    """The same for any painting where something is said, or labels are ignored."""
    raw = StepBatches(Pack(pack), dataclasses.replace(BASE, prompted=1.0), 8, Group())[0]
    batch = loop.prepare(raw, 8)
    weights, noise = weigh(batch, BASE, 0.5), torch.randn_like(batch.target)
    free = (batch.unknown > 0) & (batch.labels != 255)[:, None]
    assert torch.equal(weights.loss > 0, free) and not free.all()

    def loss(painting):
        return losses(lambda *args, **kwargs: painting, batch, weights, dataclasses.replace(BASE, matching=(0, 0)), 0.5)

    assert torch.equal(loss(batch.target)["loss"], torch.tensor(0.0))
    assert torch.equal(loss(torch.where(free, batch.target, noise))["loss"], torch.tensor(0.0))
    assert loss(torch.where(free, noise, batch.target))["loss"] > 0.1


def test_own_mistakes_are_pointed_out(pack):
    config = dataclasses.replace(BASE, corrected=1.0, prompted=1.0)
    batch = loop.prepare(StepBatches(Pack(pack), config, 8, Group())[0], 8)
    model = random_model().train()
    told = correct_batch(model, batch, config)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    said_before, said_now = batch.unknown == 0, told.unknown == 0
    assert (said_now & ~said_before).any() and torch.equal(told.labels, batch.labels)
    assert (
        correct_batch(model, dataclasses.replace(batch, corrected=torch.zeros_like(batch.corrected)), config)
        is not None
    )


def test_micro_batches_and_checkpointing_change_no_gradient(pack):
    """But for rounding, with any number of examples, corrected queries and all losses."""
    shots = set()
    for step in (0, 1, 4):
        gradients = []
        for size, checkpointing in ((0, False), (3, True)):
            config = dataclasses.replace(BASE, steps=9, model=PLAIN, micro_batch=size, checkpointing=checkpointing)
            config = dataclasses.replace(config, classes=(0.5, 0.2))
            batches = StepBatches(Pack(pack), config, 8, Group())
            started = loop._start(config, make_model(config), batches.sampler.spans, torch.device("cpu"))
            started.step = step
            batch = loop.prepare(batches[step], 8)
            loop._step(config, started, batch, Group())
            found = {name: p.grad for name, p in started.model.named_parameters()}
            gradients.append(found | {"classifier": started.classifier.weight.grad})
        shots.add(batch.example_images.shape[1])
        for name in gradients[0]:
            torch.testing.assert_close(*(each[name] for each in gradients), atol=2e-6, rtol=1e-4)
    assert shots == {0, 1, 2}


def test_shares_of_two_processes_add_up_to_one(pack):
    """Gradients are exact but for rounding, however unevenly labels and prompts lie."""
    config = dataclasses.replace(BASE, model=PLAIN, batch_size=5)
    results = []
    for size in (1, 2):
        raws = [StepBatches(Pack(pack), config, 8, Group(rank, size))[5] for rank in range(size)]
        model = make_model(config).train()
        batches = [correct_batch(model, loop.prepare(raw, 8), config) for raw in raws]
        totals = sum(weigh(batch, config, 0.5).totals for batch in batches)
        for batch in batches:
            weights = weigh(batch, config, 0.5)
            found = losses(model, batch, weights, config, 0.5)
            sum(v * n for v, n in zip(found.values(), weights.totals / totals, strict=False)).backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name in results[0]:
        torch.testing.assert_close(*(each[name] for each in results), atol=2e-6, rtol=1e-4)


def test_two_processes_train_as_one(pack, tmp_path):
    """Started as users start them, with a joint batch that does not divide evenly."""
    config = dataclasses.replace(BASE, model=PLAIN, steps=3, batch_size=5, evaluate_every=0)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    command = ["train", "run", str(pack), "--config", str(tmp_path / "config.json"), "--device", "cpu", "-o"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "incontext",
    ]
    subprocess.run([*torchrun, *command, str(tmp_path / "two")], check=True, capture_output=True, timeout=120)
    train(config, pack, tmp_path / "one")
    start = dict(make_model(config).named_parameters())
    one, two = (state(tmp_path / name)["model"] for name in ("one", "two"))
    # Adam turns the rounding of a gradient that is nearly zero into a step, so single weights may differ.
    apart = sum((one[name] - two[name]).square().sum() for name in start)
    moved = sum((one[name] - start[name]).square().sum() for name in start)
    assert 0 < moved and apart < 1e-3 * moved
    found = [float(rows(tmp_path / name)[0]["loss"]) for name in ("one", "two")]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_processes_that_lack_different_losses_log_their_means_together():
    """In each of two steps one of two processes found classes; none found matching."""
    one = [{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(3.0), "classes": torch.tensor(4.0)}]
    two = [{"loss": torch.tensor(2.0), "classes": torch.tensor(0.5)}, {"loss": torch.tensor(1.0)}]
    sent = []

    class Listening(Group):
        def sum(self, values):
            sent.append(values)
            return values

    class Adding(Group):
        def sum(self, values):
            return values + sent[-1]

    assert loop._means(one, Listening()) == {"classes": 4.0, "loss": 2.0}
    loop._means(two[:1] * 2, Listening())
    assert len(sent) == 2 and sent[0].shape == sent[1].shape  # or processes wait for each other for ever
    loop._means(one, Listening())
    assert loop._means(two, Adding()) == {"classes": 2.25, "loss": 3.5}


def test_processes_share_the_joint_batch(pack):
    whole = StepBatches(Pack(pack), BASE, 8, Group())[2]
    halves = [StepBatches(Pack(pack), BASE, 8, Group(rank, 2))[2] for rank in range(2)]
    for rank, half in enumerate(halves):
        assert torch.equal(half.images, whole.images[rank::2]) and torch.equal(half.said, whole.said[rank::2])
    with pytest.raises(ValueError, match="2 episodes of 2 examples in a step for 3 processes"):
        StepBatches(Pack(pack), BASE, 8, Group(0, 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_keeps_the_order(workers, pack):
    batches = StepBatches(Pack(pack), BASE, 8, Group())
    found = list(load(batches, 2, workers, torch.device("cpu")))
    assert len(found) == 4
    for step, (batch, echo) in enumerate(found, start=2):
        assert torch.equal(batch.images, batches[step].images) and echo == 0


def test_each_batch_comes_again_after_others(pack, monkeypatch):
    """From whatever step a run goes on, it sees what it would have seen."""
    monkeypatch.setattr(loader, "_KEPT", 2)
    batches = StepBatches(Pack(pack), dataclasses.replace(BASE, steps=11, echoes=3), 8, Group())
    found = list(load(batches, 0, 0, torch.device("cpu")))
    assert [echo for _, echo in found] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2]
    for (batch, _), draw in zip(found, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2], strict=True):
        assert torch.equal(batch.images, batches[draw].images)
    for start in (1, 5, 6, 10):
        later = list(load(batches, start, 0, torch.device("cpu")))
        assert [echo for _, echo in later] == [echo for _, echo in found[start:]]
        for (batch, _), (expected, _) in zip(later, found[start:], strict=True):
            assert torch.equal(batch.images, expected.images)


def test_class_loss_is_cross_entropy_among_the_classes_of_the_set(pack):
    """Worked out token by token; the classes of other sets, and unknown ones, have no part in it."""
    batches = StepBatches(Pack(pack), dataclasses.replace(BASE, batch_size=8, shots={1: 1.0}, stitched=0.0), 8, Group())
    batch, model = loop.prepare(batches[0], 8), make_model(BASE).eval()
    count = sum(count for _, count in batches.sampler.spans.values())
    classifier = make_classifier(model, count, torch.Generator().manual_seed(0))
    weights = class_weights(batch)
    assert 0 < (weights > 0).sum() < weights.numel() and len({*map(tuple, batch.spans.tolist())}) > 1
    tokens = []
    hook = model.blocks[4].norm1.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with ClassLoss(model, classifier) as naming:
        batch.paint(model)
        found = naming(batch, weights)
    hook.remove()
    query, example = (next(each for each in tokens if each.ndim == ndim) for ndim in (3, 4))
    total, weighed = 0.0, 0.0
    for b, v, place in (weights > 0).nonzero().tolist():
        first, many = batch.spans[b].tolist()
        scores = classifier(query[b, place] if v == 1 else example[b, v, place])[first : first + many]
        known = batch.classes[b, v, place]
        total += weights[b, v, place] * (scores.logsumexp(0) - scores[known])
        weighed += 0.25 if known == 0 else 1.0
    torch.testing.assert_close(found, total / weighed)
    found.backward()
    assert model.blocks[3].mlp.fc2.weight.grad.abs().sum() > 0 and model.blocks[5].mlp.fc2.weight.grad is None


def test_mirrored_views_of_handed_sets_have_no_known_classes(pack):
    """A mirrored left door looks like a right one."""
    episodes = [EpisodeSampler(Pack(pack), BASE.mixture).draw(np.random.default_rng(5), (32, 32)) for _ in range(2)]
    known = np.ones_like(episodes[0].labels)
    episodes = [dataclasses.replace(episodes[0], handed=handed, classes=known) for handed in (True, False)] * 20
    raw = collate(episodes, 8, np.random.default_rng(0))
    assert raw.looks.flips[::2].any() and raw.looks.flips[1::2].any()
    mirrored = raw.looks.flips.any(1)[::2]
    assert (raw.classes[::2][mirrored] == 255).all() and (raw.classes[::2][~mirrored] == 1).all()
    assert (raw.classes[1::2] == 1).all()
