import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, FakeModel, MaskCopier, blocks, example, scene
from predictions import photo, predictor, same, tiny

from incontext.decoding import Decoder
from incontext.device import pick_device
from incontext.image import denormalise, normalise, resize_image, resize_labels
from incontext.palette import DEFAULT_TEMPERATURE, Palette
from incontext.prompt import ONE_BY_ONE_MOST, Prompt
from incontext.refinement import Refinement
from incontext.types import IGNORE, Example

# What comes out


def test_a_perfect_model_gives_the_truth_with_the_users_ids():
    ids = (3, 17, 200, 70000)
    truth = blocks(ids)
    found = predictor().predict(scene(truth, ids), [example(ids, names={17: "mug"})])
    np.testing.assert_array_equal(found.labels, truth)
    assert found.ids == ids and found.names == {17: "mug"} and tuple(found.scores) == ids
    assert found.confidence.dtype == np.float32 and found.confidence.min() > 0.95
    np.testing.assert_allclose(found.painting, Palette.for_ids(ids).paint(truth), atol=1)


@pytest.mark.parametrize("size", [(32, 96), (200, 120), (16, 24), (7, 5), (1, 1)])
def test_results_have_the_images_own_size(size):
    truth = np.zeros(size, np.int32)
    truth[:, size[1] // 2 :] = 1
    found = predictor().predict(scene(truth), [example([1])])
    assert found.size == size and found.painting.shape == (*size, 3) and found.confidence.shape == size
    assert (found.labels == truth).mean() > 0.95  # all but blended pixels along the edge


def test_it_is_the_model_and_nothing_else():
    """The same, by hand: resize, normalise, one call of the model, denormalise, enlarge, nearest colour."""
    model, image, shown = tiny(), photo(), example([1, 2], (48, 40))
    palette = Palette.for_ids((1, 2))
    size = model.config.image_size
    with torch.no_grad():
        painting = model(
            normalise(resize_image(image, size).copy())[None],
            normalise(resize_image(shown.image, size).copy())[None, None],
            normalise(palette.paint(resize_labels(shown.labels, size)))[None, None],
            kind="semantic",
        )
    large = torch.nn.functional.interpolate(
        denormalise(painting), size=image.shape[:2], mode="bilinear", align_corners=False, antialias=True
    )[0]
    labels, confidence = palette.decode(large)
    found = predictor(model).predict(image, [shown], kind="semantic")
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-6)
    np.testing.assert_allclose(found.painting, large.permute(1, 2, 0), atol=0.51)


def test_scores_are_the_mean_confidence_over_an_ids_pixels():
    found = predictor(tiny()).predict(photo(), [example([1, 5])])
    assert set(found.scores) == set(found.ids)
    for id, score in found.scores.items():
        assert score == pytest.approx(found.confidence[found.mask(id)].mean(), abs=1e-5)


def test_examples_merge_ids_and_names():
    one, other = (
        example([1, 2], names={1: "a"}),
        example([2, 7], seed=3, looks=[2, 7], names={7: "b", 2: "c"}),
    )
    # Looks go by position, so give 2 and 7 the looks they have in the query.
    other = Example(scene(other.labels, [1, 2, 7]), other.labels, other.names)
    truth = blocks([1, 2, 7], seed=5)
    found = predictor().predict(scene(truth, [1, 2, 7]), [one, other])
    np.testing.assert_array_equal(found.labels, truth)
    assert found.names == {1: "a", 7: "b", 2: "c"}


# Several passes


