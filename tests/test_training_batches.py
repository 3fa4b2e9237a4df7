"""Batches: colours tell labels, hidden patches, and the weight of every pixel."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from incontext.image import denormalise, normalise
from incontext.model.loss import smooth_l1
from incontext.training.batches import collate, pixel_weights, prefetch, random_hidden
from incontext.training.episodes import Episode

SIZE, PATCH = (16, 24), 8
BLACK = normalise(np.zeros((1, 1, 3), np.uint8))[:, 0, 0]


def episode(count, seed=0, shots=2, kind="instance"):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 255, *range(1, count + 1)], (shots + 1, *SIZE)).astype(np.uint8)
    return Episode(rng.integers(0, 256, (shots + 1, *SIZE, 3), np.uint8), labels, count, kind, "test")


def nearest(targets, colours):
    """Labels (B, ..., H, W) of targets (B, ..., 3, H, W), by the nearest of the colours (B, K + 1, 3)."""
    labels = []
    for target, table in zip(targets, colours, strict=True):
        difference = target.movedim(-3, -1)[..., None, :] - table
        distance, label = difference.square().sum(-1).min(-1)
        assert distance.max() < 1e-8  # every pixel has one of the colours exactly, but for rounding
        labels.append(label)
    return torch.stack(labels)


@pytest.fixture
def episodes():
    return [episode(3, seed=1), episode(1, seed=2, kind="semantic"), episode(6, seed=3)]


@pytest.fixture
def batch(episodes):
    return collate(episodes, PATCH, np.random.default_rng(0))


def test_shapes(batch):
    assert batch.query.shape == batch.target.shape == (3, 3, *SIZE)
    assert batch.example_images.shape == batch.example_targets.shape == (3, 2, 3, *SIZE)
    assert batch.hidden.shape == (3, 6) and batch.hidden.dtype == torch.bool
    assert batch.labels.shape == (3, *SIZE) and batch.labels.dtype == torch.int64
    assert batch.colours.shape == (3, 7, 3)
    assert batch.kinds == ("instance", "semantic", "instance")


def test_images_and_labels_are_the_episodes(batch, episodes):
    """The last view is the query."""
    for k, each in enumerate(episodes):
        pixels = torch.cat((batch.example_images[k], batch.query[k][None]))
        assert np.array_equal(denormalise(pixels).round().movedim(1, -1).numpy(), each.images)
        assert np.array_equal(batch.labels[k], each.labels[-1])


def test_colours_decode_to_labels(batch, episodes):
    found = nearest(batch.target, batch.colours)
    assert torch.equal(found, torch.where(batch.labels == 255, 0, batch.labels))
    shown = torch.from_numpy(np.stack([each.labels[:-1] for each in episodes])).long()
    assert torch.equal(nearest(batch.example_targets, batch.colours), torch.where(shown == 255, 0, shown))


def test_background_and_unused_slots_are_black(batch):
    assert torch.equal(batch.colours[:, 0], BLACK.expand(3, 3))
    assert torch.equal(batch.colours[1, 2:], BLACK.expand(5, 3))
    pixels = batch.target.movedim(1, -1)[(batch.labels == 0) | (batch.labels == 255)]
    assert torch.equal(pixels, BLACK.expand_as(pixels))


def test_colours_are_random_and_apart(episodes):
    rng = np.random.default_rng(0)
    batches = [collate(episodes, PATCH, rng) for _ in range(2)]
    assert not torch.equal(batches[0].colours, batches[1].colours)
    for batch in batches:
        assert not torch.equal(batch.colours[0, 1], batch.colours[2, 1])
        for row, each in zip(batch.colours, episodes, strict=True):
            pixels = denormalise(row[: each.count + 1, :, None, None]).flatten(1)
            assert torch.pdist(pixels).min() > 30
    again = collate(episodes, PATCH, np.random.default_rng(0))
    assert torch.equal(again.target, batches[0].target)


def test_how_much_is_hidden(episodes):
    rng, patch = np.random.default_rng(0), 2  # on a grid of a few patches, blocks often hide all
    many = episodes * 40
    assert collate(many, patch, rng).hidden.all()
    hidden = collate(many, patch, rng, partial=0.5).hidden
    assert 0.35 < (~hidden.all(1)).float().mean() < 0.6
    hidden = collate(many, patch, rng, partial=1.0).hidden.float().mean(1)
    assert (hidden >= 0.5).all() and 0.65 < hidden.mean() < 0.9


@pytest.mark.parametrize("grid", [(12, 12), (8, 20), (2, 2)])
def test_blocks_are_hidden(grid):
    rng = np.random.default_rng(0)
    hidden = [random_hidden(rng, grid) for _ in range(100)]
    assert {(each.shape, each.dtype) for each in hidden} == {((grid[0] * grid[1],), np.dtype(bool))}
    shares = np.array([each.mean() for each in hidden])
    assert shares.min() >= 0.5
    assert np.ptp(shares) > 0.2  # from a half to nearly all


@pytest.fixture
def labels():
    labels = torch.zeros(4, 10, 10, dtype=torch.long)
    labels[:3, :2] = 1
    labels[0, 2, :5] = 2
    labels[1, 5:] = 255
    labels[3] = 255
    labels[3, 0] = 0  # nothing to paint here
    return labels


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_weights_have_mean_1_and_ignored_pixels_none(labels, balance):
    weights = pixel_weights(labels, balance)
    assert weights.shape == (4, 1, 10, 10)
    for weight, label in zip(weights[:, 0], labels, strict=True):
        assert not weight[label == 255].any()
        torch.testing.assert_close(weight[label != 255].mean(), torch.tensor(1.0))
        for id in label.unique():
            assert weight[label == id].unique().numel() == 1


def test_balance(labels):
    assert torch.equal(pixel_weights(labels, 0.0)[:, 0], (labels != 255).float())
    even = pixel_weights(labels, 1.0)[:, 0]
    for weight, label in zip(even[:3], labels[:3], strict=True):
        front, back = weight[(label > 0) & (label != 255)].sum(), weight[label == 0].sum()
        torch.testing.assert_close(front, back)
    assert torch.equal(even[3], (labels[3] != 255).float())  # background alone stays as it is
    assert torch.equal(pixel_weights(torch.ones(1, 4, 4), 1.0), torch.ones(1, 1, 4, 4))
    assert torch.equal(pixel_weights(torch.full((1, 4, 4), 255), 1.0), torch.zeros(1, 1, 4, 4))


def test_ignored_pixels_do_not_move_the_loss(batch):
    painting = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))
    weight = pixel_weights(batch.labels, 0.5)
    noise = torch.where(batch.labels[:, None] == 255, 100.0, 0.0)
    losses = [smooth_l1(each, batch.target, batch.hidden, weight=weight) for each in (painting, painting + noise)]
    assert torch.equal(*losses)


def test_to_a_device(batch):
    moved = batch.to(torch.device("meta"))
    assert moved.query.device.type == moved.colours.device.type == "meta"
    assert moved.kinds == batch.kinds


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetch_keeps_the_order(threads):
    assert list(prefetch(lambda step: step * step, iter(range(20)), threads=threads)) == [n * n for n in range(20)]
    assert list(prefetch(lambda step: step, iter(()))) == []


def test_prefetch_stays_close():
    made = []
    stream = prefetch(lambda step: made.append(step) or step, iter(range(1000)), ahead=3)
    assert [next(stream) for _ in range(5)] == list(range(5))
    stream.close()
    assert len(made) <= 5 + 4
    assert threading.active_count() < 20


def test_prefetch_passes_errors_on():
    def make(step):
        if step == 2:
            raise ValueError("the third")
        return step

    stream = prefetch(make, iter(range(9)))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(stream)
