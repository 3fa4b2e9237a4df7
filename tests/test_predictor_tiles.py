import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, FakeModel, blocks, example, scene
from predictions import photo, predictor, same, tiny

from incontext.image import denormalise, normalise
from incontext.palette import Palette
from incontext.types import IGNORE, Example

# Tiles


def dots(seed=0, size=(128, 96)):
    """Small objects: id 1 single pixels, id 2 two by two."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.int32)
    for y, x in rng.integers(1, np.array(size) - 3, (60, 2)):
        labels[y, x] = 1
    for y, x in rng.integers(1, np.array(size) - 3, (30, 2)):
        labels[y : y + 2, x : x + 2] = 2
    return labels


@pytest.mark.parametrize(("overlap", "flip"), [(0.0, False), (0.25, True), (0.5, False)])
def test_tiles_see_what_the_whole_image_hides(overlap, flip):
    truth, shown = dots(), dots(1, (100, 140))
    shown = Example(scene(shown), shown)
    tiled = predictor(ids_per_pass=1).predict(scene(truth), [shown], tile=32, overlap=overlap, flip=flip)
    np.testing.assert_array_equal(tiled.labels, truth)  # tiles of the input's size: not one pixel is resampled
    whole = predictor(ids_per_pass=1).predict(scene(truth), [shown], tile=None)
    assert (whole.labels == truth)[truth > 0].mean() < 0.7


def test_auto_tiles_where_objects_are_small_and_only_there():
    truth, shown = dots(), dots(1)
    same(
        predictor().predict(scene(truth), [Example(scene(shown), shown)], tile="auto"),
        predictor().predict(scene(truth), [Example(scene(shown), shown)], tile=32),
    )
    large, truth = blocks([1], (128, 128), side=64), blocks([1], (128, 192), seed=4, side=64)
    large = Example(scene(large), large)
    model = ColourMatcher()
    predictor(model).predict(scene(truth), [large], tile="auto")
    assert len(model.calls) == 1 and model.calls[0]["query"].shape[0] == 1


def test_tiles_without_asking_where_all_objects_are_too_thin():
    truth, shown = dots(), dots(1)
    shown = Example(scene(shown), shown)
    same(predictor().predict(scene(truth), [shown]), predictor().predict(scene(truth), [shown], tile="auto"))
    model, wide = ColourMatcher(), blocks([3], (128, 96), side=64)
    predictor(model).predict(scene(truth), [shown, Example(scene(wide), wide)])
    known = np.full(truth.shape, IGNORE)
    known[0] = 0
    predictor(model).predict(scene(truth), [shown], query_labels=known)
    assert [len(call["query"]) for call in model.calls] == [1, 1]  # one object is seen; the image is known in part


def test_tile_of_a_small_image_is_no_tile():
    shown, image = example([1, 2], (40, 50)), photo((50, 33))
    same(
        predictor(tiny()).predict(image, [shown], tile=50),
        predictor(tiny()).predict(image, [shown]),
    )


def test_a_small_query_is_shown_at_the_scale_of_its_tiled_example():
    model, labels = ColourMatcher(), dots(1)
    found = predictor(model).predict(scene(labels[:20, :24]), [Example(scene(labels), labels)], tile=32)
    np.testing.assert_array_equal(found.labels, labels[:20, :24])
    torch.testing.assert_close(model.calls[0]["query"][0, :, :20, :24], normalise(scene(labels[:20, :24])))


def test_tiled_and_whole_images_mix_in_one_run():
    labels = [dots(0), dots(1, (30, 30)), dots(2, (32, 90)), dots(3, (20, 20)), dots(4, (64, 64))]
    shown = dots(5, (32, 32))
    found = predictor().predict_many(map(scene, labels), [Example(scene(shown), shown)], tile=32, batch_size=3)
    for each, truth in zip(found, labels, strict=True):
        assert each.size == truth.shape
        assert truth.shape[0] % 32 or (each.labels == truth).all()


def test_batch_size_bounds_the_tiles_in_one_call():
    model, labels = ColourMatcher(), dots()
    predictor(model).predict(scene(labels), [Example(scene(labels), labels)], tile=32, batch_size=3)
    sizes = [len(call["query"]) for call in model.calls]
    assert max(sizes) == 3 and sum(sizes) == 5 * 4


# A partly painted query


def test_query_labels_reach_the_model_and_stand_in_the_result():
    model, truth = FakeModel(), blocks([1, 2])
    model.paint = lambda query, images, targets, query_target: torch.full_like(query, -2.2)  # black: it sees nothing
    known = np.full((32, 32), IGNORE)
    known[3, 4] = 2
    known[20, 30] = 0
    found = predictor(model).predict(scene(truth), [example([1, 2])], query_labels=known)
    call = model.calls[0]
    assert (~call["hidden"]).nonzero()[:, 1].tolist() == [0, 4 * 2 + 3]  # the two patches of 8 x 8 pixels
    target = denormalise(call["query_target"])[0]
    assert target[:, 3, 4].round().tolist() == Palette.for_ids((1, 2)).colours[1].tolist()
    assert target.sum() == pytest.approx(float(target[:, 3, 4].sum()), abs=0.1)  # black elsewhere
    assert found.labels[3, 4] == 2 and found.confidence[3, 4] == 1 and found.confidence[20, 30] == 1
    assert (found.labels > 0).sum() == 1 and found.scores == {2: 1.0}


def test_query_labels_alone_are_enough_and_may_bring_new_ids():
    truth = blocks([4, 9])
    found = predictor(ColourMatcher()).predict(scene(truth, [4, 9]), query_labels=truth)
    np.testing.assert_array_equal(found.labels, truth)
    real = predictor(tiny()).predict(photo((32, 32)), query_labels=np.where(truth == 9, 9, IGNORE))
    assert set(real.ids) == {9}
    with_examples = predictor(ids_per_pass=1).predict(scene(truth, [4, 9]), [example([4])], query_labels=truth)
    np.testing.assert_array_equal(with_examples.labels, truth)


def test_query_labels_are_tiled_and_flipped_along():
    model, labels = ColourMatcher(), dots()
    known = np.where(labels == 2, 2, IGNORE)
    shown = [Example(scene(labels), labels)]
    found = predictor(model).predict(scene(labels), shown, query_labels=known, tile=32, flip=True, batch_size=99)
    np.testing.assert_array_equal(found.labels, labels)
    straight, mirrored = model.calls
    torch.testing.assert_close(straight["query_target"].flip(-1), mirrored["query_target"], rtol=0, atol=0)
    torch.testing.assert_close(
        straight["hidden"].unflatten(1, (4, 4)).flip(-1).flatten(1), mirrored["hidden"], rtol=0, atol=0
    )


@pytest.mark.parametrize("attend", [True, False])
def test_real_models_take_query_labels_with_examples(attend):
    known = np.full((40, 52), IGNORE)
    known[5:9, 5:9] = 1
    model, shown = tiny(examples_attend_query=attend), [example([1])]
    a = predictor(model).predict(photo(), shown, query_labels=known, flip=True)
    b = predictor(model).predict(photo(), shown, flip=True)
    assert (a.mask(1)[5:9, 5:9]).all()
    far = (slice(20, None), slice(20, None))
    assert np.abs(a.confidence[far] - b.confidence[far]).max() > 1e-4  # it was told something
