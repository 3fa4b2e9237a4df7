"""Prompts on the query: true, of the size that was asked for, and never all of the answer."""

from __future__ import annotations

import numpy as np
import pytest

from incontext.training import prompts
from incontext.training.prompts import UNSAID, correct, hidden_share, random_prompt, show_part

PATCH = 8


def scene(seed=0, size=(64, 96)):
    """Three discs on background, a corner ignored."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    for id, (row, column) in enumerate(((16, 20), (40, 70), (48, 24)), start=1):
        labels[prompts.disk(size, (row, column), rng.uniform(7, 13))] = id
    labels[:4, -4:] = 255
    return labels


@pytest.mark.parametrize("all_ids", [True, False])
def test_random_prompts(all_ids):
    labels, named = scene(), []
    for seed in range(80):
        said = random_prompt(np.random.default_rng(seed), labels, [1, 2, 3], PATCH, all_ids=all_ids)
        again = random_prompt(np.random.default_rng(seed), labels, [1, 2, 3], PATCH, all_ids=all_ids)
        assert np.array_equal(said, again) and said.dtype == np.uint8 and said.shape == labels.shape
        assert set(np.unique(said)) <= {0, 1, 2, 3, UNSAID}
        assert hidden_share(said, PATCH) >= 0.1
        named.append(len(set(np.unique(said)) & {1, 2, 3}))
    assert min(named) >= (2 if all_ids else 1)  # a shifted or overlapping mark may cover another whole
    assert np.mean(np.array(named) == 3) > (0.9 if all_ids else 0.3)


def test_things_out_of_sight_are_not_named():
    labels = np.where(scene() == 2, 2, 0).astype(np.uint8)
    for seed in range(20):
        said = random_prompt(np.random.default_rng(seed), labels, [1, 2, 3], PATCH, all_ids=True)
        assert set(np.unique(said)) <= {0, 2, UNSAID}


def test_a_query_without_any_thing():
    for seed in range(20):
        said = random_prompt(np.random.default_rng(seed), np.zeros((64, 96), np.uint8), [1], PATCH, all_ids=True)
        assert set(np.unique(said)) <= {0, UNSAID} and hidden_share(said, PATCH) >= 0.1


def test_points_lie_inside_and_every_part_gets_some():
    region = np.zeros((40, 60), bool)
    region[5:15, 5:15] = region[30, 50] = True
    points = [prompts.interior_point(np.random.default_rng(seed), region) for seed in range(60)]
    assert all(region[point] for point in points)
    assert 15 < sum(point == (30, 50) for point in points) < 45
    assert all(7 <= row <= 12 and 7 <= column <= 12 for row, column in points if (row, column) != (30, 50))


def test_disks_and_scribbles():
    assert prompts.disk((9, 9), (4, 4), 2).sum() == 13
    assert prompts.disk((9, 9), (0, 8), 0.1).sum() == 1
    region = scene() == 2
    for seed in range(20):
        stroke = prompts.scribble(np.random.default_rng(seed), region, radius=1.0)
        assert (stroke & region).sum() > 0.5 * stroke.sum() > 0


def test_boxes():
    labels, region = scene(), scene() == 2
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    exact = prompts.bounds(np.random.default_rng(0), region, slack=0.0)
    assert exact == (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    seen = set()
    for seed in range(20):
        said = np.full(labels.shape, UNSAID, np.uint8)
        prompts.say_boxes(np.random.default_rng(seed), said, labels, [1, 2, 3], PATCH)
        outside = bool((said == 0).any())
        seen.add(outside)
        middle = said[40, 70]
        assert middle == UNSAID  # the inside is left to be painted
        assert not outside or (said[:2] == 0).all()
    assert seen == {True, False}
    for seed in range(20):  # around some things only, black would cover the others
        said = np.full(labels.shape, UNSAID, np.uint8)
        prompts.say_boxes(np.random.default_rng(seed), said, labels, [1], PATCH)
        assert not (said[labels > 1] == 0).any()


def test_negative_marks_start_on_background():
    labels = scene()
    for seed in range(30):
        said = np.full(labels.shape, UNSAID, np.uint8)
        prompts.say_not(np.random.default_rng(seed), said, labels, [1, 2, 3], PATCH)
        marked = said == 0
        assert marked.any() and (labels[marked] == 0).mean() > 0.4
    said = np.full(labels.shape, UNSAID, np.uint8)
    prompts.say_not(np.random.default_rng(0), said, np.ones_like(labels), [1], PATCH)
    assert (said == UNSAID).all()


def test_earlier_masks_are_wrong_but_alike():
    labels, differ = scene(), 0
    for seed in range(40):
        mask = prompts.earlier_mask(np.random.default_rng(seed), labels, [1, 2, 3], PATCH)
        assert set(np.unique(mask)) <= {0, 1, 2, 3}
        front, truth = mask > 0, (labels > 0) & (labels != 255)
        assert (front & truth).sum() / (front | truth).sum() > 0.3
        differ += not np.array_equal(front, truth)
    assert differ > 35
    region = labels == 1
    assert np.array_equal(prompts.shift(prompts.shift(region, 3, -2), -3, 2), region)
    assert prompts.shift(region, 64, 0).sum() == 0
    shape = prompts.polygon(np.random.default_rng(0), region, corners=12)
    assert (shape & region).sum() / (shape | region).sum() > 0.7


def test_a_part_of_a_mask_is_whole_patches_of_it():
    mask = np.where(scene() == 255, 0, scene()).astype(np.uint8)
    for seed in range(20):
        said = show_part(np.random.default_rng(seed), mask, PATCH)
        cells = (said == UNSAID).reshape(8, PATCH, 12, PATCH)
        assert np.array_equal(cells.all((1, 3)), cells.any((1, 3)))
        assert np.array_equal(said[said != UNSAID], mask[said != UNSAID])
        assert hidden_share(said, PATCH) > 0


def test_corrections_point_at_mistakes_with_the_truth():
    labels = scene()
    painted = np.where(labels == 255, 0, labels).astype(np.uint8)
    painted[labels == 2] = 0  # missed
    painted[60:64, 80:96] = 1  # too much
    nothing, found = np.full(labels.shape, UNSAID, np.uint8), set()
    for seed in range(40):
        said = correct(np.random.default_rng(seed), labels, painted, nothing, PATCH)
        told = (said != UNSAID) & (said != painted)
        assert told.any()  # at least one mistake is marked
        found |= set(np.unique(said[told]))
        assert hidden_share(said, PATCH) >= 0.1
    assert {0, 2} <= found
    before = nothing.copy()
    before[16, 20] = 1
    assert all(correct(np.random.default_rng(s), labels, labels, before, PATCH)[16, 20] == 1 for s in range(10))
