"""Panoptic quality by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from incontext.cli.main import main
from incontext.evaluation.panoptic import PanopticTally, Segment, open_panoptic, segments_of
from incontext.export.panoptic import id_to_rgb

TRUTH = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]])
SEGMENTS = {1: Segment(7), 2: Segment(8)}


def tally(prediction, found, truth=TRUTH, segments=SEGMENTS):
    counts = PanopticTally()
    counts.add(np.array([prediction]), found, truth, segments)
    return counts


def test_a_perfect_answer():
    q = tally([5, 5, 5, 5, 6, 6, 6, 6, 0, 0], {5: 7, 6: 8}).quality()
    assert (q.pq, q.sq, q.rq, q.classes) == (1, 1, 1, 2)


def test_by_hand():
    # Class 7: IoU 3/4, matched. Class 8: IoU 2/4, not above one half: one missed and one wrong.
    counts = tally([5, 5, 5, 0, 6, 6, 0, 0, 0, 0], {5: 7, 6: 8})
    assert counts.per_class[7].pq == pytest.approx(0.75)
    assert counts.per_class[8].pq == 0
    q = counts.quality()
    assert (q.pq, q.sq, q.rq) == pytest.approx((0.375, 0.375, 0.5))
    assert counts.quality({7}).pq == pytest.approx(0.75)


def test_pq_is_sq_times_rq_and_sums_over_images():
    counts = tally([5, 5, 5, 0, 0, 0, 0, 0, 0, 0], {5: 7})
    counts.add(np.array([[0] * 10]), {}, TRUTH, SEGMENTS)
    q = counts.per_class[7]
    assert (q.pq, q.sq, q.rq) == pytest.approx((0.75 / 1.5, 0.75, 1 / 1.5))
    assert q.pq == pytest.approx(q.sq * q.rq)


def test_the_wrong_class_is_wrong_and_missed():
    counts = tally([5, 5, 5, 5, 0, 0, 0, 0, 0, 0], {5: 8})
    assert counts.per_class[7].pq == counts.per_class[8].pq == 0


def test_void_does_not_count():
    # Segment 6 reaches 2 pixels into the void: they leave the union, so its IoU is 1.
    assert tally([0, 0, 0, 0, 6, 6, 6, 6, 6, 6], {6: 8}).per_class[8].pq == pytest.approx(1)
    # A segment mostly on the void is not wrong.
    counts = tally([5, 5, 5, 5, 6, 6, 6, 6, 9, 9], {5: 7, 6: 8, 9: 7})
    assert counts.quality().pq == 1


def test_crowds_need_not_be_found_and_excuse_their_class():
    crowd = {1: Segment(7, crowd=True), 2: Segment(8)}
    assert 7 not in tally([0, 0, 0, 0, 6, 6, 6, 6, 0, 0], {6: 8}, segments=crowd).per_class
    assert 7 not in tally([5, 5, 5, 0, 6, 6, 6, 6, 0, 0], {5: 7, 6: 8}, segments=crowd).per_class
    assert tally([5, 5, 5, 0, 6, 6, 6, 6, 0, 0], {5: 9, 6: 8}, segments=crowd).per_class[9].pq == 0


def test_things_fall_into_parts_and_stuff_does_not():
    labels = np.array([[1, 0, 1, 2, 0, 2]])
    segments, found = segments_of(labels, things={1})
    assert segments.tolist() == [[1, 0, 2, 3, 0, 3]] and found == {1: 1, 2: 1, 3: 2}


def test_a_segment_without_a_class_is_an_error():
    with pytest.raises(ValueError, match="a class for each segment"):
        tally([5] * 10, {})


def test_coco_layout_and_command(tmp_path, capsys):
    (tmp_path / "annotations/panoptic_val").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    Image.fromarray(np.zeros((1, 10, 3), np.uint8)).save(tmp_path / "val/a.png")
    Image.fromarray(id_to_rgb(TRUTH * 300)).save(tmp_path / "annotations/panoptic_val/a.png")
    info = [{"id": 300, "category_id": 7, "iscrowd": 0}, {"id": 600, "category_id": 8, "iscrowd": 0}]
    whole = {
        "images": [{"id": 3, "file_name": "a.png", "height": 1, "width": 10}],
        "annotations": [{"image_id": 3, "file_name": "a.png", "segments_info": info}],
        "categories": [{"id": 7, "name": "cat", "isthing": 1}, {"id": 8, "name": "sky", "isthing": 0}],
    }
    file = tmp_path / "annotations/panoptic_val.json"
    file.write_text(json.dumps(whole))
    data = open_panoptic(file)
    assert data.things == {7} and data.items[0].image.is_file()
    assert np.array_equal(data.items[0].open_segments(), TRUTH * 300)
    assert main(["eval", "panoptic", str(file), "--results", str(file), "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["stuff"]["pq"] == 1
    with pytest.raises(ValueError, match="COCO's panoptic JSON"):
        file.write_text("{}")
        open_panoptic(file)
