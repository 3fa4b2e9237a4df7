"""The loop: it learns, it resumes exactly, and what it writes can be used."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import TINY, random_inputs, random_model
from small_sets import write_sets
from training_runs import BASE, rows, state, write_pack

import incontext as ic
from incontext.cli.main import main
from incontext.model.config import PRESETS
from incontext.training import loop, validation
from incontext.training.config import TrainConfig
from incontext.training.loop import make_model, train
from incontext.training.losses import losses, weigh
from incontext.training.low_rank import add_low_rank, merge
from incontext.training.memory import memory_table, saved_bytes
from incontext.training.optimiser import learning_rate, make_optimiser
from incontext.training.pack import Pack
from incontext.training.pack_writer import pack_folders
from incontext.training.validation import CLICKED, fixed_episodes, paint_episodes, picture, score

RECIPES = Path(loop.__file__).parent / "recipes"
ATTENDS = {"attending": {}, "not attending": {"examples_attend_query": False}}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("sets"))


def same(first, second):
    """Whether two values of a state are the same to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("model", ATTENDS.values(), ids=ATTENDS)
def test_loss_falls(model, pack, tmp_path):
    """On the same episodes, before and after: those of single steps differ too much to compare."""
    config = dataclasses.replace(
        BASE,
        model=model,
        steps=40,
        learning_rate=3e-3,
        evaluate_every=0,
        rendered=0.0,
        segments=0.0,
        stitched=0.0,
        shots={1: 1.0},
    )
    batch = fixed_episodes(Pack(pack), config, PRESETS["tiny"].patch_size)["kinds"]
    fresh, trained = make_model(config).eval(), ic.load_model(train(config, pack, tmp_path))
    with torch.no_grad():
        weights = weigh(batch, config, 0.0)
        before, after = (losses(each, batch, weights, config, 0.0) for each in (fresh, trained))
    assert after["loss"] < 0.9 * before["loss"]  # 0.83 to 0.85 with several seeds


