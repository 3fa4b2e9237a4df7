"""Clicks reach what they touch, up to its border; with examples they only correct."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, blocks, example, scene

from incontext.clicks import Click
from incontext.geodesic import Reach, _colours, _farthest_near, _graph
from incontext.predictor import Predictor
from incontext.types import IGNORE, Example

HALVES = np.zeros((60, 90, 3), np.uint8)
HALVES[:, :40] = (200, 40, 40)
HALVES[:, 40:] = (40, 60, 200)


def clicked(size, **labels) -> np.ndarray:
    known = np.full(size, IGNORE, np.int32)
    for name, places in labels.items():
        for row, column in places:
            known[row - 1 : row + 2, column - 1 : column + 2] = int(name[1:])
    return known


def even(count, size=(60, 90)) -> torch.Tensor:
    return torch.full((1 + count, *size), 1 / (1 + count))


def test_one_click_reaches_its_region_and_no_more():
    known = clicked((60, 90), _1=[(30, 10)])
    joined = Reach.of(HALVES, known, alone=True).join(even(1), [1])
    assert torch.allclose(joined.sum(0), torch.ones(60, 90), atol=1e-5)
    found = joined.argmax(0).numpy() == 1
    assert found[:, :38].all() and not found[:, 42:].any()


def test_clicks_that_differ_share_a_flat_region_by_distance():
    flat = np.full((60, 90, 3), 128, np.uint8)
    known = clicked((60, 90), _1=[(30, 10)], _2=[(30, 80)], _0=[(30, 45)])
    found = Reach.of(flat, known, alone=True).join(even(2), [1, 2]).argmax(0).numpy()
    assert (found[30, 5:25] == 1).all() and (found[30, 66:85] == 2).all() and (found[30, 35:55] == 0).all()


def test_ids_of_another_pass_are_background():
    known = clicked((60, 90), _1=[(30, 10)], _2=[(30, 80)])
    reach = Reach.of(HALVES, known, alone=True)
    first, second = (reach.join(even(1), [id]).argmax(0).numpy() for id in (1, 2))
    assert (first[:, :38] == 1).all() and (first[:, 42:] == 0).all()
    assert (second[:, :38] == 0).all() and (second[:, 42:] == 1).all()


def test_with_examples_a_click_corrects_where_it_is_and_leaves_the_rest():
    says = torch.stack([torch.full((60, 90), 0.9), torch.full((60, 90), 0.1)])
    says[:, :20, 60:] = torch.tensor([0.05, 0.95])[:, None, None]  # found elsewhere, and right
    known = clicked((60, 90), _1=[(30, 10)])
    found = Reach.of(HALVES, known, alone=False).join(says, [1]).argmax(0).numpy() == 1
    assert found[25:35, 5:15].all() and found[:19, 61:].all() and not found[25:, 45:].any()
    alone = Reach.of(HALVES, known, alone=True).join(says, [1]).argmax(0).numpy() == 1
    assert not alone[:19, 61:].any()  # nothing says that it is meant


def test_distances_are_those_of_the_shortest_paths():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    known = clicked((7, 9), _1=[(3, 3)])
    away = Reach.of(image, known, alone=True).away
    assert np.isinf(away[0]).all()
    graph = _graph(_colours(image)).toarray()
    graph = np.maximum(graph, graph.T)
    best = np.where(known.ravel() == 1, 0.0, np.inf)
    queue = [(0.0, int(place)) for place in np.flatnonzero(best == 0)]
    while queue:
        cost, place = heapq.heappop(queue)
        for other in np.flatnonzero(graph[place]):
            if cost + graph[place, other] < best[other]:
                best[other] = cost + graph[place, other]
                heapq.heappush(queue, (best[other], int(other)))
    assert np.allclose(away[1].ravel(), best)
    assert (graph[4 * 9 + 4] > 0).sum() == 8 and (graph[0] > 0).sum() == 3


def test_colours_are_cielab():
    for rgb, lab in (
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ):
        flat = np.full((5, 5, 3), rgb, np.uint8)
        assert np.allclose(_colours(flat)[2, 2], lab, atol=0.1)


def test_near_and_far_part_at_the_gap():
    values = np.concatenate([np.linspace(0, 5, 300), np.linspace(60, 90, 700)])
    assert 5 <= _farthest_near(values) <= 60
    assert np.isfinite(_farthest_near(np.zeros(64)))


@pytest.mark.parametrize("refine", [False, True])
def test_predictors_go_by_clicks(refine):
    """The model paints only what is given here."""
    predictor = Predictor(ColourMatcher(), refine=refine)
    found = predictor.click(HALVES, [Click(10, 30, id=7)])
    assert found.ids == (7,) and (found.labels[:, :38] == 7).all() and not found.labels[:, 42:].any()
    both = predictor.click(HALVES, [Click(10, 30, id=7), Click(80, 30, id=2)]).labels
    assert (both[:, :38] == 7).all() and (both[:, 42:] == 2).all()
    with pytest.raises(ValueError, match="inside of 90 x 60"):
        predictor.click(HALVES, [Click(90, 3)])


@pytest.mark.parametrize("refine", [False, True])
def test_clicks_beside_examples_leave_the_rest_to_them(refine):
    """The example says that red is meant; the click says that this red is not."""
    predictor = Predictor(ColourMatcher(), refine=refine)
    shown = Example(HALVES, np.where(np.arange(90) < 40, 1, 0)[None].repeat(60, 0).astype(np.int32))
    found = predictor.click(HALVES, [Click(10, 30, id=0)], shown).labels
    assert found[30, 10] == 0 and (found[:, 42:] == 0).all() and (found[:, 30:38] == 1).all()


def test_a_prompt_of_examples_is_left_alone_without_clicks():
    predictor = Predictor(ColourMatcher(), refine=True)
    labels = blocks([1, 2])
    image, shown = scene(labels), example([1, 2])
    nothing = np.full(labels.shape, IGNORE, np.int32)
    plain, told = predictor.predict(image, shown), predictor.predict(image, shown, query_labels=nothing)
    assert (plain.labels == told.labels).all() and (plain.confidence == told.confidence).all()
