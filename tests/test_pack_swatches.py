"""Pixels of many images in a pack: what queries are compared with, and how packs with them join."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fake_models import blocks
from packs import cached_model, examples, small_pack
from predictions import predictor

import incontext as ic
from incontext.appearance import Sample
from incontext.appearance_cache import SWATCHES, AppearanceCache
from incontext.image import normalise, resize_image, resize_labels
from incontext.pack import PackError, PromptPack
from incontext.pack.joining import merge_packs
from incontext.pack.prompt_pack import paint_slots, slot_colours
from incontext.pack.swatches import pick_columns
from incontext.prompt import Prompt
from incontext.training.tune_data import Views
from incontext.training.tune_score import fit_looks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return cached_model()


@pytest.fixture
def looks(model):
    return AppearanceCache(model.config.image_size, model.config.patch_size, CPU)


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    maps = [blocks((1, 2), (48, 40), seed + k) for k in range(count)]
    colours = np.array([[90, 90, 90], [200, 60, 60], [60, 60, 200]])
    return [((colours[ids] + rng.integers(-20, 21, (*ids.shape, 3))).astype(np.uint8), ids) for ids in maps]


def with_swatches(model, looks, names=("cell", "nucleus"), name="small", seed=0):
    return dataclasses.replace(small_pack(model, names, name), swatches=looks.swatches(pairs(5, seed), len(names)))


def test_swatches_are_the_samples_of_their_images(looks):
    found = looks.swatches(pairs(3), 2)
    pixels = len(found.features[0])
    assert found.features.shape[:2] == (3, pixels) and found.values.shape == (3, pixels, 3)
    assert 64 < pixels <= SWATCHES[1] // 3
    image, labels = pairs(3)[1]
    sample = Sample.of(image, labels, (1, 2), looks._patch(labels.shape, None), CPU, found.detail)
    for kept, whole in zip((found.features[1], found.values[1]), sample.thinned(pixels), strict=True):
        torch.testing.assert_close(kept.float(), whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.held[1].float(), sample.held, atol=1e-3, rtol=1e-3)
    assert torch.equal(found.shown[1].bool(), sample.shown)


def test_images_that_show_nothing_give_none(looks):
    image, labels = pairs(1)[0]
    assert looks.swatches([(image, np.zeros_like(labels))], 2) is None
    assert looks.swatches([(image, labels), (image, np.full_like(labels, -1))], 2) is None


def test_many_images_are_thinned_evenly(looks, monkeypatch):
    monkeypatch.setattr("incontext.appearance_cache.SWATCHES", (3, 32))
    found = looks.swatches(pairs(7), 2)
    assert found.features.shape[:2] == (3, 10)
    wanted = Sample.of(*pairs(7)[3], (1, 2), looks._patch((48, 40), None), CPU, found.detail).thinned(10)[0]
    torch.testing.assert_close(found.features[1].float(), wanted, atol=1e-3, rtol=1e-3)


def test_queries_are_compared_with_the_swatches(model, looks):
    """Whatever colours the pack's own images have."""
    pack = with_swatches(model, looks)
    image, labels = pairs(1, seed=9)[0]
    found = looks.refinement(image, Prompt.build([pack], 6)).likeness(pack.ids).shares
    guess = torch.nn.functional.interpolate(found[None], labels.shape, mode="bilinear")[0].argmax(0).numpy()
    assert (guess == labels).mean() > 0.95
    plain = looks.refinement(image, Prompt.build([dataclasses.replace(pack, swatches=None)], 6))
    assert not torch.equal(plain.likeness(pack.ids).shares, found)


def test_at_another_step_the_pictures_serve(model, looks):
    pack = with_swatches(model, looks)
    other = dataclasses.replace(pack.swatches, scale=torch.tensor([0.5, 10.0]))
    image = pairs(1)[0][0]
    changed, plain = (
        looks.refinement(image, Prompt.build([dataclasses.replace(pack, swatches=each)], 6)).likeness(pack.ids)
        for each in (other, None)
    )
    torch.testing.assert_close(changed.shares, plain.shares)


def test_saved_and_loaded(model, looks, tmp_path):
    pack = with_swatches(model, looks)
    pack.save(tmp_path / "p.safetensors")
    loaded = PromptPack.load(tmp_path / "p.safetensors").swatches
    for name, tensor in vars(pack.swatches).items():
        assert torch.equal(getattr(loaded, name), tensor) and getattr(loaded, name).dtype == tensor.dtype
    query = pairs(1)[0][0]
    one = predictor(model, refine=True)
    before, after = (one.predict(query, each) for each in (pack, PromptPack.load(tmp_path / "p.safetensors")))
    assert np.array_equal(before.labels, after.labels) and np.array_equal(before.confidence, after.confidence)


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(5, 819, 14)},
        {"features": torch.full((5, 819, 14), float("nan")).half()},
        {"values": torch.zeros(5, 819, 4).half()},
        {"held": torch.zeros(4, 2).half()},
        {"shown": torch.zeros(5, 2)},
        {"scale": torch.tensor([0.0, 1.0])},
    ],
    ids=["float32", "NaN", "classes", "images", "floats", "no step"],
)
def test_swatches_that_do_not_fit_are_refused(model, looks, change):
    pack = with_swatches(model, looks)
    with pytest.raises(PackError, match="swatches"):
        dataclasses.replace(pack, swatches=dataclasses.replace(pack.swatches, **change))