@pytest.fixture(scope="module")
def whole(pack, tmp_path_factory):
    """A run without a stop, scored on the pack itself."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    return train(BASE, pack, out, validation_pack=pack).parent


@pytest.mark.parametrize("killed_in", [2, 5], ids=["before it saved", "after it saved"])
def test_a_killed_run_goes_on_to_the_same_weights(killed_in, pack, whole, tmp_path, monkeypatch):
    step, calls = loop._step, []

    def kill(*args):
        calls.append(args)
        if len(calls) == killed_in:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "_step", kill)
    with pytest.raises(KeyboardInterrupt):
        train(BASE, pack, tmp_path, validation_pack=pack)
    assert (tmp_path / "state.pt").exists() == (killed_in > 3)
    calls.clear()
    monkeypatch.setattr(loop, "_step", step)
    train(BASE, pack, tmp_path, validation_pack=pack)
    assert same(state(tmp_path), state(whole))
    assert same(*(ic.load_model(out / "model.safetensors").state_dict() for out in (tmp_path, whole)))
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(whole)]


def test_a_pause_and_how_often_to_look_change_nothing(pack, whole, tmp_path):
    train(dataclasses.replace(BASE, minutes=1e-9), pack, tmp_path)
    assert state(tmp_path)["step"] == 1
    train(dataclasses.replace(BASE, minutes=1e-9), pack, tmp_path)
    assert state(tmp_path)["step"] == 2
    train(dataclasses.replace(BASE, evaluate_every=0), pack, tmp_path)
    assert same(state(tmp_path), state(whole))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "6"]


def test_muon_and_the_class_loss_resume_exactly(pack, tmp_path):
    config = dataclasses.replace(BASE, optimiser="muon", classes=(0.5, 0.2), steps=4)
    train(config, pack, tmp_path / "whole")
    train(dataclasses.replace(config, minutes=1e-9), pack, tmp_path / "paused")
    assert state(tmp_path / "paused")["step"] == 1
    train(config, pack, tmp_path / "paused")
    assert same(state(tmp_path / "paused"), state(tmp_path / "whole"))
    assert state(tmp_path / "whole")["classifier"]["weight"].abs().max() > 0.02
    start, end = make_model(config).state_dict(), ic.load_model(tmp_path / "whole" / "model.safetensors").state_dict()
    assert start.keys() == end.keys() and not any(torch.equal(start[k], end[k]) for k in start if "mlp" in k)


def test_muon_takes_the_matrices_of_the_blocks():
    model = make_model(BASE)
    adam, muon = make_optimiser(model, dataclasses.replace(BASE, optimiser="muon", layer_decay=0.9)).parts
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert found == {f"blocks.{k}.{part}.weight" for k in range(6) for part in parts}
    rest = [names[id(parameter)] for group in adam.param_groups for parameter in group["params"]]
    assert sorted(rest) == sorted(set(names.values()) - found)
    assert {group["scale"] for group in muon.param_groups} == {0.9**k for k in range(1, 7)}


def test_a_finished_run_stays_as_it_is(pack, whole, monkeypatch):
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    monkeypatch.setattr(loop, "_step", None)
    assert train(BASE, pack, whole, validation_pack=pack) == whole / "model.safetensors"
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_anew(pack, whole, tmp_path):
    train(dataclasses.replace(BASE, steps=1, seed=4), pack, tmp_path)
    train(BASE, pack, tmp_path, resume=False)
    assert same(state(tmp_path), state(whole))


@pytest.mark.parametrize("change", [{"seed": 4}, {"steps": 7}, {"weights": {"red": 0.5}}, {"model": {"heads": 2}}])
def test_another_config_in_the_same_folder(change, pack, whole):
    before = (whole / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run with another config.*another folder to start anew"):
        train(dataclasses.replace(BASE, **change), pack, whole)
    assert (whole / "config.json").read_bytes() == before


def test_another_pack_in_the_same_folder(pack, whole, tmp_path):
    other = pack_folders(write_sets(tmp_path / "sets", 4), tmp_path / "other.pack").path
    with pytest.raises(ValueError, match="holds a run on another training pack; give the same pack"):
        train(BASE, other, whole)
    older = state(whole)
    del older["pack"]
    (tmp_path / "run").mkdir()
    torch.save(older, tmp_path / "run" / "state.pt")
    train(BASE, other, tmp_path / "run")


def test_what_a_run_writes(whole):
    assert {path.name for path in whole.iterdir()} == {
        "config.json",
        "log.csv",
        "model.safetensors",
        "pictures",
        "state.pt",
    }
    assert sorted(path.name for path in (whole / "pictures").iterdir()) == ["0000003.png", "0000006.png"]
    found = rows(whole)
    assert set(found[0]) == {"step", "minutes", "loss", "matching", "kinds", "red", CLICKED, "mean"}
    assert [row["step"] for row in found] == ["3", "6"]
    for row in found:
        scores = [float(row[name]) for name in ("kinds", "red")]
        assert all(0 <= score <= 1 for score in scores)
        assert float(row["mean"]) == pytest.approx(sum(scores) / 2, abs=1e-4)
        assert float(row["loss"]) > 0
    assert any(float(row["matching"] or 0) > 0 for row in found)
    assert TrainConfig(**json.loads((whole / "config.json").read_text())) == BASE


def test_the_averaged_weights_are_saved_and_load_everywhere(whole):
    model = ic.load_model(whole / "model.safetensors")
    assert model.config == PRESETS["tiny"] and not model.training
    saved = state(whole)
    assert same(dict(model.state_dict()), dict(saved["average"]))
    assert not same(dict(saved["average"]), dict(saved["model"]))
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 50, 3), np.uint8)
    example = ic.Example(image, (image[..., 0] > 128).astype(np.int32))
    assert ic.Predictor(model, device="cpu").predict(image, [example]).labels.shape == (40, 50)


def test_fine_tuning_starts_from_its_checkpoint(pack, whole, tmp_path):
    start = whole / "model.safetensors"
    config = dataclasses.replace(BASE, init=str(start), steps=1, learning_rate=0.0, ema=0.0)
    train(config, pack, tmp_path)
    assert same(ic.load_model(tmp_path / "model.safetensors").state_dict(), ic.load_model(start).state_dict())


def test_bf16(pack, tmp_path):
    train(dataclasses.replace(BASE, precision="bf16", steps=2), pack, tmp_path)
    assert all(weight.dtype == torch.float32 for weight in state(tmp_path)["model"].values())
    assert np.isfinite(float(rows(tmp_path)[-1]["loss"]))


def test_a_gradient_that_is_too_large_is_clipped(pack, tmp_path, monkeypatch):
    norms, update = [], torch.optim.AdamW.step

    def step(optimiser, *args):
        gradients = [
            p.grad.flatten() for group in optimiser.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(torch.cat(gradients).norm().item())
        return update(optimiser, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(dataclasses.replace(BASE, steps=2, clip=0.01), pack, tmp_path)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_learning_rate():
    config = dataclasses.replace(BASE, steps=100, warmup=10, decay=0.4, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10:61] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert all(later < sooner for sooner, later in zip(rates[60:], rates[61:], strict=False))
    assert rates[99] < 0.01


def test_what_decays():
    model = make_model(BASE)
    decayed, kept = make_optimiser(model, BASE).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (BASE.weight_decay, 0.0)
    found = {names[id(parameter)] for parameter in decayed["params"]}
    assert len(found) + len(kept["params"]) == len(names)
    assert "blocks.0.attn.qkv.weight" in found and "patch_embed.proj.weight" in found
    for name in found:
        assert name.endswith("weight") and not any(word in name for word in ("norm", "token", "pos"))


def test_validation_episodes_are_fixed_and_scored(pack):
    """Sets without classes that images share have none."""
    episodes = fixed_episodes(Pack(pack), BASE, PRESETS["tiny"].patch_size, count=4)
    assert list(episodes) == ["kinds", "red", CLICKED]
    again = fixed_episodes(Pack(pack), BASE, PRESETS["tiny"].patch_size, count=4)
    assert all(same(vars(episodes[name]), vars(again[name])) for name in episodes)
    assert episodes[CLICKED].example_images.shape[1] == 0 and not episodes[CLICKED].hidden.all()
    right = {name: batch.target for name, batch in episodes.items()}
    assert score(right, episodes) == {"kinds": 1.0, "red": 1.0, CLICKED: 1.0, "mean": 1.0}
    black = {name: batch.colours[:, 0, :, None, None].expand_as(batch.target) for name, batch in episodes.items()}
    assert set(score(black, episodes).values()) == {0.0}
    full = {name: batch.colours[:, 1, :, None, None].expand_as(batch.target) for name, batch in episodes.items()}
    for name, found in score(full, episodes).items():
        if name in ("kinds", "red"):
            batch, valid = episodes[name], episodes[name].labels != 255
            share = ((batch.labels > 0) & valid).sum((1, 2)) / valid.sum((1, 2))
            assert found == pytest.approx(share.mean().item())
    assert score({}, {}) == {} and picture({}, {}) is None


def test_pictures_show_what_was_scored(pack):
    episodes = fixed_episodes(Pack(pack), BASE, PRESETS["tiny"].patch_size, count=2)
    model = random_model()
    paintings = paint_episodes(model, episodes, torch.device("cpu"))
    batch = episodes["red"]
    alone = model(batch.query[1:], batch.example_images[1:], batch.example_targets[1:], kind="semantic")
    torch.testing.assert_close(paintings["red"][1:], alone, atol=2e-4, rtol=1e-4)
    image = picture(paintings, episodes)
    assert image.shape == (6 * 36, 5 * 36, 3)
    assert np.array_equal(image[72:104, 144:176], validation._bytes(batch.target[0]))  # row 2, last cell


@pytest.mark.parametrize("trainable", ["head", "low-rank"])
def test_fine_tuning_a_part(trainable, pack, whole, tmp_path):
    start = whole / "model.safetensors"
    config = dataclasses.replace(BASE, init=str(start), steps=3, ema=0.0, trainable=trainable, rank=2)
    train(dataclasses.replace(config, minutes=1e-9), pack, tmp_path)
    train(config, pack, tmp_path)  # resumes
    before, after = (ic.load_model(path).state_dict() for path in (start, tmp_path / "model.safetensors"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if trainable == "head":
        assert moved and all(name.startswith("decoder_") for name in moved)
    else:
        parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        assert moved == {f"blocks.{k}.{part}.weight" for k in range(6) for part in parts}
        assert (
            torch.linalg.matrix_rank(after["blocks.1.mlp.fc1.weight"] - before["blocks.1.mlp.fc1.weight"], atol=1e-5)
            <= 2
        )


def test_merged_low_rank_weights_compute_the_same():
    model = random_model()
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs = random_inputs(2, 2)
    before = model(*inputs)
    add_low_rank(model, 3, torch.Generator().manual_seed(0))
    assert torch.equal(model(*inputs), before)  # at first they add nothing
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.up.normal_(0, 0.1), block.mlp.fc2.up.normal_(0, 0.1)
    merged = merge(model)
    assert merged.state_dict().keys() == plain.keys() and merge(merged) is merged
    changed = model(*inputs)
    assert (changed - before).abs().max() > 0.1 and len(learning) > 0
    torch.testing.assert_close(merged(*inputs), changed, atol=1e-3, rtol=1e-3)


def test_lower_layers_learn_more_slowly():
    config = dataclasses.replace(BASE, layer_decay=0.5)
    model = make_model(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: g["scale"] for g in make_optimiser(model, config).param_groups for p in g["params"]}
    assert len(scales) == len(names)
    assert scales["decoder_embed.weight"] == scales["norm.bias"] == 1.0
    assert [scales[f"blocks.{k}.mlp.fc1.weight"] for k in range(6)] == [0.5 ** (6 - k) for k in range(6)]
    assert scales["patch_embed.proj.weight"] == scales["mask_token"] == scales["pos_embed"] == 0.5**7


def test_memory_estimates_count_what_autograd_keeps():
    """Against a real pass: parameters and moments exactly; activations but for the attention's own buffers."""
    needs = {(n.trainable, n.checkpointing): n for n in memory_table(PRESETS["tiny"], batch=2, shots=2, rank=2)}
    model = make_model(BASE).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    whole = needs["all", False]
    assert (whole.weights, whole.learning) == (8 * count, 12 * count)
    real = saved_bytes(model, lambda: model(*random_inputs(2, 2)))
    assert 0.7 * real < whole.activations < 1.5 * real
    assert needs["all", True].activations < whole.activations
    assert needs["low-rank", False].learning < needs["head", False].learning < whole.learning
    assert needs["head", False].activations < 0.5 * whole.activations


