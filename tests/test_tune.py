"""Tuning: only the prompt learns, the held-out loss falls, runs resume exactly, and what it shows is right."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, blocks, example, scene
from packs import cached_model
from PIL import Image
from predictions import predictor, tiny

from incontext.model.loss import smooth_l1
from incontext.pack import PackError
from incontext.pack.compiling import compile_pack
from incontext.pack.prompt_pack import paint_slots, slot_colours
from incontext.pack.tokens import token_shape
from incontext.palette import Palette
from incontext.training.learned_prompt import LearnedPrompt, frozen, paint
from incontext.training.tune import TuneConfig, tune
from incontext.training.tune_data import Augmentation, TuneData
from incontext.training.tune_score import loss, score
from incontext.types import IGNORE, Example

QUICK = TuneConfig(
    examples=2, steps=12, batch_size=4, evaluate_every=4, patience=0, candidates=3, learning_rate=0.05, held_out=0.3
)
FAST = {"learning_rate": 0.2, "token_learning_rate": 0.2}
NAMES = {1: "cell", 2: "nucleus"}


def images(count=8, ids=(1, 2), size=(40, 48)):
    return [example(ids, size, seed=k, names={id: NAMES.get(id, f"c{id}") for id in ids}) for k in range(count)]


def same_pack(a, b):
    for one, other in ((a.images, b.images), (a.masks, b.masks), (a.tokens, b.tokens)):
        assert one is other is None or torch.equal(one, other)
    assert a.temperature == b.temperature and a.evaluation == b.evaluation


@pytest.mark.parametrize(
    "model, learn",
    [(tiny, "images"), (tiny, "both"), (cached_model, "images"), (cached_model, "both"), (cached_model, "tokens")],
)
def test_only_the_prompt_gets_gradients_and_the_held_out_loss_falls(model, learn):
    model = model()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)  # a user's own choice, which must survive
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pack = tune(model, images(), dataclasses.replace(QUICK, learn=learn, criterion="loss", **FAST))
    assert pack.evaluation["held-out loss, tuned"] < pack.evaluation["held-out loss, real examples"] - 0.02
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pack.masks.dtype == (torch.float16 if learn == "both" else torch.uint8)
    assert (pack.tokens is not None) == (learn == "tokens")
    found = predictor(model).predict(scene(blocks([1, 2], (48, 64))), pack)
    assert found.names == NAMES and found.size == (48, 64)


def test_gradients_reach_what_is_learned_and_nothing_else():
    model = cached_model()
    data = TuneData(images(), "p", (32, 32), None, 0.2, 0)
    start = data.candidates(np.random.default_rng(0), 2)[[0, 1]]
    for learn, learned in (
        ("images", ["images"]),
        ("masks", ["masks"]),
        ("both", ["images", "masks"]),
        ("tokens", ["tokens"]),
    ):
        prompt = LearnedPrompt(start, 2, learn, token_shape=token_shape(model.config))
        with frozen(model):
            shown = prompt.canvases([0, 1], slot_colours((1, 2), Palette.for_ids([1, 2])))
            painting = paint(model, torch.randn(3, 3, 32, 32), *shown, "semantic", "feature", tokens=prompt.tokens)
            painting.square().mean().backward()
        gradients = {key: value.grad for key, value in prompt.named_parameters()}
        assert sorted(key for key, grad in gradients.items() if grad is not None and grad.any()) == learned
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("model, ensemble", [(tiny, "feature"), (cached_model, "spatial")])
def test_recomputing_activations_changes_nothing(model, ensemble):
    model, config = model(), dataclasses.replace(QUICK, steps=3, ensemble=ensemble)
    kept = tune(model, images(), config)
    again = tune(model, images(), dataclasses.replace(config, checkpointing=True))
    torch.testing.assert_close(kept.images.float(), again.images.float(), atol=2e-3, rtol=0)
    assert not model.activation_checkpointing and not model.training


def test_a_run_is_paused_and_belongs_to_its_settings_and_data(tmp_path):
    model, brief = cached_model(), dataclasses.replace(QUICK, steps=4)
    for done in (1, 2):  # each time a step, and out of time
        paused = tune(model, images(), dataclasses.replace(brief, minutes=1e-9), folder=tmp_path)
        assert paused.made["steps done"] == done
    whole = tune(model, images(), brief, folder=tmp_path)
    assert whole.made["steps done"] == 4
    tune(model, images(), brief, folder=tmp_path / "unpaused")
    curves = [(folder / "curve.csv").read_text() for folder in (tmp_path, tmp_path / "unpaused")]
    assert curves[0] == curves[1]  # a pause is no look at what is held out
    same_pack(whole, tune(model, images(), brief, folder=tmp_path))  # done: nothing to do
    with pytest.raises(PackError, match="other settings"):
        tune(model, images(), dataclasses.replace(brief, seed=1), folder=tmp_path)
    with pytest.raises(PackError, match="other settings"):
        tune(model, images(7), brief, folder=tmp_path)


@pytest.mark.parametrize("learn", ["images", "tokens"])
def test_an_interrupted_run_resumes_exactly(tmp_path, monkeypatch, learn):
    model, config = cached_model(), dataclasses.replace(QUICK, learn=learn)
    whole = tune(model, images(), config, folder=tmp_path / "whole")
    draw, calls = TuneData.draw, []

    def interrupt(self, *args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return draw(self, *args)

    monkeypatch.setattr(TuneData, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(model, images(), config, folder=tmp_path / "parts")
    assert all(parameter.requires_grad for parameter in model.parameters())
    monkeypatch.undo()
    same_pack(whole, tune(model, images(), config, folder=tmp_path / "parts"))
    rows = [list(csv.DictReader((tmp_path / run / "curve.csv").open())) for run in ("whole", "parts")]
    assert [row["step"] for row in rows[0]] == ["0", "4", "8", "12"] and rows[0] == rows[1]


def test_a_run_shows_itself(tmp_path):
    tune(cached_model(), images(), dataclasses.replace(QUICK, steps=4), folder=tmp_path)
    for name in ("curve.png", "before-after.jpg"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 5


def test_it_stops_when_nothing_is_gained():
    config = dataclasses.replace(QUICK, steps=1000, learning_rate=0.0, patience=2)
    pack = tune(cached_model(), images(), config)
    assert pack.made["steps done"] == 2 * QUICK.evaluate_every


def test_noise_is_a_start_too():
    model = cached_model()
    pack = tune(model, images(), dataclasses.replace(QUICK, init="noise", steps=4))
    assert pack.images.float().std() > 0.5
    assert pack.made["init"] == "noise"


def test_many_classes_are_learned_pass_by_pass():
    model = cached_model()
    pack = tune(model, images(ids=(1, 2, 3)), dataclasses.replace(QUICK, ids_per_pass=2, steps=6))
    assert [len(palette.ids) for palette in pack.palettes] == [1, 2]
    assert [each.ids for each in predictor(model).prompt(pack).palettes] == [each.ids for each in pack.palettes]


@pytest.mark.parametrize("per_pass, views", [(3, 20), (2, 10), (1, 8)])
def test_where_views_take_many_passes_fewer_are_held_against_the_pack(per_pass, views):
    config = dataclasses.replace(QUICK, ids_per_pass=per_pass, steps=1, held_out=0.5, most_held_out=20)
    pack = tune(cached_model(), images(40, ids=(1, 2, 3)), config)
    assert pack.evaluation["held-out views"] == views


def test_more_passes_than_the_examples_can_show_are_refused():
    """Masks that number objects have hundreds of "classes": a pass that no example shows has no prompt."""
    numbered = [example((1 + k, 20 + k), (40, 48), seed=k) for k in range(8)]
    with pytest.raises(ValueError, match="that show none of the ids"):
        tune(cached_model(), numbered, dataclasses.replace(QUICK, ids_per_pass=1))


@pytest.mark.parametrize("ensemble", ["feature", "spatial"])
@pytest.mark.parametrize("dropout, most", [(0.0, 4), (0.5, 2), (1.0, 1)])
def test_dropout_leaves_examples_out_but_never_all(monkeypatch, ensemble, dropout, most):
    seen = []

    def spy(model, queries, images, *args, **kwargs):
        if torch.is_grad_enabled():
            drawn = kwargs["seen"]
            assert drawn is None or (drawn < images.shape[1]).all() and len(drawn) == len(queries)
            seen.append(images.shape[1] if drawn is None else drawn.shape[1])
        return paint(model, queries, images, *args, **kwargs)

    monkeypatch.setattr("incontext.training.tune.paint", spy)
    config = dataclasses.replace(QUICK, dropout=dropout, examples=4, candidates=5, ensemble=ensemble, steps=4)
    tune(cached_model(), images(), config)
    assert set(seen) == {most}


def test_a_query_sees_the_examples_that_are_drawn_for_it():
    generator = torch.Generator().manual_seed(0)
    queries, shown = (
        torch.randn(3, 3, 32, 32, generator=generator),
        torch.randn(2, 1, 4, 3, 32, 32, generator=generator),
    )
    seen = torch.tensor([[0, 3], [2, 1], [1, 0]])
    manner = ("semantic", "feature")
    model = tiny()
    painted = paint(model, queries, *shown, *manner, seen=seen)
    for k, few in enumerate(seen):
        alone = paint(model, queries[[k]], *shown[:, :, few], *manner)
        torch.testing.assert_close(painted[[k]], alone, atol=1e-4, rtol=0)
    model = cached_model()
    painted, cache = paint(model, queries, *shown, *manner, seen=seen), model.encode_prompt(*shown, kind="semantic")
    for k, few in enumerate(seen):
        part = model.encode_prompt(*shown[:, :, few], kind="semantic")
        part = dataclasses.replace(part, border=cache.border, target=cache.target)  # of all examples, computed once
        torch.testing.assert_close(painted[[k]], model.forward_cached(queries[[k]], part), atol=1e-4, rtol=0)
    everything = torch.arange(4).expand(3, 4)
    torch.testing.assert_close(
        paint(model, queries, *shown, *manner, seen=everything),
        paint(model, queries, *shown, *manner),
        atol=1e-4,
        rtol=0,
    )


def test_the_best_real_examples_are_chosen():
    """Of colour-coded scenes, a matcher of colours does best with examples that show every colour."""
    full = [example([1, 2], (32, 32), seed=k, names=NAMES) for k in range(4)]
    blank = [Example(scene(np.zeros((32, 32), int)), np.zeros((32, 32), np.int32)) for _ in range(4)]
    model = ColourMatcher()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    model.activation_checkpointing = False
    start = _start(model, full + blank)
    assert start.shown(0) == {1, 2}


def _start(model, examples):
    from incontext.training.tune import _Run

    data = TuneData(examples, "p", (32, 32), None, 0.2, 0)
    return _Run(model, data, dataclasses.replace(QUICK, candidates=8, examples=1), "p", "m", None)._choose()


def test_what_is_held_out_is_never_drawn():
    marked = [Example(np.full((32, 32, 3), 10 * k, np.uint8), np.full((32, 32), 1, np.int32)) for k in range(20)]
    data = TuneData(iter(marked), "p", (32, 32), None, 0.25, seed=3)
    assert len(data) == 15 and len(data.held) == 5
    held = {int(image[0, 0, 0]) for image in data.held.images}
    plain = Augmentation(0.5, True, 0.0)
    drawn = data.draw(np.random.default_rng(0), 200, [1], plain).images[:, 0, 0, 0]
    assert held.isdisjoint(drawn.tolist()) and len(set(drawn.tolist())) == 15
    assert data.digest == TuneData(marked, "p", (32, 32), None, 0.25, seed=3).digest
    assert data.digest != TuneData(marked[::-1], "p", (32, 32), None, 0.25, seed=3).digest
    with pytest.raises(ValueError, match="at least two"):
        TuneData(marked[:1], "p", (32, 32), None, 0.25, 0)


def test_views_of_tiles_keep_image_and_mask_together():
    labels = blocks([1, 2, 3], (120, 90), seed=2)
    data = TuneData([Example(scene(labels), labels)] * 4, "p", (32, 32), 32, 0.25, 0)
    assert len(data.held) == 4 * 3  # a tile of 32 in 120 x 90
    views = data.draw(np.random.default_rng(0), 20, [1], Augmentation(0.5, True, 0.0))
    for image, slots in zip(views.images, views.slots, strict=True):
        np.testing.assert_array_equal(image, scene(slots.astype(int)))


def test_the_loss_is_that_of_training():
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    labels[0, :4] = 255
    colours = slot_colours((1, 2), Palette.for_ids([1, 2]))
    painting = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    target = paint_slots(labels.clamp(max=2) * (labels < 255), colours)
    valid = (labels < 255).float()[:, None]
    hidden = torch.ones(2, 4, dtype=torch.bool)
    plain = smooth_l1(painting, target, hidden, beta=0.1, weight=valid)
    torch.testing.assert_close(loss(painting, labels, colours, 0.0, 0.1), plain)
    front, back = (valid[:, 0] * each for each in (labels > 0, labels == 0))
    error = torch.nn.functional.smooth_l1_loss(painting, target, beta=0.1, reduction="none").mean(1)
    # foreground and background of a view weigh the same, views by their valid pixels
    halves = [(error * part).sum((1, 2)) / part.sum((1, 2)) / 2 for part in (front, back)]
    share = valid.sum((1, 2, 3)) / valid.sum()
    torch.testing.assert_close(loss(painting, labels, colours, 1.0, 0.1), (sum(halves) * share).sum())


def test_scores_are_the_predictors():
    """The IoU of held-out views is what the pipeline gives for the same pictures."""
    from incontext.evaluation.metrics import Tally

    model = cached_model()
    model.config = dataclasses.replace(model.config, ids_per_pass=1)
    pack = compile_pack(model, images(2), "p")
    data = TuneData(images(6, size=(32, 32)), "p", (32, 32), None, 0.5, 0)
    held, tally = data.held, Tally()
    for image, slots in zip(held.images, held.slots, strict=True):
        tally.add(predictor(model).predict(image, pack).labels, slots.astype(np.int32), (1, 2))
    assert score(model, pack, held, 0.5, 0.1, 2).iou == pytest.approx(tally.class_mean, abs=1e-6)


def test_ignored_pixels_do_not_count():
    model = cached_model()
    clean = images(4, size=(32, 32))
    rng = np.random.default_rng(0)
    noisy = []
    for each in clean:
        labels = each.labels.copy()
        labels[:16] = IGNORE
        image = each.image.copy()
        noisy.append(Example(image, labels, each.names))
    data = TuneData(noisy, "p", (32, 32), None, 0.5, 0)
    pack = compile_pack(model, clean[:1], "p")
    first = score(model, pack, data.held, 0.5, 0.1, 4)
    data.held.slots[:, :16][data.held.slots[:, :16] != 255] = rng.integers(3)
    assert score(model, pack, data.held, 0.5, 0.1, 4) == first


@pytest.mark.parametrize(
    "field, value", [("init", "zeros"), ("learn", "palette"), ("steps", 0), ("dropout", 1.5), ("held_out", 0.0)]
)
def test_wrong_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TuneConfig(**{field: value})


@pytest.mark.parametrize("learn", ["masks", "tokens"])
def test_noise_that_would_stay_is_refused(learn):
    with pytest.raises(ValueError, match="learn: expected .* stay .noise."):
        TuneConfig(init="noise", learn=learn)


def test_tokens_are_for_models_and_ensembles_that_can_hold_them():
    with pytest.raises(ValueError, match="ensemble"):
        TuneConfig(learn="tokens", ensemble="spatial")
    with pytest.raises(ValueError, match="do not attend to the query"):
        tune(tiny(), images(), dataclasses.replace(QUICK, learn="tokens"))
