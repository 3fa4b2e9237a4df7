"""A pool picks what resembles the query, no twins, all classes; embeddings are computed once and kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher
from predictions import photo, predictor, tiny

from incontext.image import ImageError
from incontext.labeling.embedding import Embedder, centred, look_features, model_features
from incontext.labeling.example_pool import ExamplePool, pick
from incontext.types import Example


def pictures(hue: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Noisy pictures in one colour."""
    generator = np.random.default_rng([hue, seed])
    base = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)][hue])
    return [(base + generator.normal(0, 18, (40, 40, 3))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def examples(images, id=1) -> list[Example]:
    labels = np.zeros((40, 40), np.int32)
    labels[10:30, 10:30] = id
    return [Example(image, labels) for image in images]


def test_picks_what_resembles_the_query():
    shown = examples([*pictures(0, 4), *pictures(1, 4), *pictures(2, 4)])
    pool = ExamplePool(predictor(tiny()), shown)
    for hue in range(3):
        chosen = pool.pick(pictures(hue, 1, seed=9)[0], 2)
        assert all(each in shown[4 * hue : 4 * hue + 4] for each in chosen)


def test_the_same_for_the_same_query_and_all_when_asked_for_more():
    shown = examples([*pictures(0, 3), *pictures(1, 3)])
    pool = ExamplePool(predictor(tiny()), shown)
    first = pool.pick(photo(), 3)
    pool.pick(photo(seed=1), 2)
    assert pool.pick(photo(), 3) == first and pool.pick(photo(), 2) == first[:2]
    assert set(map(id, pool.pick(photo(), 99))) == set(map(id, shown))
    with pytest.raises(ValueError, match="1 example or more"):
        pool.pick(photo(), 0)
    with pytest.raises(ImageError):
        pool.pick("missing.png", 1)
    with pytest.raises(ValueError, match="at least one"):
        ExamplePool(predictor(tiny()), [])


def test_no_twins():
    """The second choice is not the first one's copy while something else is nearly as near."""
    vectors = np.array([(1, 0, 0), (1, 0, 0), (0.8, 0.6, 0)])
    one_class = np.ones((3, 1), bool)
    assert pick(np.array([0.9, 0.9, 0.85]), vectors, one_class, 2) == [0, 2]
    assert pick(np.array([0.9, 0.9, -0.5]), vectors, one_class, 2) == [0, 1]  # far away is no help


def test_all_classes_come_where_they_can():
    vectors = np.eye(4)
    shows = np.array([(True, False), (True, False), (True, False), (False, True)])
    assert pick(np.array([0.9, 0.8, 0.7, 0.65]), vectors, shows, 2) == [0, 3]
    assert pick(np.array([0.9, 0.8, 0.7, 0.65]), vectors, shows[:, :1], 2) == [0, 1]


def test_embeddings_do_not_depend_on_the_batch():
    images = [photo(seed=seed) for seed in range(18)]  # more than one batch
    embedder = Embedder(predictor(tiny()))
    together, errors = embedder.embed(images)
    alone = np.concatenate([embedder.embed([image])[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not errors and together.dtype == np.float32


def test_each_content_is_embedded_once(tmp_path, monkeypatch):
    images = [photo(seed=seed) for seed in range(3)]
    model = tiny()
    first, _ = Embedder(predictor(model), tmp_path).embed(images)
    monkeypatch.setattr("incontext.labeling.embedding.model_features", lambda *_: pytest.fail("embedded again"))
    again, _ = Embedder(predictor(model), tmp_path).embed([image.copy() for image in images])
    np.testing.assert_array_equal(again, first)
    monkeypatch.undo()
    other, _ = Embedder(predictor(tiny(ids_per_pass=3)), tmp_path).embed(images)  # the same function of its input
    np.testing.assert_array_equal(other, first)
    assert len(list(tmp_path.iterdir())) == 1
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    np.testing.assert_allclose(Embedder(predictor(model), tmp_path).embed(images)[0], first, atol=1e-6)


def test_unreadable_images_are_reported(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    vectors, errors = Embedder(predictor(tiny())).embed([photo(), tmp_path / "bad.png", tmp_path / "none.png"])
    assert set(errors) == {1, 2} and vectors[0].any() and not vectors[1:].any()


def test_without_a_cache_nothing_piles_up():
    embedder = Embedder(predictor(tiny()))
    embedder.embed([photo()])
    assert not embedder._kept


def test_models_without_layers_to_read_are_judged_by_looks():
    assert model_features(predictor(ColourMatcher()), np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 0)
    vectors, _ = Embedder(predictor(ColourMatcher())).embed([photo()])
    assert vectors.shape == (1, len(look_features(photo())))


def test_the_model_stays_as_it_was():
    model = tiny().train()
    model_features(predictor(model), np.zeros((1, 32, 32, 3), np.uint8))
    assert model.training and not model.norm._forward_hooks
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_looks_know_colour_layout_and_direction():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = 255
    across, down = look_features(stripes), look_features(stripes.swapaxes(0, 1).copy())
    assert across[192:] @ down[192:] < 0.3  # other directions of edges
    red, blue = look_features(pictures(0, 1)[0]), look_features(pictures(2, 1)[0])
    assert red[:192] @ blue[:192] < 0.5 and red[:192] @ look_features(pictures(0, 1, 5)[0])[:192] > 0.95


def test_centred_vectors_have_unit_length():
    vectors = np.random.default_rng(0).random((5, 7))
    np.testing.assert_allclose(np.linalg.norm(centred(vectors, vectors.mean(0)), axis=1), 1)
