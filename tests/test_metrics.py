"""IoU by hand."""

import math

import numpy as np
import pytest

from incontext.evaluation import Tally, iou
from incontext.types import IGNORE


def test_iou_of_two_masks():
    a = np.array([[1, 1, 0], [0, 0, 0]], bool)
    b = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert iou(a, b) == pytest.approx(1 / 4)
    assert iou(a, a) == 1.0
    assert iou(a, ~a) == 0.0
    assert math.isnan(iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)))
    assert iou(a, b, valid=np.array([[1, 1, 0], [1, 1, 0]], bool)) == pytest.approx(1 / 2)


def test_tally_sums_over_images_per_class_and_averages_per_image():
    tally = Tally()
    truth = np.array([[1, 1, 2, 2]])
    found = tally.add(np.array([[1, 0, 2, 2]]), truth, ids=(1, 2))
    assert found == {1: 0.5, 2: 1.0}
    tally.add(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 1, 0]]), ids=(1, 2))
    # class 1: (1 + 3) / (2 + 4); class 2: 2 / 2
    assert tally.per_class == {1: pytest.approx(4 / 6), 2: 1.0}
    assert tally.class_mean == pytest.approx((4 / 6 + 1) / 2)
    # image 1: (0.5 + 1) / 2; image 2: class 2 is in neither, so only class 1 counts
    assert tally.image_mean == pytest.approx((0.75 + 0.75) / 2)


def test_a_class_painted_where_it_is_absent_costs():
    tally = Tally()
    tally.add(np.array([[1, 2, 2, 0]]), np.array([[1, 0, 0, 0]]), ids=(1, 2))
    assert tally.image_mean == pytest.approx((1 + 0) / 2)
    assert tally.per_class == {1: 1.0}  # class 2 never occurs in a truth so far
    tally.add(np.array([[0, 2]]), np.array([[0, 2]]), ids=(2,))
    assert tally.per_class[2] == pytest.approx(1 / 3)


def test_ignored_pixels_never_count():
    tally = Tally()
    tally.add(np.array([[1, 1, 0]]), np.array([[1, IGNORE, IGNORE]]), ids=(1,))
    assert tally.class_mean == 1.0


def test_other_ids_are_background():
    tally = Tally()
    assert tally.add(np.array([[3, 1]]), np.array([[1, 1]]), ids=(1,)) == {1: 0.5}


def test_nothing_counted_is_nan():
    tally = Tally()
    assert math.isnan(tally.class_mean) and math.isnan(tally.image_mean)
    tally.add(np.zeros((2, 2), int), np.zeros((2, 2), int), ids=(1,))
    assert math.isnan(tally.class_mean) and math.isnan(tally.image_mean)


def test_sizes_must_match():
    with pytest.raises(ValueError, match=r"expected a prediction of the truth's size"):
        Tally().add(np.zeros((2, 2), int), np.zeros((2, 3), int), ids=(1,))
