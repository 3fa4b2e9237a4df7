"""Recolourings agree where colours don't matter, and the maps and numbers of their disagreement are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, FakeModel, example, scene
from predictions import predictor, tiny

from incontext.labeling.disagreement import (
    agreements,
    disagreement,
    disagreement_map,
    disagreement_score,
    recoloured,
)
from incontext.types import Segmentation


class RedPainter(FakeModel):
    """Paints the left half as the example does and the right half red: there, the colour decides by itself."""

    def paint(self, query, images, targets, query_target):
        painted = targets[:, 0].clone()
        width = painted.shape[-1]
        painted[..., width // 2 :] = torch.tensor([2.2, -2.0, -1.8])[:, None, None]
        return painted


def found(labels) -> Segmentation:
    labels = np.array(labels, np.int32)
    return Segmentation(labels, np.ones(labels.shape, np.float32), np.zeros((*labels.shape, 3), np.uint8))


def test_recolourings_share_the_model_and_differ_in_colours():
    one = predictor(tiny(), temperature=99.0, ids_per_pass=3, kind="semantic")
    others = recoloured(one, 3)
    shown = [example((1, 2))]
    colours = [each.prompt(shown).palettes[0].colours for each in (one, *others)]
    assert len({each.tobytes() for each in colours}) == 4
    for each in others:
        assert each.model is one.model and each.kind == "semantic"
        assert (each.temperature, each.ids_per_pass, each.refine) == (99.0, 3, one.refine)
    again = [each.prompt(shown).palettes[0].colours for each in recoloured(one, 3)]
    np.testing.assert_array_equal(again, colours[1:])
    assert (recoloured(one, 1, seed=1)[0].prompt(shown).palettes[0].colours != colours[1]).any()


def test_no_disagreement_where_colours_do_not_matter():
    shown = example((1, 2))
    found = disagreement(predictor(ColourMatcher()), scene(example((1, 2), seed=5).labels), [shown])
    assert found.shape == (32, 32) and found.dtype == np.float32 and found.max() == 0


def test_disagreement_is_where_the_colour_decides():
    shown = example((1, 2, 3, 4))
    found = disagreement(predictor(RedPainter()), shown.image, [shown], recolourings=6)
    assert found[:, :15].max() == 0 and found[:, 17:].min() > 0


def test_map_by_hand():
    one, two, three = found([[1, 1, 0]]), found([[1, 2, 0]]), found([[1, 3, 0]])
    np.testing.assert_array_equal(disagreement_map([one, two, three]), [[0, 1, 0]])
    np.testing.assert_allclose(disagreement_map([one, two, two]), [[0, 2 / 3, 0]])


def test_score_by_hand():
    one, two, nothing = found([[1, 1, 0, 0]]), found([[1, 0, 0, 0]]), found([[0, 0, 0, 0]])
    assert disagreement_score([one, one]) == 0
    assert disagreement_score([one, two]) == pytest.approx(0.5)
    assert disagreement_score([one, nothing]) == 1
    assert disagreement_score([nothing, nothing]) == 0
    assert disagreement_score([one, two, nothing]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert agreements(one, [one, two, nothing]) == {1: pytest.approx(0.5)}


def test_needs_two():
    with pytest.raises(ValueError, match="at least two"):
        disagreement_score([found([[1]])])
    with pytest.raises(ValueError, match="at least two"):
        disagreement(predictor(), example((1,)).image, [example((1,))], recolourings=1)
    one = predictor()
    with pytest.raises(TypeError, match="colours are fixed"):
        disagreement(one, example((1,)).image, one.prompt([example((1,))]))
