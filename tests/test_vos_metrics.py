"""J, F, recall and decay: by hand, and by properties that the official toolkit has."""

import math

import numpy as np
import pytest

from incontext.evaluation.vos_metrics import boundary, outline, region, statistics


def box(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def brute_boundary(prediction, truth):
    """F by comparing every pair of outline pixels: the definition, with no dilation and no tree."""
    reach = math.ceil(0.008 * math.hypot(*truth.shape))
    painted, true = np.argwhere(outline(prediction)), np.argwhere(outline(truth))
    near = ((painted[:, None] - true[None]) ** 2).sum(-1) <= reach**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_region_by_hand():
    a, b = box((4, 4), 0, 0, 2, 2), box((4, 4), 1, 0, 3, 2)
    assert region(a, b) == pytest.approx(2 / 6)
    empty = np.zeros((4, 4), bool)
    assert (region(empty, empty), region(a, empty), region(a, a)) == (1, 0, 1)


def test_outline_lies_towards_the_origin_and_not_on_the_rim():
    # One pixel at (2, 2): it differs from its own right, below and right below, and so do the three before it.
    found = np.argwhere(outline(box((5, 5), 2, 2, 3, 3))).tolist()
    assert found == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert not outline(np.ones((5, 5), bool)).any()
    # The last row and the last column only look along themselves; the last pixel is never outline.
    assert np.argwhere(outline(box((3, 3), 2, 2, 3, 3))).tolist() == [[1, 1], [1, 2], [2, 1]]


def test_boundary_by_hand():
    # 100 x 100: the diagonal is 141.4, so the tolerance is ceil(1.13) = 2 pixels.
    line = box((100, 100), 0, 0, 100, 50)  # its outline: column 49, 100 pixels long
    assert boundary(box((100, 100), 0, 0, 100, 52), line) == 1  # 2 pixels off
    assert boundary(box((100, 100), 0, 0, 100, 53), line) == 0  # 3 pixels off
    # Below row 59 the painted edge is 20 off. Painted: rows 0..59 in column 49, the step in row 59 (columns 50..69),
    # then 40 rows in column 69. Near the true line are the 60 rows, and 2 pixels of the step. True pixels near: rows
    # 0..61.
    stepped = line | box((100, 100), 60, 0, 100, 70)
    assert outline(stepped).sum() == 120
    precision, recall = 62 / 120, 62 / 100
    assert boundary(stepped, line) == pytest.approx(2 * precision * recall / (precision + recall))


def test_boundary_where_there_is_none():
    empty, some = np.zeros((20, 20), bool), box((20, 20), 5, 5, 9, 9)
    assert (boundary(empty, empty), boundary(some, empty), boundary(empty, some)) == (1, 0, 0)
    assert boundary(np.ones((20, 20), bool), empty) == 1  # a full picture has no outline


@pytest.mark.parametrize("seed", range(6))
def test_boundary_equals_the_definition_and_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    cells = rng.random((2, 8, 12)) < 0.4
    a, b = (np.kron(c, np.ones((9, 9), bool)).astype(bool) for c in cells)
    assert boundary(a, b) == pytest.approx(brute_boundary(a, b))
    assert boundary(a, b) == pytest.approx(boundary(b, a))
    assert boundary(a, a) == region(a, a) == 1


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (-1, 1), (-2, 0)])
def test_a_move_within_the_tolerance_costs_no_boundary(shift):
    mask = box((100, 120), 30, 30, 60, 80)
    moved = np.roll(mask, shift, (0, 1))
    assert boundary(moved, mask) == 1 > region(moved, mask)


def test_tolerance_grows_with_the_picture():
    near, far = box((480, 854), 100, 100, 300, 300), box((480, 854), 108, 100, 308, 300)  # ceil(0.008 * 979.7) = 8
    assert boundary(near, far) == 1
    assert boundary(near, box((480, 854), 109, 100, 309, 300)) < 1


def test_statistics_by_hand():
    # Ten frames: quarters end at frames 1, 3, 6, 8, 10 (3.25 and 5.5 and 7.75 rounded, halves up) and share their ends.
    values = [1.0, 0.9, 0.8, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.0]
    found = statistics(values)
    assert found.mean == pytest.approx(0.51)
    assert found.recall == pytest.approx(0.3)  # 0.5 itself does not count
    assert found.decay == pytest.approx((1.0 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.0) / 3)


def test_statistics_of_few_frames():
    assert statistics([0.7]).decay == 0
    # Two frames: ends at 1, 1, 2, 2, 2 (1.5 rounds up), so the first quarter is frame 1 and the last is frame 2.
    assert statistics([0.8, 0.6]).decay == pytest.approx(0.2)
    assert math.isnan(statistics([]).mean)


def test_more_than_256_frames_do_not_wrap():
    """The toolkit keeps its quarters in 8 bits; DAVIS's videos are short enough not to show it."""
    assert statistics(np.linspace(1, 0, 1000)).decay == pytest.approx(0.75, abs=0.01)


def test_sizes_must_match():
    with pytest.raises(ValueError, match="truth's size"):
        boundary(np.zeros((4, 4), bool), np.zeros((4, 5), bool))
