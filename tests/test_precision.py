"""Precision and packing for prediction: close to float32 where they round, equal to it where they do not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model
from torch import nn

from incontext.model import fast_linear
from incontext.model.checkpoint import fingerprint
from incontext.model.fast_linear import FastLinear
from incontext.model.inference import for_inference, pick_precision, with_prompt_caching
from incontext.predictor import Predictor

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(scope="module", params=[TINY, TINY_CACHED], ids=["attending", "not attending"])
def model(request):
    return random_model(request.param)


@needs_onednn
@pytest.mark.parametrize("gelu", [False, True])
@torch.no_grad()
def test_packed_equals_plain(gelu):
    linear = nn.Linear(96, 200)
    tokens = torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(0))
    packed, plain = (FastLinear(linear.weight.detach(), linear.bias.detach(), each, gelu) for each in (True, False))
    expected = nn.functional.gelu(linear(tokens)) if gelu else linear(tokens)
    torch.testing.assert_close(packed(tokens), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain(tokens), expected, atol=1e-5, rtol=0)
    assert torch.equal(packed.dense_weight(), linear.weight)


@needs_onednn
@torch.no_grad()
def test_a_packed_model_equals_the_plain_one(model):
    inputs = random_inputs(batch=2, count=3)
    torch.testing.assert_close(for_inference(model, packed=True)(*inputs), model(*inputs), atol=1e-5, rtol=0)


@needs_onednn
def test_packed_weights_can_be_saved_copied_and_differentiated(model):
    packed = for_inference(model, packed=True)
    state, expected = packed.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    query, images, targets = random_inputs(batch=1, count=1)
    gradients = []
    for each in (model, copy.deepcopy(packed)):
        leaf = images.clone().requires_grad_()
        each(query, leaf, targets).square().mean().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=0)


@needs_onednn
@torch.no_grad()
def test_kept_positions_are_those_of_the_size(model):
    packed = for_inference(model, packed=True)
    for size in ((32, 32), (24, 48), (24, 48), (32, 32)):
        inputs = random_inputs(batch=1, count=2, size=size)
        torch.testing.assert_close(packed(*inputs), model(*inputs), atol=1e-5, rtol=0)
    assert not model.keeps_positions and with_prompt_caching(packed).keeps_positions


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_half_precision_is_closer_with_a_float32_residual_stream(model, precision):
    inputs = random_inputs(batch=2, count=2)
    exact = model(*inputs)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    ours = for_inference(model, precision)(*inputs)
    cast = copy.deepcopy(model).to(dtype)(*(each.to(dtype) for each in inputs)).float()
    assert ours.dtype == torch.float32
    ours_off, cast_off = ((each - exact).abs().mean().item() for each in (ours, cast))
    # Paintings vary around 1; a half keeps 8 (bf16) or 11 bits, over six blocks of random weights.
    assert 0 < ours_off < cast_off
    assert ours_off < {"bf16": 0.03, "fp16": 0.004}[precision]
    binary = ((ours > 0) == (exact > 0)).float().mean().item()
    assert binary > 0.98


@torch.no_grad()
def test_half_precision_serves_from_a_cache():
    model = random_model(TINY_CACHED)
    half = for_inference(model, "bf16")
    query, images, targets = random_inputs(batch=1, count=3)
    cache = half.encode_prompt(images, targets)
    assert cache.layers[0].key.dtype == torch.bfloat16
    torch.testing.assert_close(half.forward_cached(query, cache), half(query, images, targets), atol=1e-5, rtol=0)
    # A cache that was encoded elsewhere, at another precision, serves too.
    exact = model.encode_prompt(images, targets)
    assert (half.forward_cached(query, exact) - half.forward_cached(query, cache)).abs().mean() < 0.05


def test_the_given_model_is_not_changed(model):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    half = for_inference(model, "bf16")
    assert half is not model and half.norm.weight is model.norm.weight
    assert model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@torch.no_grad()
def test_fp32_without_packing_is_the_model_itself(model):
    assert for_inference(model, "fp32", packed=False) is model


def test_auto_is_exact_where_half_precision_is_slow(monkeypatch):
    cpu = torch.device("cpu")
    for supported, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported, raising=False
        )
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert pick_precision("auto", cpu) == expected
    assert pick_precision("fp16", cpu) == "fp16"
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(ValueError, match="precision: expected one of"):
        pick_precision("fp8", cpu)


def test_without_onednn_nothing_is_packed(monkeypatch, model):
    monkeypatch.setattr(fast_linear, "_PACK", None)
    assert for_inference(model, "fp32") is model


@torch.no_grad()
def test_caching_by_approximation_is_another_model_with_the_same_weights():
    model = random_model(TINY)
    cached = with_prompt_caching(model)
    query, images, targets = random_inputs(batch=1, count=2)
    assert cached.pos_embed is model.pos_embed
    assert model.config.examples_attend_query and not cached.config.examples_attend_query
    served = cached.forward_cached(query, cached.encode_prompt(images, targets))
    torch.testing.assert_close(served, random_model(TINY_CACHED)(query, images, targets), atol=1e-5, rtol=0)
    assert np.abs((served - model(query, images, targets)).numpy()).mean() > 0.01


def test_predictors_in_half_precision_are_varied_without_another_fingerprint():
    """The rounded weights would have one of their own, and refuse the model's packs."""
    one = Predictor(random_model(TINY), device="cpu", precision="fp16")
    other = one.varied(seed=3)
    assert other.model is one.model and other.fingerprint == one.fingerprint == fingerprint(random_model(TINY))
