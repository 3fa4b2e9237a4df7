"""Whole masks that stay as they are when asked in other ways are trusted; the rest comes first for review."""

from __future__ import annotations

import numpy as np
import pytest
from fake_models import ColourMatcher, FakeModel, scene
from predictions import predictor

from incontext.labeling.config import LabelConfig
from incontext.labeling.labeller import Labeller
from incontext.labeling.trust import trust
from incontext.labeling.wholeness import mean_wholeness, usual_wholeness, wholeness
from incontext.types import IGNORE, Example


def test_wholeness_by_hand():
    labels = np.array([[1, 1, 0, 2, IGNORE], [1, 0, 1, 0, 2]])
    assert wholeness(labels) == {1: pytest.approx(3 / 4), 2: pytest.approx(1 / 2)}  # corners do not join
    assert wholeness(np.zeros((4, 4), int)) == {}


def test_what_the_examples_show_in_pieces_is_no_sign():
    def example(labels):
        labels = np.array([labels])
        return Example(np.zeros((*labels.shape, 3), np.uint8), labels)

    usual = usual_wholeness([example([1, 1, 0, 2, 0, 2]), example([1, 0, 1, 0, 0, 0])])
    assert usual == {1: pytest.approx(0.75), 2: pytest.approx(0.5)}
    pieces = np.array([[1, 0, 1, 0, 2, 0, 2, 3, 0, 3]])
    assert wholeness(pieces, usual) == {
        1: pytest.approx(0.5**0.75),
        2: pytest.approx(0.5**0.5),
        3: pytest.approx(0.5),  # no example shows it
    }


def test_large_masks_are_measured_in_blocks_without_losing_a_pixel():
    labels = np.zeros((1500, 1100), np.int32)
    labels[10:20] = 7  # a line of 11,000 pixels
    labels[1490:1500, -100:] = 7  # 1,000 in the last corner, in blocks that are not full
    assert wholeness(labels) == {7: pytest.approx(11 / 12)}
    labels[:, 500] = 7  # a line of one pixel joins them but for the gap
    assert wholeness(labels)[7] > 0.9


def test_trust_by_hand():
    assert trust(0.64, 0.5) == pytest.approx(0.4)
    assert trust(0.64, 0.5, 0.25) == pytest.approx(0.375)  # with views the score says nothing more
    assert trust(0.1, 1.0, 0.0) == 1
    # nothing was found: by the score, and less if a view did find something
    assert trust(0.9) == pytest.approx(0.9) and trust(0.9, None, 1.0) == 0


def square(*corners) -> np.ndarray:
    labels = np.zeros((32, 32), np.int32)
    for top, left in corners:
        labels[top : top + 8, left : left + 8] = 1
    return labels


def judged(model, images, **config):
    one = predictor(model)
    shown = Example(scene(square((4, 4))), square((4, 4)))
    config = LabelConfig(ensemble="feature", kind="instance", **config)
    return list(Labeller(one, one.prompt([shown]), config).stream(images))


def test_a_job_tells_masks_in_pieces_from_whole_ones():
    images = [scene(square((8, 8))), scene(square((0, 0), (20, 20))), scene(square())]
    whole, pieces, nothing = judged(ColourMatcher(), images)
    assert (whole.wholeness, nothing.wholeness) == (1, None) and pieces.wholeness == pytest.approx(0.5, abs=0.1)
    assert whole.disagreement is None
    whole, _, nothing = judged(ColourMatcher(), images, recolourings=1)
    assert whole.disagreement == nothing.disagreement == 0


def test_a_job_tells_what_depends_on_the_side():
    class LeftIsTheObject(FakeModel):
        """Marks the left half of whatever it sees, so that a mirrored view marks the right one."""

        def paint(self, query, images, targets, query_target):
            colour = targets[0, 0].flatten(1)[:, (targets[0, 0].flatten(1) > 0.5).any(0)][:, :1, None]
            painted = targets[:, 0] * 0 + targets[0, 0, :, :1, :1]
            painted[..., : painted.shape[-1] // 2] = colour
            return painted

    (found,) = judged(LeftIsTheObject(), [scene(square())], recolourings=1)
    assert found.segmentation.labels[:, :15].all() and found.disagreement > 0.9
    assert mean_wholeness({}) is None and mean_wholeness({1: 1.0, 2: 0.5}) == 0.75
