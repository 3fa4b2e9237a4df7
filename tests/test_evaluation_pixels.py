"""Clicks and semantic scores by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from incontext.clicks import Click, click_radii, paint_clicks
from incontext.evaluation.clicks import (
    ClickRun,
    click_objects,
    clicks_needed,
    mean_iou,
    next_click,
    run_clicks,
)
from incontext.evaluation.semantic import Confusion, evaluate_semantic, open_semantic
from incontext.labelled_folders import Item, SetError
from incontext.types import IGNORE


def box(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


ALL = np.ones((20, 20), bool)


def test_the_first_click_is_the_middle_of_the_object():
    assert next_click(~ALL, box((20, 20), 3, 5, 10, 12), ALL) == Click(8, 6, 1)


def test_the_next_click_is_the_middle_of_the_largest_error():
    truth = box((20, 20), 0, 0, 7, 7)
    found = box((20, 20), 0, 0, 7, 6) | box((20, 20), 10, 10, 15, 15)  # 7 pixels missed, 25 too many
    assert next_click(found, truth, ALL) == Click(12, 12, 0)
    assert next_click(truth, truth, ALL) is None
    valid = ~box((20, 20), 10, 10, 15, 15)  # nothing is known there
    assert next_click(found, truth, valid).id == 1


def test_the_middle_is_far_from_the_picture_rim_too():
    assert next_click(~ALL, ALL, ALL) in {Click(c, r, 1) for r in (9, 10) for c in (9, 10)}


def test_a_click_is_half_a_patch_wide_for_the_model():
    # Half of a patch of 8 is a disk of radius 2 at 96 x 96; the picture is twice as high and four times as wide.
    radii = click_radii((192, 384), (96, 96), 8)
    assert radii == (4, 8)
    known = paint_clicks([Click(100, 100)], (192, 384), radii)
    rows, columns = np.nonzero(known == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (96, 104, 92, 108)
    assert (known[known != 1] == IGNORE).all()


def test_later_clicks_lie_over_earlier_ones_and_never_vanish():
    known = paint_clicks([Click(5, 5), Click(6, 5, 0)], (10, 10), (0.1, 0.1))
    assert known[5, 5] == 1 and known[5, 6] == 0 and (known == IGNORE).sum() == 98


def test_where_clicks_overlap_the_nearest_counts():
    known = paint_clicks([Click(4, 5), Click(7, 5, 2), Click(10, 5, 0)], (11, 15), (4, 4))
    assert known[5].tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    again = paint_clicks([Click(4, 5), Click(4, 5, 2)], (11, 15), (4, 4))
    assert set(again[again != IGNORE].tolist()) == {2}


@pytest.mark.parametrize("wrong", [Click(10, 0), Click(0, -1), Click(3, 3, -1)])
def test_clicks_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match="clicks: expected"):
        paint_clicks([wrong], (10, 10), (1, 1))
    with pytest.raises(ValueError, match="at least one"):
        paint_clicks([], (10, 10), (1, 1))


def test_a_run_ends_when_nothing_is_wrong():
    truth = box((20, 20), 0, 0, 8, 8)
    asked = []

    def model(image, clicks):
        asked.append(tuple(clicks))
        return (truth if len(asked) == 2 else truth & (np.arange(20) < 4)).astype(np.int32)

    image = np.zeros((20, 20, 3), np.uint8)
    run = run_clicks("a", image, truth, model, count=5)
    assert run.ious == (0.5, 1.0) and [click.id for click in run.clicks] == [1, 1]
    assert (run.after(1), run.after(2), run.after(5)) == (0.5, 1.0, 1.0)
    assert (run.needed(0.5), run.needed(0.9)) == (1, 2)


def test_means_over_runs():
    runs = [ClickRun("a", (0.2, 0.9), ()), ClickRun("b", (0.6, 0.7), ())]
    assert mean_iou(runs, 1) == pytest.approx(0.4) and mean_iou(runs, 5) == pytest.approx(0.8)
    assert clicks_needed(runs, 0.8, most=5) == (2 + 5) / 2
    assert math.isnan(mean_iou([], 1))


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_largest_segments_are_clicked_on(tmp_path):
    labels = np.zeros((20, 20), np.uint8)
    labels[:10], labels[10:, :5], labels[19, 19] = 7, 3, 9
    write(tmp_path / "a.png", labels)
    items = [Item("a", tmp_path / "a.png", tmp_path / "a.png")]
    assert [(name, id) for name, _, id in click_objects(items, objects=3)] == [("a#7", 7), ("a#3", 3)]


def test_confusion_by_hand():
    counts = Confusion()
    counts.add(np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, IGNORE]]))
    counts.add(np.array([[3]]), np.array([[2]]))
    assert counts.ious == {1: 1 / 2, 2: 1 / 3, 3: 0}  # class 3 is found, though never true
    assert counts.pixel_accuracy == 2 / 4
    with pytest.raises(ValueError, match="truth's size"):
        counts.add(np.zeros((1, 2), int), np.zeros((2, 1), int))


def test_ade_layout_leaves_zero_out(tmp_path):
    for place, mask in enumerate(([[0, 1, 1, 2]], [[0, 0, 2, 2]])):
        write(tmp_path / f"images/validation/{place}.png", np.full((1, 4, 3), place, np.uint8))
        write(tmp_path / f"annotations/validation/{place}.png", np.array(mask, np.uint8))
    data = open_semantic(tmp_path)
    assert data.void and len(data.items) == 2
    found = {0: np.array([[5, 1, 0, 2]]), 1: np.array([[0, 1, 2, 2]])}
    score = evaluate_semantic(data, lambda image: found[int(image[0, 0, 0])])
    # Class 1: 1 of 2, class 2: 3 of 3; 0 is no class, and found 0 on class 1 is wrong; 5 on the void is not counted.
    assert score.ious == {1: 1 / 2, 2: 1} and score.miou == 0.75
    assert score.pixel_accuracy == pytest.approx(4 / 5)


def test_a_labelled_folder_counts_background(tmp_path):
    write(tmp_path / "images/a.png", np.zeros((1, 4, 3), np.uint8))
    write(tmp_path / "masks/a.png", np.array([[0, 0, 1, 255]], np.uint8))
    score = evaluate_semantic(open_semantic(tmp_path), lambda image: np.array([[0, 1, 1, 1]]))
    assert score.ious == {0: 1 / 2, 1: 1 / 2} and score.images == 1
    with pytest.raises(SetError, match="expected"):
        open_semantic(tmp_path / "images")
