"""Grown models: the same function, more weights, and all of them learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_models import TINY, random_inputs, random_model

from incontext.cli.main import main
from incontext.model.checkpoint import load_checkpoint, save_checkpoint
from incontext.model.config import PRESETS
from incontext.training.growing import grow, grown_config

CONFIGS = {
    "published": TINY,
    "bundled": dataclasses.replace(TINY, relative_position=False, examples_attend_query=False),
    "merged last": dataclasses.replace(TINY, merge_layer=5, tap_layers=(5,)),
    "merged late": dataclasses.replace(TINY, merge_layer=4, tap_layers=(4, 5)),
}


def paint(model, inputs):
    return model.double()(*(each.double() for each in inputs))


@pytest.mark.parametrize("width, depth", [(48, 6), (32, 9), (40, 8), (64, 16)])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_paints_the_same(name, width, depth):
    model, inputs = random_model(CONFIGS[name]), random_inputs(2, 2)
    grown = grow(model, width=width, depth=depth, generator=torch.Generator().manual_seed(0))
    assert (grown.config.width, grown.config.heads, grown.config.depth) == (width, width // 8, depth)
    expected, found = paint(model, inputs), paint(grown, inputs)
    assert (found - expected).abs().max() < 1e-4 * expected.std()  # the epsilon of layer norms is not scaled


def test_new_weights_learn():
    """One step moves what was silent, so that the rest moves in the next."""
    model = grow(random_model(CONFIGS["bundled"]), width=48, depth=8, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(*random_inputs(2, 1)).square().mean().backward()
        optimiser.step()
    still = {name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()}
    assert still == {"type_token_cls"}  # no query here was of that kind
    for block in model.blocks:
        assert block.attn.qkv.weight.grad[32:48, 32:].any() and block.mlp.fc1.weight.grad[-1].any()


def test_bundled_model_keeps_the_order_of_its_blocks():
    config = grown_config(PRESETS["small"], 256, 12)
    assert (config.width, config.heads, config.depth, config.tap_layers) == (256, 8, 12, (2, 5, 9, 11))


@pytest.mark.parametrize("width, depth", [(24, 6), (32, 5), (36, 6)])
def test_refuses_to_shrink(width, depth):
    with pytest.raises(ValueError, match=f"width of 32 or more in steps of a head's 8, .* got {width} and {depth}"):
        grow(random_model(), width=width, depth=depth)


def test_command(tmp_path, capsys):
    save_checkpoint(random_model(), tmp_path / "a.safetensors")
    assert (
        main(["train", "grow", str(tmp_path / "a.safetensors"), "--depth", "7", "-o", str(tmp_path / "b.safetensors")])
        == 0
    )
    assert "width 32, 4 heads, 7 blocks" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "b.safetensors").config.depth == 7
