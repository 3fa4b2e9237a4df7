"""Packs as values: what they hold, what is refused, and how several become one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, blocks, example, scene
from packs import SIZE, cached_model, examples, small_pack
from predictions import predictor, tiny

from incontext.pack import PackError
from incontext.pack.compiling import compile_pack, encode_pack
from incontext.pack.joining import join_by_name, merge_packs, share_passes
from incontext.pack.prompt_pack import paint_slots, slot_colours
from incontext.palette import Palette

QUERY = scene(blocks([1, 2], (60, 52), seed=9))


def equal(a, b):
    """To the last bit."""
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.confidence, b.confidence)
    np.testing.assert_array_equal(a.painting, b.painting)
    assert a.scores == b.scores and a.names == b.names


@pytest.mark.parametrize("ensemble", ["feature", "spatial"])
@pytest.mark.parametrize("model", [tiny, cached_model])
def test_a_compiled_pack_segments_as_its_examples_do(model, ensemble):
    model = model()
    shown = examples(["cell", "nucleus"], 3)
    pack = compile_pack(model, shown, "p", ensemble=ensemble)
    one = predictor(model)
    equal(one.predict(QUERY, shown, ensemble=ensemble, kind="semantic"), one.predict(QUERY, pack))


def test_a_compiled_pack_of_tiles_segments_as_its_examples_do():
    model = tiny()
    large = [example([1, 2], (96, 128), seed=k, names={1: "cell", 2: "nucleus"}) for k in range(2)]
    pack = compile_pack(model, large, "p", tile=40)
    assert pack.tile == 40 and pack.images.shape[2:] == (32, 32)
    query, one = scene(blocks([1, 2], (80, 64), seed=5)), predictor(model)
    equal(one.predict(query, large, tile=40, kind="semantic"), one.predict(query, pack))


def test_an_image_smaller_than_the_tile_is_shown_at_the_packs_scale():
    model = ColourMatcher()
    pack = compile_pack(model, [example([1], (96, 96))], "p", tile=64)
    one = predictor(model)
    one.predict(scene(blocks([1], (32, 32))), pack)
    # 32 pixels of a tile of 64, in an input of 32: the query, mirrored, fills the input twice over
    query = model.calls[-1]["query"][0]
    torch.testing.assert_close(query[:, :, :16], query[:, :, 16:].flip(-1), atol=0.2, rtol=0)


def test_an_encoded_pack_gives_what_encoding_gives():
    model = cached_model()
    pack = small_pack(model)
    encoded = encode_pack(pack, model)
    one = predictor(model)
    equal(one.predict(QUERY, pack), one.predict(QUERY, encoded))

    calls = []
    model.encode_prompt = lambda *args, **kwargs: calls.append(args)
    predictor(model).predict(QUERY, encoded)
    assert not calls
    with pytest.raises(ValueError, match="attend to the query"):
        encode_pack(small_pack(tiny()), tiny())


def test_a_pack_is_for_its_model_alone():
    pack = small_pack(tiny())
    other = tiny()
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight[0, 0] += 1
    with pytest.raises(PackError, match="made for another model"):
        predictor(other).predict(QUERY, pack)


def test_an_unused_pack_leaves_the_model_as_it_is():
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shown, one = examples(["cell", "nucleus"]), predictor(model)
    first = predictor(model).predict(QUERY, shown)
    one.predict(QUERY, small_pack(model))
    equal(first, one.predict(QUERY, shown))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_pack_brings_its_manner_along():
    model = ColourMatcher()
    pack = small_pack(model, kind="instance", ensemble="spatial")
    one = predictor(model, kind="semantic")
    one.predict(QUERY, pack)
    assert model.calls[-1]["kind"] == "instance" and model.calls[-1]["images"].shape[1] == 1
    one.predict(QUERY, pack, kind="semantic", ensemble="feature")
    assert model.calls[-1]["kind"] == "semantic" and model.calls[-1]["images"].shape[1] == 2
    other = small_pack(model, ["leaf"], "other", kind="semantic", ensemble="spatial")
    with pytest.raises(PackError, match="kind: expected packs that agree"):
        one.predict(QUERY, [pack, other])
    one.predict(QUERY, [pack, other], kind="semantic")


def test_temperature_moves_confidence():
    model = tiny()
    pack = small_pack(model)
    sharp = dataclasses.replace(pack, temperature=10.0)
    one = predictor(model)
    assert one.predict(QUERY, sharp).confidence.mean() > one.predict(QUERY, pack).confidence.mean()
    equal(predictor(model, temperature=10.0).predict(QUERY, pack), one.predict(QUERY, sharp))


def test_many_classes_take_passes():
    model = ColourMatcher(ids_per_pass=2)
    pack = small_pack(model, ["a", "b", "c", "d", "e"])
    assert [len(palette.ids) for palette in pack.palettes] == [1, 2, 2]
    labels = blocks([1, 2, 3, 4, 5], (64, 64), seed=4)
    one = predictor(model)
    found = one.predict(scene(labels), pack)
    assert len(model.calls) == 3
    assert (found.labels == labels).mean() > 0.9


def test_packs_join_by_name():
    model = ColourMatcher()
    first = small_pack(model, ["cell", "nucleus"], "first")
    second = small_pack(model, ["leaf", "cell"], "second")
    a, b = join_by_name([first, second])
    assert a.ids == (1, 2)
    assert b.names == {1: "cell", 3: "leaf"}  # cell has its id; leaf's own, 1, is taken, and so is 2
    (c,) = join_by_name([first], {7: "cell"}, taken=[2])
    assert c.names == {7: "cell", 1: "nucleus"}


def test_packs_that_share_no_class_get_passes_of_their_own():
    model = ColourMatcher()
    cells, leaves = small_pack(model, ["cell"], "cells"), small_pack(model, ["leaf"], "leaves")
    both = small_pack(model, ["cell", "stem"], "both")
    one = predictor(model)
    apart = one.prompt([cells, leaves])
    assert [palette.ids for palette in apart.palettes] == [(1,), (2,)]
    assert apart.names == {1: "cell", 2: "leaf"}
    assert [len(apart.shown_packs(k)) for k in range(2)] == [1, 1]
    linked = one.prompt([cells, both])
    assert [palette.ids for palette in linked.palettes] == [(1, 2)]
    assert share_passes({9}, join_by_name([cells], taken=[9]), 6)[0].ids == (9,)


def test_packs_and_examples_together():
    model = ColourMatcher()
    pack = small_pack(model, ["cell"], "cells")
    own = example([3], names={3: "cell"})
    prompt = predictor(model).prompt([pack, own])
    assert prompt.ids == (3,) and prompt.names == {3: "cell"}
    images, _ = prompt.canvases(0, (32, 32))
    assert images.shape[1] == 3  # two of the pack, and the user's
    other = predictor(model).prompt([pack, example([1])])
    assert other.ids == (1, 2) and other.names == {2: "cell"} and len(other.palettes) == 2


def test_a_merged_pack_does_what_its_packs_do_together():
    model = tiny()
    for names in (["leaf"], ["nucleus", "leaf"]):
        packs = [small_pack(model), small_pack(model, names, "other")]
        together = predictor(model).predict(QUERY, packs)
        merged = merge_packs(packs, "merged")
        equal(together, predictor(model).predict(QUERY, merged))
    learned = dataclasses.replace(packs[1], images=packs[1].pixels().half())
    assert merge_packs([packs[0], learned], "mixed").images.dtype == torch.float16
    with pytest.raises(PackError, match="kind"):
        merge_packs([packs[0], dataclasses.replace(packs[1], kind="instance")], "wrong")


def test_soft_masks_that_are_certain_paint_as_hard_ones():
    model = tiny()
    pack = small_pack(model)
    shares = torch.nn.functional.one_hot(pack.masks.long(), 3).permute(0, 3, 1, 2).half()
    soft = dataclasses.replace(pack, masks=shares)
    assert soft.shown == pack.shown
    hard, mixed = (each.canvases(pack.palettes[0])[1] for each in (pack, soft))
    torch.testing.assert_close(hard, mixed)
    colours = slot_colours(pack.ids, Palette.for_ids([2]))
    assert torch.equal(colours[1], colours[0])  # id 1 is not asked for: black
    half = paint_slots(torch.full((1, 3, 2, 2), 1 / 3), colours)
    torch.testing.assert_close(half[0, :, 0, 0], colours.mean(0))


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "../evil"),
        ("name", ""),
        ("fingerprint", "abc"),
        ("kind", "class"),
        ("ensemble", "mean"),
        ("temperature", float("nan")),
        ("temperature", 0.0),
        ("tile", 0),
        ("palettes", ()),
        ("names", {1: "cell"}),
        ("names", {1: "cell", 2: "cell"}),
        ("names", {1: "cell", 2: "a\x1b[2J"}),
        ("model", "x" * 5000),
        ("made", {"steps": float("inf")}),
        ("made", {"steps": [1]}),
        ("images", torch.zeros(2, 3, 32, 32)),
        ("images", torch.full((2, 3, 32, 32), float("nan")).half()),
        ("images", torch.zeros(2, 3, 32, 24, dtype=torch.uint8)),
        ("masks", torch.full((2, 32, 32), 3, dtype=torch.uint8)),
        ("masks", torch.zeros(2, 2, 32, 32).half()),
    ],
)
def test_what_no_pack_can_hold_is_refused(field, value):
    pack = small_pack(ColourMatcher())
    with pytest.raises(PackError):
        dataclasses.replace(pack, **{field: value})


def test_names_are_needed_where_they_matter():
    model = ColourMatcher()
    assert compile_pack(model, [example([4], SIZE)], "cats").names == {4: "cats"}
    assert compile_pack(model, [example([4, 9], SIZE)], "cats").names == {4: "cats 4", 9: "cats 9"}
    with pytest.raises(PackError, match="different name"):
        compile_pack(model, [example([1, 2], SIZE, names={1: "a", 2: "a"})], "p")
    with pytest.raises(PackError, match="one name"):
        compile_pack(model, [example([1], names={1: "a"}), example([1], names={1: "b"})], "p")