def test_merged_packs_keep_them(model, looks):
    first, second = (
        with_swatches(model, looks, names, name, seed)
        for names, name, seed in ((("cell", "nucleus"), "a", 0), (("vessel", "wall"), "b", 1))
    )
    merged = merge_packs([first, second], "both").swatches
    assert merged.features.shape[0] == 10 and merged.values.shape[2] == 5
    torch.testing.assert_close(merged.values.float().sum(2), torch.ones(merged.values.shape[:2]), atol=2e-3, rtol=0)
    assert merged.shown[:5, :2].bool().all() and not merged.shown[:5, 2:].any()
    assert merged.shown[5:, 2:].bool().all() and not merged.shown[5:, :2].any()
    assert merge_packs([first, dataclasses.replace(second, swatches=None)], "both").swatches is None


def test_columns_by_id():
    values = torch.arange(6).view(2, 3)
    assert pick_columns(values, (7, 2, 5), (2, 3, 7)).tolist() == [[1, 0, 0], [4, 0, 3]]


@pytest.mark.parametrize("refine", [False, True])
def test_tuning_takes_them_for_models_that_compare(model, refine):
    config = dataclasses.replace(model.config, refine=refine)
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    pack = ic.tune(other, examples(["cell"], 6), ic.TuneConfig(steps=1, examples=1, batch_size=2))
    assert (pack.swatches is not None) == refine
    if refine:
        assert len(pack.swatches.features) == pack.made["images"]


def test_where_only_colours_tell_they_count_more(model, looks):
    """The painting of random weights is noise, and the colours are clear; or the other way round."""
    pack = with_swatches(model, looks)
    size = model.config.image_size
    shown = [(resize_image(image, size), resize_labels(ids, size)) for image, ids in pairs(4, seed=9)]
    views = Views(np.stack([image for image, _ in shown]), np.stack([ids for _, ids in shown]).astype(np.uint8))
    assert fit_looks(model, pack, views, 2).strength > 1
    noise = np.random.default_rng(0).integers(0, 256, views.images.shape, np.uint8)

    class Knowing(type(model)):
        def forward_cached(self, query, cache, **options):
            start = next(k for k in range(len(noise)) if torch.equal(normalise(noise[k : k + 1]), query[:1]))
            slots = torch.from_numpy(views.slots[start : start + len(query)].astype(np.int64))
            return paint_slots(slots, slot_colours(pack.ids, pack.palettes[0]))

    knowing = Knowing(model.config)
    knowing.load_state_dict(model.state_dict())
    assert fit_looks(knowing.eval(), pack, Views(noise, views.slots), 2).strength < 1


def test_the_strength_is_kept_joined_and_checked(model, tmp_path):
    packs = [dataclasses.replace(small_pack(model, [name], name), strength=k) for name, k in (("a", 0.5), ("b", 8.0))]
    packs[0].save(tmp_path / "p.safetensors")
    assert PromptPack.load(tmp_path / "p.safetensors").strength == 0.5
    assert merge_packs(packs, "both").strength == pytest.approx(2.0)
    with pytest.raises(PackError, match="strength: expected a number above 0"):
        dataclasses.replace(packs[0], strength=0.0)


def test_the_strength_scales_the_odds(model, looks):
    pack, image = with_swatches(model, looks), pairs(1)[0][0]
    plain, more = (
        looks.refinement(image, Prompt.build([dataclasses.replace(pack, strength=k)], 6)).likeness(pack.ids).weights
        for k in (1.0, 3.0)
    )
    odds = [each / (1 - each) for each in (plain[1:], more[1:])]
    torch.testing.assert_close(odds[1] / odds[0], torch.full((2,), 3.0), atol=0.2, rtol=0.05)


def test_beside_examples_both_are_plain(model, looks):
    pack, image = dataclasses.replace(with_swatches(model, looks), strength=5.0, favour=2.0), pairs(1)[0][0]
    joined = [
        looks.refinement(image, Prompt.build([each, *examples(["cell", "nucleus"])], 6)).likeness(pack.ids)
        for each in (pack, dataclasses.replace(pack, strength=1.0, favour=1.0))
    ]
    torch.testing.assert_close(*(each.weights for each in joined))
    assert [each.favour for each in joined] == [1, 1]


def test_favour_scales_the_odds_of_every_class(model, looks):
    pack, image = with_swatches(model, looks), pairs(1)[0][0]
    plain, more = (
        looks.refinement(image, Prompt.build([dataclasses.replace(pack, favour=k)], 6)).likeness(pack.ids)
        for k in (1.0, 2.0)
    )
    opinion = torch.rand(3, *plain.shares.shape[1:], generator=torch.Generator().manual_seed(0)).softmax(0)
    before, after = (each.join(opinion, pack.ids) for each in (plain, more))
    torch.testing.assert_close(after[1:] / after[0], 2 * before[1:] / before[0], atol=1e-3, rtol=1e-3)