def test_tensorboard(pack, tmp_path):
    pytest.importorskip("tensorboard")
    train(dataclasses.replace(BASE, steps=1), pack, tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp16"}, r"precision must be one of \('fp32', 'bf16'\), got 'fp16'"),
        ({"trainable": "head"}, "fine-tunes a checkpoint"),
        ({"layer_decay": 0.0}, r"layer_decay must lie in \(0, 1\]"),
        ({"views": 1.5}, "views is a share of the episodes"),
        ({"steps": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"shots": {-1: 1.0}}, "shots must map"),
        ({"shots": {}}, "shots must map"),
        ({"preset": "huge"}, "preset must be one of .*'tiny'.*got 'huge'"),
        ({"micro_batch": -1}, "micro_batch must be 0 or more"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more"),
        ({"learning_rate": math.nan}, "learning_rate must be 0 or more"),
        ({"evaluate_every": -5}, "evaluate_every must be 0 or more"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"decay": 2.0}, r"decay must lie in \[0, 1\]"),
        ({"balance": (0.0, 1.5)}, r"balance takes two numbers in \[0, 1.0\]"),
        ({"matching": (1.0,)}, "matching takes two numbers"),
        ({"size": (96,)}, "size takes two numbers"),
        ({"weights": {"red": -1.0}}, "weights of sets must be 0 or more"),
        ({"model": {"loss_beta": 0.1}}, "loss_beta has no part in training; give beta"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **fields)


def test_a_size_that_is_no_multiple_of_the_patch(pack, tmp_path):
    with pytest.raises(ValueError, match="multiple of the patch size 8"):
        train(dataclasses.replace(BASE, size=(32, 36)), pack, tmp_path)


def test_command(pack, tmp_path, capsys):
    config, out = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps({"preset": "tiny", "size": [32, 32], "steps": 9, "batch_size": 2, "warmup": 1}))
    command = ["train", "run", str(pack), "-o", str(out), "--config", str(config), "--device", "cpu", "--steps", "2"]
    assert main([*command, "--validation", str(pack)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "model.safetensors")
    assert ic.load_model(out / "model.safetensors").config == PRESETS["tiny"]
    assert [row["step"] for row in rows(out)] == ["2"]  # the flag wins
    assert main([*command, "--seed", "5"]) == 2
    assert "another config" in capsys.readouterr().err
    assert main([*command, "--weights", "red=2", "blue=3"]) == 2
    assert f"--weights: unknown sets ['blue']; {pack} holds ['bare'" in capsys.readouterr().err
    config.write_text(json.dumps({"stepps": 9}))
    assert main(command) == 2
    assert "unknown fields ['stepps']" in capsys.readouterr().err
    assert main([*command, "--config", "small-65"]) == 2
    recipes = ["grown-128", "small-128", "small-128-further", "small-64", "small-96", "small-96-clicks"]
    recipes += ["small-96-further", "small-96-muon", "vit-large-low-rank"]
    assert f"one of the recipes {recipes}" in capsys.readouterr().err
    assert main(["train", "run", str(config), "-o", str(tmp_path / "other"), "--device", "cpu"]) == 2
    assert "expected a pack" in capsys.readouterr().err


def test_init_takes_other_settings_but_no_other_weights(tmp_path):
    path = tmp_path / "start.safetensors"
    ic.save_checkpoint(ic.SegGPT(PRESETS["small"]), path)
    assert make_model(TrainConfig(init=str(path), model={"image_size": [128, 128]})).config.image_size == (
        128,
        128,
    )
    with pytest.raises(ValueError, match="do not fit their config"):
        make_model(TrainConfig(init=str(path), model={"width": 96}))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_recipes_are_configs(recipe):
    config = TrainConfig(**json.loads(recipe.read_text()))
    assert sum((config.views, config.pasted, config.rendered, config.frames, config.segments)) < 1


def test_memory_command(capsys):
    assert main(["train", "memory", "--preset", "tiny"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 9
    assert main(["train", "memory", "--preset", "none"]) == 2


def test_the_average_of_models(tmp_path, capsys):
    paths, models = [], [random_model(TINY), random_model(dataclasses.replace(TINY, stochastic_depth=0.1), seed=7)]
    for number, model in enumerate(models):
        paths.append(str(tmp_path / f"{number}.safetensors"))
        ic.save_checkpoint(model, paths[-1])
    out = tmp_path / "mean.safetensors"
    assert main(["train", "average", *paths, "-o", str(out)]) == 0
    mean = ic.load_model(out)
    assert mean.config == models[1].config
    for name, tensor in mean.state_dict().items():
        expected = (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2
        assert torch.allclose(tensor, expected), name
    assert not torch.equal(mean.mask_token, models[1].mask_token)

    assert main(["train", "average", paths[0], "-o", str(out)]) == 2
    assert "two models or more" in capsys.readouterr().err
    ic.save_checkpoint(random_model(dataclasses.replace(TINY, width=48, heads=2)), paths[0])
    assert main(["train", "average", *paths, "-o", str(out)]) == 2
    assert "one architecture" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_learns_what_a_cpu_does(workers, pack, tmp_path):
    config = dataclasses.replace(BASE, optimiser="muon", classes=(0.5, 0.2), echoes=2, model={"stochastic_depth": 0.0})
    losses = {}
    for device in ("cpu", "cuda"):
        train(config, pack, tmp_path / device, device=device, workers=workers)
        losses[device] = [float(row["loss"]) for row in rows(tmp_path / device)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)
