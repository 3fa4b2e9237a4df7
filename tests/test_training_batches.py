"""Batches: colours tell labels, hidden patches, and the weight of every pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from incontext.image import denormalise, normalise
from incontext.model.loss import smooth_l1
from incontext.training.batches import Telling, collate, decode, pixel_weights, prepare
from incontext.training.episodes import Episode
from incontext.training.looks import draw_looks, recolour
from incontext.training.prompts import UNSAID, random_hidden

SIZE, PATCH = (16, 24), 8
BLACK = normalise(np.zeros((1, 1, 3), np.uint8))[:, 0, 0]


def episode(count, seed=0, shots=2, kind="instance"):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 255, *range(1, count + 1)], (shots + 1, *SIZE)).astype(np.uint8)
    return Episode(rng.integers(0, 256, (shots + 1, *SIZE, 3), np.uint8), labels, count, kind, "test", strength=0.0)


def make(episodes, rng, patch=PATCH, **telling):
    return prepare(collate(episodes, patch, rng, Telling(**telling)), patch)


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
    return make(episodes, np.random.default_rng(0))


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
    batches = [make(episodes, rng) for _ in range(2)]
    assert not torch.equal(batches[0].colours, batches[1].colours)
    for batch in batches:
        assert not torch.equal(batch.colours[0, 1], batch.colours[2, 1])
        for row, each in zip(batch.colours, episodes, strict=True):
            pixels = denormalise(row[: each.count + 1, :, None, None]).flatten(1)
            assert torch.pdist(pixels).min() > 30
    again = make(episodes, np.random.default_rng(0))
    assert torch.equal(again.target, batches[0].target)


def test_how_much_is_hidden(episodes):
    rng, patch = np.random.default_rng(0), 2  # on a grid of a few patches, blocks often hide all
    many = episodes * 40
    assert make(many, rng, patch).hidden.all()
    hidden = make(many, rng, patch, partial=0.5).hidden
    assert 0.35 < (~hidden.all(1)).float().mean() < 0.6
    hidden = make(many, rng, patch, partial=1.0).hidden.float().mean(1)
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


def test_an_episode_does_not_depend_on_its_neighbours(episodes):
    def rngs():
        return [np.random.default_rng([5, place]) for place in range(3)]

    together = prepare(collate(episodes, PATCH, rngs(), Telling(prompted=0.5, partial=0.3)), PATCH)
    for place, each in enumerate(episodes):
        alone = prepare(collate([each], PATCH, [rngs()[place]], Telling(prompted=0.5, partial=0.3)), PATCH)
        for name in ("query", "target", "example_images", "example_targets", "shown", "hidden", "said"):
            assert torch.equal(getattr(together, name)[place], getattr(alone, name)[0])


def test_what_is_shown_is_what_is_said(episodes):
    """In a visible patch: colours, black, and the grey of what is not said. In a hidden one: nothing of the truth."""
    batch = prepare(collate(episodes * 20, PATCH, np.random.default_rng(1), Telling(prompted=1.0)), PATCH, unsaid=128)
    grey = normalise(np.full((1, 1, 3), 128, np.uint8))
    for row, said in enumerate(batch.said):
        unsaid = (said == UNSAID).expand(3, -1, -1)
        assert torch.equal(batch.shown[row][unsaid], grey.expand(3, *SIZE)[unsaid])
        slots = torch.where(said == UNSAID, 0, said).long()
        assert torch.equal(batch.shown[row][~unsaid], batch.colours[row][slots].movedim(-1, 0)[~unsaid])
        visible = ~batch.hidden[row].view(SIZE[0] // PATCH, SIZE[1] // PATCH)
        assert torch.equal(visible, (said != UNSAID).unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).any(-1).any(-1))
    assert batch.unknown.mean() > 0.3


def test_hidden_truth_does_not_reach_the_model(episodes):
    """Other truth where nothing is said: all that the model gets is the same."""
    raw = collate(episodes, PATCH, np.random.default_rng(2), Telling(prompted=1.0))
    labels = raw.labels.clone()
    labels[:, -1] = torch.where(raw.said == UNSAID, 1 - labels[:, -1].clamp(0, 1), labels[:, -1])
    first, second = prepare(raw, PATCH), prepare(dataclasses.replace(raw, labels=labels), PATCH)
    assert not torch.equal(first.target, second.target)
    for name in ("query", "example_images", "example_targets", "shown", "hidden"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_views_are_mirrored_with_their_labels_and_prompts():
    free, handed = (dataclasses.replace(episode(2, seed=5, shots=3), strength=1.0, handed=h) for h in (False, True))
    flips = []
    for each in (free, handed):
        raw = collate([each] * 30, PATCH, np.random.default_rng(0), Telling(partial=1.0))
        batch, plain = prepare(raw, PATCH), raw.looks.flips[:, -1]
        for row, flipped in enumerate(plain):
            for name, before in (("labels", raw.labels[row, -1]), ("said", raw.said[row])):
                assert torch.equal(getattr(batch, name)[row].long(), (before.flip(-1) if flipped else before).long())
        assert torch.equal(decode(batch.target, batch.colours), torch.where(batch.labels == 255, 0, batch.labels))
        flips.append(raw.looks.flips)
    assert flips[0].float().mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(flips[1], flips[1][:, :1].expand(-1, 4)) and 0 < flips[1].float().mean() < 1


def test_recolouring_is_that_of_single_images():
    """By the definition: saturation around grey, contrast around the mean grey, then gain."""
    looks = draw_looks(np.random.default_rng(1), 2, 1.0, handed=False)
    looks = type(looks).stack([looks])
    images = torch.randint(0, 256, (1, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    found = recolour(images, looks)
    for view in range(2):
        pixels = (looks.mix[0] @ images[0, view].flatten(1)) + looks.shift[0][:, None]
        grey = torch.tensor([0.299, 0.587, 0.114]) @ pixels
        pixels = grey + (pixels - grey) * looks.saturation[0, view]
        pixels = (pixels - grey.mean()) * looks.contrast[0, view] + grey.mean()
        expected = (pixels * looks.gain[0, view][:, None]).clamp(0, 255)
        torch.testing.assert_close(found[0, view].flatten(1), expected)
    still = draw_looks(np.random.default_rng(1), 2, 0.0, handed=False)
    torch.testing.assert_close(recolour(images, type(still).stack([still])), images)


def test_no_examples(episodes):
    """Then every query has a prompt that names all that it is to paint."""
    alone = [dataclasses.replace(e, images=e.images[-1:], labels=e.labels[-1:]) for e in episodes]
    batch = make(alone, np.random.default_rng(0))
    assert batch.example_images.shape == (3, 0, 3, *SIZE)
    for said, labels in zip(batch.said, batch.labels, strict=True):
        wanted = set(labels.unique().tolist()) - {0, 255}
        assert wanted >= set(said.unique().tolist()) - {0, 255} != set()


def test_parts_of_a_batch(episodes):
    batch = make(episodes, np.random.default_rng(0))
    parts = list(batch.split(2))
    assert [len(part) for part in parts] == [2, 1] and parts[1].kinds == batch.kinds[2:]
    assert torch.equal(torch.cat([part.target for part in parts]), batch.target)


def test_unused_colours_are_never_found(episodes):
    batch = make(episodes, np.random.default_rng(0))
    black = BLACK[:, None, None].expand(3, 3, 16, 24) + 1e-4 * torch.randn(3, 3, 16, 24)
    assert not decode(black, batch.colours).any()
    assert torch.equal(decode(batch.target, batch.colours), torch.where(batch.labels == 255, 0, batch.labels))


def test_an_echo_asks_for_another_view(episodes):
    raw = collate(episodes, PATCH, np.random.default_rng(0), Telling())
    for number in (1, 2):
        echo = raw.echo(number)
        assert torch.equal(echo.images, raw.images.roll(number, 1))
        assert torch.equal(echo.looks.gain, raw.looks.gain.roll(number, 1))
        assert torch.equal(echo.labels[:, :-1], raw.labels.roll(number, 1)[:, :-1])
        assert torch.equal(echo.labels[:, -1], raw.labels[:, -1 - number])  # every id is in every view here
        assert (
            torch.equal(echo.tables.sort(-1).values, raw.tables.sort(-1).values) and (echo.tables != raw.tables).any()
        )
        assert len({*echo.seeds.tolist()} & {*raw.seeds.tolist()}) == 0


def test_an_echo_does_not_depend_on_its_neighbours(episodes):
    """So that the processes of a group draw what one would."""
    whole = collate(episodes, PATCH, [np.random.default_rng(place) for place in range(3)], Telling())
    for place, each in enumerate(episodes):
        alone = collate([each], PATCH, [np.random.default_rng(place)], Telling()).echo(1)
        assert torch.equal(alone.tables[0], whole.echo(1).tables[place, : each.count + 1])


def test_an_echo_leaves_black_what_its_examples_do_not_show():
    each = episode(3, shots=1)
    each.labels[1][each.labels[1] == 2] = 0  # the query has no 2, so as the example it cannot ask for one
    raw = collate([each], PATCH, np.random.default_rng(0), Telling())
    expected = np.where(each.labels[0] == 2, 0, each.labels[0])
    assert np.array_equal(raw.echo(1).labels[0, 1], expected) and (expected == 255).any()


def test_an_echo_keeps_queries_that_were_told_something_or_alone_can_be_asked():
    told = collate([episode(2, shots=1)], PATCH, np.random.default_rng(0), Telling(prompted=1.0))
    apart = episode(2, shots=1)
    apart.labels[0][apart.labels[0] == 2], apart.labels[1][apart.labels[1] == 1] = 0, 0  # nothing in common
    without = collate([episode(2, shots=0)], PATCH, np.random.default_rng(0))
    for raw in (told, collate([apart], PATCH, np.random.default_rng(0), Telling()), without):
        echo = raw.echo(1)
        assert torch.equal(echo.images, raw.images) and torch.equal(echo.labels, raw.labels)
        assert torch.equal(echo.said, raw.said)
