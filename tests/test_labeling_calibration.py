"""The temperature is found again where it is known, and scores say what IoU to expect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_models import LOOKS, ColourMatcher, example
from predictions import predictor

from incontext.labeling.calibration import (
    RANGE,
    calibrate,
    calibration_error,
    expected_ious,
    fit_temperature,
    image_score,
    log_loss,
)
from incontext.pack.compiling import compile_pack
from incontext.palette import DEFAULT_TEMPERATURE
from incontext.types import IGNORE, Example, Segmentation


class NoisyMatcher(ColourMatcher):
    """Paints each query pixel like the example pixel of nearest colour, with Gaussian noise in 0..255 units."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.generator = torch.Generator().manual_seed(0)

    def paint(self, *inputs):
        painted = super().paint(*inputs)
        # STD is about 0.226, so noise of d / 255 in colours is this much in normalised space
        return painted + torch.randn(painted.shape, generator=self.generator) * self.deviation / 255 / 0.226


def segmentation(labels, confidence) -> Segmentation:
    labels = np.array(labels, np.int32)
    return Segmentation(labels, np.array(confidence, np.float32), np.zeros((*labels.shape, 3), np.uint8))


def many(count, ids=(1,), **options):
    return [example(ids, seed=seed, **options) for seed in range(count)]


def test_rising_noise_raises_the_temperature():
    low, middle, high = (fit_temperature(predictor(NoisyMatcher(d)), many(4)) for d in (40, 110, 200))
    assert low < middle < high


def test_the_fit_is_no_worse_than_the_default_and_close_to_honest():
    found = calibrate(predictor(NoisyMatcher(120)), many(6))
    assert found.loss <= found.default_loss and found.held_out == "examples" and found.count == 6
    assert RANGE[0] <= found.temperature <= RANGE[1]
    # Noise is clipped to 0..255, so no temperature is exact; a few hundredths is what is left of it.
    assert found.error < 0.06


def test_a_lone_example_never_raises_confidence():
    found = calibrate(predictor(NoisyMatcher(5)), many(1))
    assert found.held_out == "views" and found.temperature >= DEFAULT_TEMPERATURE * 0.999


def test_only_what_others_show_counts():
    """An example of a class that no other has is no evidence; without any evidence the default stands."""
    found = calibrate(predictor(NoisyMatcher(60)), [example((1,)), example((2,), seed=2)])
    assert found.held_out == "nothing" and found.temperature == DEFAULT_TEMPERATURE and found.count == 0


def test_ignored_pixels_do_not_count():
    def top_row_called(label):
        made = []
        for each in many(3):
            image, labels = each.image.copy(), each.labels.copy()
            image[:4], labels[:4] = LOOKS[0], label  # it looks like background
            made.append(Example(image, labels))
        return calibrate(predictor(NoisyMatcher(60)), made).default_loss

    honest = top_row_called(0)
    assert top_row_called(1) > 10 * honest
    assert top_row_called(IGNORE) == pytest.approx(honest, rel=0.5)


def test_is_deterministic_and_several_passes_work():
    model = NoisyMatcher(60)
    options = {"ids_per_pass": 1}
    first = calibrate(predictor(model, **options), many(3, (1, 2)))
    model.generator.manual_seed(0)
    assert calibrate(predictor(model, **options), many(3, (1, 2))) == first
    with pytest.raises(ValueError, match="at least one example"):
        calibrate(predictor(model), [])


def pack_of(model, ids=(1,), **options):
    """Of two examples, whose only class is called "cell"."""
    return compile_pack(model, [example(ids, seed=50 + k) for k in range(2)], "cell", **options)


def test_packs_are_shown_with_the_others_and_a_lone_example_is_predicted_from_them():
    model = NoisyMatcher(120)
    cells = many(3, names={1: "cell"})
    found = calibrate(predictor(model), cells[:1], [pack_of(model)])
    assert (found.held_out, found.count) == ("examples", 1)
    assert found.temperature == pytest.approx(fit_temperature(predictor(NoisyMatcher(120)), many(6)), rel=0.5)
    model.calls.clear()
    calibrate(predictor(model), cells, [pack_of(model)], ensemble="feature", kind="semantic")
    assert [(call["images"].shape[1], call["kind"]) for call in model.calls] == [(4, "semantic")] * 3


def test_a_pack_of_other_classes_plays_no_part():
    """Its mistakes could not be told: the examples do not say where its classes are."""
    model = NoisyMatcher(60)
    plain = calibrate(predictor(model), many(3))
    model.generator.manual_seed(0)
    assert calibrate(predictor(model), many(3), [pack_of(model, (2,))]) == plain


def test_tiles_are_cut_at_their_own_scale():
    """Large examples are judged on fewer pixels; a pack of tiles sees all of them."""
    model = NoisyMatcher(60)
    large = many(2, size=(80, 48), side=16, names={1: "cell"})
    found = calibrate(predictor(model), large, [pack_of(model, tile=24)], tile=24)
    assert found.held_out == "examples" and found.count == 2
    assert {tuple(call["query"].shape[-2:]) for call in model.calls} == {model.config.image_size}
    assert sum(len(call["query"]) for call in model.calls) >= 2 * 4 * 2  # 80 x 48 pixels are at least 4 x 2 tiles
    assert found.error < 0.01 and found.loss <= found.default_loss  # tiles overlap: noise is averaged out


def test_log_loss_and_calibration_error_by_hand():
    right = np.array([True, True, True, False])
    assert log_loss(np.full(4, 0.75), right) == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)
    assert calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert calibration_error(np.full(4, 0.95), right) == pytest.approx(0.2)
    assert np.isfinite(log_loss(np.ones(1), np.array([False])))


def test_expected_iou_by_hand():
    # 2 sure pixels of id 1; of the rest, 2 pixels leave 0.25 each: 2 / (2 + 0.5)
    assert expected_ious(segmentation([[1, 1, 0, 0]], [[1, 1, 0.75, 0.75]])) == {1: pytest.approx(2 / 2.5)}
    # what one id leaves open is missed by the other, in proportion to the areas
    found = expected_ious(segmentation([[1, 2, 0, 0]], [[0.5, 1, 1, 1]]))
    assert found == {1: pytest.approx(0.5), 2: pytest.approx(1 / 1.25)}
    assert expected_ious(segmentation([[1, IGNORE]], [[1, 1]])) == {1: pytest.approx(1)}


def test_a_doubtful_border_ruins_the_small_mask():
    def disc(radius):
        y, x = np.mgrid[:64, :64] - 32
        distance = np.hypot(y, x)
        return segmentation(distance < radius, np.where(abs(distance - radius) < 2, 0.6, 1.0))

    assert image_score(disc(5)) < image_score(disc(20)) - 0.15


def test_empty_results_are_judged_by_their_least_sure_pixels():
    sure, unsure = np.ones((20, 20)), np.ones((20, 20))
    unsure[0, :4] = 0.55
    assert image_score(segmentation(np.zeros((20, 20)), sure)) == 1
    assert image_score(segmentation(np.zeros((20, 20)), unsure)) == pytest.approx(0.55)


def test_thin_objects_are_judged_in_tiles_as_they_will_be_shown():
    def calls(tile):
        model = NoisyMatcher(60)
        calibrate(predictor(model), many(2, size=(160, 160), side=1), tile=tile)
        return [tuple(call["query"].shape) for call in model.calls]

    assert calls("thin") != calls(None)
    side = predictor(NoisyMatcher(60)).layout((160, 160), many(1, size=(160, 160), side=1)).tile
    assert calls("thin") == calls(side)