@pytest.mark.parametrize("per_pass", [1, 2, 4, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_several_passes_equal_one(per_pass, flip):
    ids = (2, 3, 5, 8, 13, 21, 34, 55, 89)
    truth = blocks(ids, side=4)
    query, shown = scene(truth, ids), example(ids, side=4)
    one = predictor(ids_per_pass=9).predict(query, [shown])
    model = ColourMatcher()
    many = predictor(model, ids_per_pass=per_pass).predict(query, [shown], flip=flip)
    assert len(model.calls) == -(-9 // per_pass) * (1 + flip)
    np.testing.assert_array_equal(many.labels, truth)
    np.testing.assert_array_equal(many.labels, one.labels)
    assert many.confidence.min() > 0.95
    # The painting is in one palette for all ids, whatever the passes were painted in.
    np.testing.assert_allclose(many.painting.astype(int), one.painting.astype(int), atol=8)


def test_passes_merge_as_documented():
    a, b = Palette((1,), np.uint8([[255, 0, 0]])), Palette((2, 3), np.uint8([[0, 255, 0], [0, 0, 255]]))
    paintings = [torch.rand(3, 6, 7) * 255, torch.rand(3, 6, 7) * 255]
    decoder = Decoder((6, 7), (a, b), torch.device("cpu"), DEFAULT_TEMPERATURE)
    for painting in paintings:
        decoder.add([painting])
    found = decoder.finish({})
    p, q = a.probabilities(paintings[0]), b.probabilities(paintings[1])
    merged = torch.stack([torch.minimum(p[0], q[0]), p[1], q[1], q[2]])
    merged /= merged.sum(0)
    np.testing.assert_array_equal(found.labels, merged.argmax(0))
    np.testing.assert_allclose(found.confidence, merged.max(0).values, atol=1e-6)


@pytest.mark.parametrize("refined", [False, True])
def test_what_is_painted_alone_is_a_second_opinion(refined):
    """Of ids 1 and 2, which share a pass; 3 has its own."""
    together = Palette((1, 2), np.uint8([[0, 255, 0], [0, 0, 255]]))
    alone = [Palette((id,), together.colours[k : k + 1]) for k, id in enumerate(together.ids)]
    other = Palette((3,), np.uint8([[255, 0, 0]]))
    palettes = (together, *alone, other)
    paintings = [torch.rand(3, 6, 7) * 255 for _ in palettes]
    refinement = Refinement(np.zeros((6, 7, 3), np.uint8), 1.0, width=0.0) if refined else None
    decoder = Decoder((6, 7), palettes, torch.device("cpu"), DEFAULT_TEMPERATURE, refinement)
    for painting in paintings:
        decoder.add([painting])
    found = decoder.finish({})
    both, one, two, three = (each.probabilities(painting) for each, painting in zip(palettes, paintings, strict=True))
    single = torch.stack([torch.minimum(one[0], two[0]), one[1], two[1]])
    single /= single.sum(0)
    background = 0.8 * both[0] + 0.2 * single[0]
    ids = both[1:] + single[1:]
    ids = ids / ids.sum(0) * (1 - background)
    merged = torch.cat([torch.minimum(background, three[0])[None], ids, three[1:]])
    merged /= merged.sum(0)
    np.testing.assert_array_equal(found.labels, merged.argmax(0))
    np.testing.assert_allclose(found.confidence, merged.max(0).values, atol=1e-5)


def test_ids_that_share_a_pass_are_painted_one_by_one_where_asked():
    ids = (2, 3, 5, 8, 13)
    truth, shown = blocks(ids, side=4), example(ids, side=4)
    model = ColourMatcher()
    found = predictor(model, ids_per_pass=2, one_by_one=True).predict(scene(truth, ids), [shown])
    np.testing.assert_array_equal(found.labels, truth)
    assert len(model.calls) == 3 + 4  # the first id has a pass to itself
    prompt = predictor(ids_per_pass=2, one_by_one=True).prompt([shown])
    assert [each.ids for each in prompt.passes] == [(2,), (3, 5), (3,), (5,), (8, 13), (8,), (13,)]
    assert [each.colours.tolist() for each in prompt.passes[2:4]] == [[c] for c in prompt.palettes[1].colours.tolist()]
    told = predictor(ids_per_pass=9, one_by_one=True).prompt([shown], ids=[21])  # of which no example knows
    assert told.passes == told.palettes
    shown = blocks(range(1, ONE_BY_ONE_MOST + 2), (64, 64), side=4)
    many = Prompt.build([Example(photo((64, 64)), shown)], 3, one_by_one=True)
    assert many.passes == many.palettes
    assert predictor(FakeModel(one_by_one=True)).one_by_one and not predictor(FakeModel()).one_by_one


def test_decoding_in_strips_changes_nothing(monkeypatch):
    found = [predictor(tiny(), ids_per_pass=2).predict(photo(), [example([1, 2, 3])], flip=True)]
    monkeypatch.setattr("incontext.decoding._STRIP", 300)
    found.append(predictor(tiny(), ids_per_pass=2).predict(photo(), [example([1, 2, 3])], flip=True))
    same(*found, confidence=1e-6)  # vectorised and scalar exponentials round differently


def test_a_pass_shows_only_examples_of_its_ids_and_background_examples():
    shown = [
        example([1]),
        example([2]),
        example([1, 2]),
        Example(photo((32, 32)), np.zeros((32, 32), np.int32)),
    ]
    model = ColourMatcher()
    predictor(model, ids_per_pass=1).predict(photo(), shown)
    assert [call["images"].shape[1] for call in model.calls] == [3, 3]
    model = ColourMatcher()
    predictor(model).predict(photo(), shown)
    assert [call["images"].shape[1] for call in model.calls] == [4]


# Ensembles, flips, kinds


def test_feature_ensemble_keeps_examples_apart_and_spatial_lays_them_out():
    shown = [example([1], seed=i) for i in range(3)]
    model = FakeModel()
    model.paint = lambda query, images, targets, query_target: query
    predictor(model).predict(photo(), shown, ensemble="feature", kind="semantic")
    predictor(model, kind="instance").predict(photo(), shown, ensemble="spatial")
    feature, spatial = model.calls
    assert feature["images"].shape == feature["targets"].shape == (1, 3, 3, 32, 32)
    assert spatial["images"].shape == (1, 1, 3, 32, 32)
    assert (feature["kind"], spatial["kind"]) == ("semantic", "instance")
    colours = denormalise(spatial["targets"][0, 0]).round().flatten(1).T.unique(dim=0)
    assert colours.tolist() == [[0, 0, 0], [255, 255, 255]]  # targets keep their colours


def test_flips_mirror_query_and_examples():
    shown = example([1, 2])
    model = MaskCopier()
    straight = predictor(model).predict(photo(), [shown])
    flipped = predictor(model).predict(photo(), [shown], flip=True)
    # If only the query were mirrored, the copied mask would come back mirrored and spoil the average.
    same(straight, flipped)
    a, b = model.calls[1:]
    for name in ("query", "images", "targets"):
        torch.testing.assert_close(a[name].flip(-1), b[name], rtol=0, atol=0)
    assert (straight.labels != straight.labels[:, ::-1]).any()


def test_flips_that_disagree_give_one_of_the_two_never_a_third_colour():
    palette = Palette((1, 2, 3), np.uint8([[255, 0, 0], [0, 0, 255], [128, 0, 128]]))

    class Torn(FakeModel):
        def paint(self, query, images, targets, query_target):
            colour = palette.colours[len(self.calls) % 2]
            return normalise(np.broadcast_to(colour, (1, *query.shape[-2:], 3)).copy())

    found = predictor(Torn(), palette=lambda ids: palette).predict(photo(), [example([1, 2, 3])], flip=True)
    assert set(found.ids) <= {1, 2}
    assert found.confidence.max() < 0.6  # and it is not sure


def test_ignored_pixels_of_examples_are_black():
    shown = example([1])
    labels = np.where(np.arange(32) < 8, IGNORE, shown.labels)
    model = MaskCopier()
    predictor(model).predict(photo(), [Example(shown.image, labels)])
    assert denormalise(model.calls[0]["targets"][..., :8]).abs().max() < 1e-3


# Determinism, modes, devices


def test_same_seed_same_result_other_seed_other_colours():
    shown, image = [example([1, 2, 3])], photo()
    runs = [predictor(tiny(), seed=seed).predict(image, shown) for seed in (5, 5, 6, None, None)]
    same(runs[0], runs[1], confidence=0)
    same(runs[3], runs[4], confidence=0)
    palettes = [predictor(seed=seed).prompt(shown).palettes[0].colours.tolist() for seed in (5, 6, None)]
    assert palettes[0] != palettes[1] != palettes[2]
    one = predictor(tiny(), seed=3)
    state = torch.get_rng_state()
    one.predict(image, shown)
    assert torch.equal(state, torch.get_rng_state())  # global randomness is left alone


def test_random_colours_differ_between_passes():
    one, other = predictor(seed=1, ids_per_pass=2).prompt([example([1, 2, 3, 4])]).palettes
    assert one.colours.tolist() != other.colours.tolist()


def test_a_model_in_training_predicts_in_evaluation_mode_and_trains_on():
    model = tiny(stochastic_depth=0.9)
    expected = predictor(model).predict(photo(), [example([1])])
    model.train()
    same(expected, predictor(model).predict(photo(), [example([1])]), confidence=0)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_reduced_precision_weights_run():
    found = predictor(tiny().to(torch.bfloat16)).predict(photo(), [example([1])])
    assert found.confidence.dtype == np.float32 and found.size == (40, 52)


def test_arguments_are_left_as_they_are():
    image, shown = photo(), example([1, 2])
    known = np.full((40, 52), -5)
    known[0, 0] = 1
    before = [array.copy() for array in (image, shown.image, shown.labels, known)]
    predictor(tiny()).predict(image, [shown], query_labels=known, flip=True, tile=24)
    for array, copy in zip((image, shown.image, shown.labels, known), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu") == pick_device(torch.device("cpu"))
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("gpu", "cuda:99", "meta", 3.5):
        with pytest.raises(ValueError, match="device"):
            pick_device(wrong)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch cannot use"):
            pick_device("cuda")


# Errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ensemble": "mean"}, "ensemble"),
        ({"kind": "panoptic"}, "kind"),
        ({"tile": 3}, "tile"),
        ({"tile": "big"}, "tile"),
        ({"tile": True}, "tile"),
        ({"overlap": 1.0}, "overlap"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_options_are_named_before_any_work(options, match):
    model = ColourMatcher()
    with pytest.raises(ValueError, match=match):
        predictor(model).predict(photo(), [example([1])], **options)
    with pytest.raises(ValueError, match=match):
        predictor(model).predict_many([photo()], [example([1])], **options)
    assert not model.calls


def test_wrong_inputs_are_named():
    shown = [example([1])]
    with pytest.raises(ValueError, match="at least one example"):
        predictor().predict(photo(), [])
    with pytest.raises(ValueError, match="only background"):
        predictor().predict(photo(), [Example(photo(), np.zeros((40, 52), np.int32))])
    with pytest.raises(TypeError, match=r"Example\.open"):
        predictor().predict(photo(), [("a.png", "b.png")])
    with pytest.raises(ValueError, match="one meaning"):
        predictor().predict(photo(), [example([1], names={1: "a"}), example([1], names={1: "b"})])
    with pytest.raises(TypeError, match="one"):
        predictor().predict_many("image.png", shown)
    with pytest.raises(TypeError, match="one"):
        predictor().predict_many(photo(), shown)
    with pytest.raises(ValueError, match="on_error"):
        predictor().predict_many([], shown, on_error="skip")
    with pytest.raises(ValueError, match="threads"):
        predictor().predict_many([], shown, threads=0)
    with pytest.raises(ValueError, match="size"):
        predictor().predict(photo(), shown, query_labels=np.zeros((3, 3), int))
    with pytest.raises(TypeError, match="query_labels"):
        predictor().predict(photo(), shown, query_labels=np.zeros((40, 52)))
    with pytest.raises(ValueError, match="nothing to go by"):
        predictor().predict(photo(), query_labels=np.eye(40, 52, dtype=int), tile=32)
    with pytest.raises(ValueError, match="temperature"):
        predictor(temperature=0)
    with pytest.raises(ValueError, match="seed or palette"):
        predictor(seed=1, palette=Palette.for_ids)
    assert list(predictor().predict_many([], shown)) == []


def test_a_vanishing_object_is_reported(caplog):
    labels = np.zeros((500, 500), np.int32)
    labels[3, 3] = 1
    labels[200:400, 200:400] = 2
    prompt = Prompt.build([Example(photo((500, 500)), labels)], 10)
    prompt.canvases(0, (32, 32))
    assert "[1]" in caplog.text and "32 x 32" in caplog.text


def test_a_varied_predictor_keeps_all_other_settings_and_the_model():
    one = predictor(tiny(), kind="semantic", ids_per_pass=3, seed=4, temperature=99.0, refine=True)
    other = one.varied(temperature=5.0)
    assert other.model is one.model and other.device == one.device
    assert other.settings == one.settings | {"temperature": 5.0}
    assert one.settings["temperature"] == 99.0
    with pytest.raises(ValueError, match="temperature"):
        one.varied(temperature=0)


def test_a_temperature_that_was_not_given_is_left_to_the_packs():
    assert predictor(tiny()).varied(kind="semantic").settings["temperature"] is None


def test_an_example_of_which_nothing_is_known_says_nothing():
    """It is no example of background, as one that is labelled so is."""
    image, shown = photo((32, 32)), example([1])
    unknown, empty = (Example(photo((32, 32)), np.full((32, 32), value, np.int32)) for value in (IGNORE, 0))
    prompts = {name: Prompt.build([shown, each], 1) for name, each in (("unknown", unknown), ("empty", empty))}
    assert {name: len(prompt.shown(0)) for name, prompt in prompts.items()} == {"unknown": 1, "empty": 2}
    same(predictor(tiny()).predict(image, [shown, unknown]), predictor(tiny()).predict(image, [shown]))


def test_what_is_known_of_shown_ids_needs_no_other_prompt():
    one, shown = predictor(tiny()), [example([1, 2])]
    image = scene(blocks([1, 2]))
    plain = one._prepare(shown)
    assert one._prepare(shown, [2]) is plain and one._prepare(shown, [2, 3]).ids == (1, 2, 3)
    more = one.prompt(shown, ids=[7])
    assert one._prepare(more, [9]).ids == (1, 2, 7, 9)
    known = np.full(image.shape[:2], IGNORE, np.int64)
    known[0, 0] = 2**32 + 1
    with pytest.raises(ValueError, match="query_labels: expected ids up to 2147483647, got 4294967297"):
        one.predict(image, shown, query_labels=known)


def test_examples_are_resized_once_for_all_passes(monkeypatch):
    calls = []
    monkeypatch.setattr("incontext.prompt.resize_image", lambda *args: calls.append(1) or resize_image(*args))
    one = predictor(ids_per_pass=1)
    one.predict(photo(), [example([1, 2, 3]), example([1, 2, 3], seed=2)])
    assert len(one.prompt([example([1, 2, 3])]).passes) == 3 and len(calls) == 2
