"""Views agree where colours and sides don't matter, and the numbers of their disagreement are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, FakeModel, example, scene
from packs import cached_model, small_pack
from predictions import predictor, same, tiny

from incontext.labeling.disagreement import agreements, disagreement_map, disagreement_score, views
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


class Echo(FakeModel):
    """Paints the example's target, and remembers whether its queries came with a bright left column."""

    def __init__(self) -> None:
        super().__init__()
        self.bright_left: list[bool] = []

    def paint(self, query, images, targets, query_target):
        self.bright_left.append(bool(query[..., 0].mean() > query[..., -1].mean()))
        return targets[:, 0]


def test_views_share_the_model_and_differ_in_colours():
    one = predictor(tiny(), temperature=99.0, ids_per_pass=3, kind="semantic")
    others = views(one, 3)
    assert [each.mirrored for each in others] == [True, False, True]
    shown = [example((1, 2))]
    colours = [each.prompt(shown).palettes[0].colours for each in (one, *(view.predictor for view in others))]
    assert len({each.tobytes() for each in colours}) == 4
    for each in others:
        assert each.predictor.model is one.model and each.predictor.kind == "semantic"
        assert (each.predictor.temperature, each.predictor.ids_per_pass, each.predictor.refine) == (99.0, 3, one.refine)
    again = [view.predictor.prompt(shown).palettes[0].colours for view in views(one, 3)]
    np.testing.assert_array_equal(again, colours[1:])
    assert (views(one, 1, seed=1)[0].predictor.prompt(shown).palettes[0].colours != colours[1]).any()


def test_a_mirrored_view_shows_all_mirrored_and_answers_the_right_way_round():
    model = Echo()
    mirrored, plain = views(predictor(model), 2)
    shown = example((1, 2))
    query = np.zeros((32, 32, 3), np.uint8)
    query[:, :4] = 255
    found = mirrored.predict(query, [shown])
    assert model.bright_left == [False]
    np.testing.assert_array_equal(found.labels, shown.labels)
    np.testing.assert_array_equal(plain.predict(query, [shown]).labels, shown.labels)
    assert model.bright_left == [False, True]
    images = [call["images"] for call in model.calls]
    torch.testing.assert_close(images[0].flip(-1), images[1])
    assert found.painting.flags.c_contiguous


def test_examples_are_encoded_once_for_all_images():
    one = predictor(tiny(examples_attend_query=False))
    encoded, encode = [], one.model.encode_prompt
    one.model.encode_prompt = lambda *args, **options: encoded.append(1) or encode(*args, **options)
    (view,) = views(one, 1)
    shown = [example((1,)), example((1,), seed=2)]
    for seed in (3, 4):
        view.predict(example((1,), seed=seed).image, shown)
    assert len(encoded) == 1


def test_packs_are_asked_in_other_colours_and_never_mirrored():
    one = predictor(cached_model())
    pack = small_pack(one.model)
    (view,) = views(one, 1)
    query = example((1,), seed=5).image
    same(view.predict(query, [pack]), view.predictor.predict(query, [pack]))


def test_no_disagreement_where_colours_and_sides_do_not_matter():
    shown, query = example((1, 2)), scene(example((1, 2), seed=5).labels)
    one = predictor(ColourMatcher())
    found = one.predict(query, [shown])
    others = [view.predict(query, [shown]) for view in views(one, 3)]
    assert disagreement_score(found, others) == 0 and agreements(found, others) == {1: 1, 2: 1}
    assert disagreement_map([found, *others]).max() == 0


def test_disagreement_is_where_the_colour_decides():
    shown = example((1, 2, 3, 4))
    one = predictor(RedPainter())
    plain = [view.predictor.predict(shown.image, [shown]) for view in views(one, 6)]
    found = disagreement_map([one.predict(shown.image, [shown]), *plain])
    assert found.shape == (32, 32) and found.dtype == np.float32
    assert found[:, :15].max() == 0 and found[:, 17:].min() > 0


def test_map_by_hand():
    one, two, three = found([[1, 1, 0]]), found([[1, 2, 0]]), found([[1, 3, 0]])
    np.testing.assert_array_equal(disagreement_map([one, two, three]), [[0, 1, 0]])
    np.testing.assert_allclose(disagreement_map([one, two, two]), [[0, 2 / 3, 0]])
    with pytest.raises(ValueError, match="at least two"):
        disagreement_map([one])


def test_score_by_hand():
    one, two, nothing = found([[1, 1, 0, 0]]), found([[1, 0, 0, 0]]), found([[0, 0, 0, 0]])
    assert disagreement_score(one, [one]) == 0
    assert disagreement_score(one, [two]) == pytest.approx(0.5)
    assert disagreement_score(two, [one]) == pytest.approx(0.5)
    assert disagreement_score(one, [two, found([[0, 1, 1, 0]])]) == 1  # no pixel that all agree on
    assert disagreement_score(one, [nothing]) == disagreement_score(nothing, [one]) == 1
    assert disagreement_score(nothing, [nothing]) == 0
    # id 2 is in a view alone: it counts as missed
    assert disagreement_score(one, [found([[1, 1, 2, 0]])]) == pytest.approx(0.5)
    assert agreements(one, [found([[1, 1, 2, 0]]), two]) == {1: pytest.approx(0.5)}


def test_needs_a_view():
    with pytest.raises(ValueError, match="at least one view"):
        disagreement_score(found([[1]]), [])
    one = predictor()
    with pytest.raises(TypeError, match="colours are fixed"):
        views(one, 1)[0].predict(example((1,)).image, one.prompt([example((1,))]))
