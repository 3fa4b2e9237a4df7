"""A wrong mask is found out, good examples are kept, and no prediction is made twice."""

from __future__ import annotations

import numpy as np
import pytest
from fake_models import ColourMatcher, MaskCopier, blocks, example, scene
from predictions import predictor

from incontext.evaluation.metrics import Tally
from incontext.labeling.example_scores import MOST, Plan, score_examples
from incontext.labeling.left_out import LeftOut, mean_iou
from incontext.types import IGNORE, Example


def spoiled(count=5, bad=1) -> list[Example]:
    """Examples of class 1, one of which calls the background the object."""
    shown = [example((1,), seed=seed) for seed in range(count)]
    return [Example(each.image, 1 - each.labels) if k == bad else each for k, each in enumerate(shown)]


def score(examples, model=None, **options):
    left_out = LeftOut(predictor(model or ColourMatcher()), examples)
    return score_examples(left_out, Plan.of(len(examples), **options)), left_out


class FirstShown(ColourMatcher):
    """Goes by its first example only, so that a bad first example spoils everything."""

    def paint(self, query, images, targets, query_target):
        return super().paint(query, images[:, :1], targets[:, :1], query_target)


def test_the_wrong_mask_is_harmful():
    report, _ = score(spoiled(bad=0), FirstShown())
    assert [each.harmful for each in report.scores] == [True, False, False, False, False]
    assert 0 not in report.subset and report.subset_iou > report.iou + 0.3
    assert report.scores[0].hurt == 1 and report.scores[0].effect < -0.5


def test_the_wrong_mask_is_odd():
    report, _ = score(spoiled(bad=4), FirstShown())
    assert [report.is_odd(k) for k in range(5)] == [False] * 4 + [True]


def test_effect_is_measured_with_all_the_rest():
    """Of equally good examples none is missed, and one is as good as all."""
    report, _ = score([example((1,), seed=seed) for seed in range(4)])
    for each in report.scores:
        assert each.iou > 0.97 and each.effect == pytest.approx(0, abs=0.02) and not each.harmful


def test_classes_that_the_others_need_help():
    shown = [example((1, 2), seed=1), example((1, 2), seed=2), example((1,), seed=3), example((1,), seed=4)]
    report, _ = score(shown)
    assert report.subset_iou > 0.95 and {0, 1} & set(report.subset)


def test_two_examples_have_no_effects():
    report, _ = score([example((1,), seed=1), example((1,), seed=2)])
    assert all(np.isnan(each.effect) and np.isnan(each.hurt) and not each.harmful for each in report.scores)
    assert len(report.subset) in (1, 2)


def test_the_plan_bounds_the_predictions():
    for count, budget in ((2, 1), (5, 100), (12, 1000), (MOST, 300)):
        plan = Plan.of(count, budget=budget)
        assert plan.predictions <= max(1.5 * budget, 20 * count)
    report, left_out = score(spoiled(6), budget=60)
    assert left_out.predictions <= Plan.of(6, budget=60).predictions
    assert report.predictions == left_out.predictions
    for count in (1, MOST + 1):
        with pytest.raises(ValueError, match="--select"):
            Plan.of(count)
    with pytest.raises(ValueError, match="budget"):
        Plan.of(5, budget=0)


def test_deterministic_and_nothing_twice():
    examples = spoiled(4)
    first, left_out = score(examples)
    made = left_out.predictions
    assert score_examples(left_out, Plan.of(4)).scores == first.scores and left_out.predictions == made
    assert score(examples)[0] == first


def test_a_killed_run_goes_on_from_its_journal(tmp_path):
    examples, journal = spoiled(4), tmp_path / "out" / "predictions.jsonl"
    plan = Plan.of(4)
    whole = score_examples(LeftOut(predictor(), examples, journal=journal), plan)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:7]) + lines[7][:9])  # cut off in the middle of a line
    resumed = LeftOut(predictor(), examples, journal=journal)
    assert score_examples(resumed, plan).scores == whole.scores
    assert resumed.predictions == len(lines) - 7
    # Other masks, or another model, are other questions.
    other = LeftOut(predictor(), spoiled(4, bad=2), journal=journal)
    score_examples(other, plan)
    assert other.predictions > 0


def test_an_example_is_never_shown_to_itself():
    model = MaskCopier()
    left_out = LeftOut(predictor(model), [example((1,), seed=1), example((1,), seed=2)])
    assert left_out.ious([(0, (0, 1))]) == left_out.ious([(0, (1,))]) and len(model.calls) == 1
    assert left_out.ious([(0, (0,))]) == [0.0]  # nothing is left to show


def test_mean_iou_is_that_of_the_evaluation():
    generator = np.random.default_rng(0)
    for seed in range(5):
        truth, found = blocks((1, 2, 3), seed=seed), blocks((1, 2), seed=seed + 50)
        truth[generator.random(truth.shape) < 0.1] = IGNORE
        tally = Tally()
        tally.add(found, truth, (1, 2, 3))
        assert mean_iou(found, truth) == pytest.approx(tally.image_mean)
    nothing = np.zeros((4, 4), np.int32)
    assert mean_iou(nothing, nothing) == 1.0 and mean_iou(nothing, nothing + 1) == 0.0


def test_large_examples_are_measured_small():
    labels = np.kron(blocks((1,), (32, 20), side=4), np.ones((32, 30), int)).astype(np.int32)
    left_out = LeftOut(predictor(), [Example(scene(labels), labels), example((1,))])
    assert left_out.examples[0].size == (512, 300) and left_out.labels(0, (1,)).shape == (512, 300)
