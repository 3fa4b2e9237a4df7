"""Outlines are exact: filling them gives the mask back."""

import numpy as np
import pytest
from scipy import ndimage

from incontext.export.polygons import fill, trace


def refill(parts, size):
    filled = np.zeros(size, int)
    for part in parts:
        filled += fill([part.outline, *part.holes], size)
    assert filled.max(initial=0) <= 1  # parts don't overlap
    return filled > 0


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_any_mask_is_a_round_trip(density):
    generator = np.random.default_rng(int(100 * density))
    for _ in range(60):
        mask = generator.random(generator.integers(1, 16, 2)) < density
        parts = trace(mask)
        np.testing.assert_array_equal(refill(parts, mask.shape), mask)
        background, holes = ndimage.label(np.pad(~mask, 1, constant_values=True))
        assert len(parts) == ndimage.label(mask, np.ones((3, 3)))[1]
        assert sum(len(part.holes) for part in parts) == holes - 1


def test_a_rectangle_has_four_corners_clockwise():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:10] = True
    (part,) = trace(mask)
    ring = part.outline.tolist()
    first = ring.index([3, 2])
    assert ring[first:] + ring[:first] == [[3, 2], [10, 2], [10, 5], [3, 5]] and not part.holes


def test_one_pixel_and_the_whole_picture():
    for mask in (np.ones((1, 1), bool), np.ones((7, 3), bool)):
        (part,) = trace(mask)
        assert len(part.outline) == 4
        np.testing.assert_array_equal(fill([part.outline], mask.shape), mask)
    assert trace(np.zeros((4, 5), bool)) == []


def test_diagonal_neighbours_are_one_part():
    (part,) = trace(np.eye(3, dtype=bool))
    np.testing.assert_array_equal(fill([part.outline], (3, 3)), np.eye(3, dtype=bool))


def test_filling_takes_pixel_centres_and_cuts_at_the_rim():
    np.testing.assert_array_equal(fill([[(0, 0), (1.4, 0), (1.4, 9), (0, 9)]], (1, 3)), [[True, False, False]])
    np.testing.assert_array_equal(fill([[(0, 0), (1.6, 0), (1.6, 9), (0, 9)]], (1, 3)), [[True, True, False]])
    assert fill([[(-50, -50), (50, -50), (50, 50), (-50, 50)]], (5, 6)).all()
    assert not fill([[(10, 10), (20, 10), (20, 20)]], (5, 6)).any()
    assert not fill([], (5, 6)).any()
    y, x = np.indices((40, 50)) + 0.5
    inside = fill([[(5, 5), (45, 5), (5, 35)]], (40, 50))
    np.testing.assert_array_equal(inside, (x > 5) & (y > 5) & ((x - 5) / 40 + (y - 5) / 30 < 1))


@pytest.mark.parametrize("outline", [[(0, 0), (1, 1)], [(0, 0), (1, np.nan), (2, 2)], [1, 2, 3]])
def test_filling_refuses(outline):
    with pytest.raises(ValueError, match="three finite corners"):
        fill([outline], (4, 4))
