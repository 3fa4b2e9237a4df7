"""The fast steps of prediction against the plain form, which is what runs with gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model, random_painted

from incontext.model import attention
from incontext.model.compiled import without_compiled
from incontext.model.fast_linear import _PRODUCT, gains_by_products, plain_product
from incontext.model.inference import for_inference
from incontext.model.seggpt import SegGPT

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")

CONFIGS = {
    "attending": TINY,
    "not attending": TINY_CACHED,
    "attending, no positions": dataclasses.replace(TINY, relative_position=False),
    "five heads": dataclasses.replace(TINY, width=40, heads=5),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param])


@pytest.fixture(autouse=True, params=[0, attention._SMALL], ids=["in parts", "whole"])
def small(request, monkeypatch):
    """The bias is put together a few heads at a time, as for large models, or whole, as for small ones."""
    monkeypatch.setattr(attention, "_SMALL", request.param)
    monkeypatch.setattr(attention, "gains_by_products", lambda dtype, device: False)
    with without_compiled():
        yield request.param


@pytest.fixture(params=[1, 200], ids=["row by row", "some rows"])
def product_calls(request, monkeypatch):
    """Shapes of the products that the form made of them was computed by."""
    calls = []

    def spy(left, right, plus=None):
        calls.append((*left.shape, len(right)))
        return plain_product(left, right, plus)

    monkeypatch.setattr(attention, "gains_by_products", lambda dtype, device: True)
    monkeypatch.setattr(attention, "_SMALL", request.param)
    monkeypatch.setattr(attention, "plain_product", spy)
    return calls


@pytest.fixture
def kernel_calls(monkeypatch):
    """Shapes of the masks that the fused form was called with."""
    assert attention._FLASH_CPU is not None, "this torch lacks the kernel; the fused form is never used"
    masks, kernel = [], attention._FLASH_CPU

    def spy(query, key, value, attn_mask=None):
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return kernel(query, key, value, attn_mask=attn_mask)

    monkeypatch.setattr(attention, "_FLASH_CPU", spy)
    return masks


def plain(model: SegGPT, *inputs, **options) -> torch.Tensor:
    with torch.enable_grad():
        return model(*inputs, **options).detach()


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # float32, values around 1: the same sums in another order.
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_fused_equals_plain(model, count, kernel_calls):
    inputs = random_inputs(batch=2, count=count)
    expected = plain(model, *inputs)
    assert not kernel_calls, "gradients need the plain form"
    assert_same(model(*inputs), expected)
    assert kernel_calls


@torch.no_grad()
def test_fused_equals_plain_with_a_partly_painted_query(model, kernel_calls):
    inputs, (target, hidden) = random_inputs(batch=2, count=3), random_painted(batch=2)
    for shown in (inputs, inputs[:1]):
        expected = plain(model, *shown, query_target=target, hidden=hidden)
        assert_same(model(*shown, query_target=target, hidden=hidden), expected)
    assert kernel_calls


@torch.no_grad()
def test_fused_equals_plain_at_another_size(model):
    inputs = random_inputs(batch=1, count=2, size=(24, 48))
    assert_same(model(*inputs), plain(model, *inputs))


@torch.no_grad()
def test_without_the_kernel_the_plain_form_runs(model, monkeypatch):
    inputs = random_inputs(batch=2, count=3)
    fused = model(*inputs)
    monkeypatch.setattr(attention, "_FLASH_CPU", None)
    assert_same(model(*inputs), fused)


@pytest.mark.parametrize("threads", [1, 3])
@torch.no_grad()
def test_no_more_of_the_bias_is_held_than_there_are_threads(threads, kernel_calls, monkeypatch):
    monkeypatch.setattr(attention, "_SMALL", 0)
    model, inputs = random_model(), random_inputs(batch=1, count=2)
    expected, before = plain(model, *inputs), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same(model(*inputs), expected)
    finally:
        torch.set_num_threads(before)
    assert max(shape[1] for shape in kernel_calls) == threads < TINY.heads


@needs_onednn
@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_products_equal_plain(model, count, product_calls):
    for size in ((32, 32), (24, 48)):
        inputs = random_inputs(batch=2, count=count, size=size)
        assert_same(model(*inputs), plain(model, *inputs))
    assert bool(product_calls) == model.config.relative_position


@needs_onednn
@torch.no_grad()
def test_products_equal_the_kernel(product_calls, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    attend = random_model().blocks[0].attn
    query = torch.randn(2, 4, 32, 8, generator=generator)
    key, value = (torch.randn(6, 4, 32, 8, generator=generator) for _ in range(2))  # three sets for each query
    places = ((4, 4), slice(0, 8), slice(0, 8))
    by_products = attend.mix(query, key, value, *places)
    assert product_calls
    monkeypatch.setattr(attention, "gains_by_products", lambda dtype, device: False)
    by_kernel = attend.mix(query, key, value, *places)
    for actual, expected in zip(by_products, by_kernel, strict=True):
        assert_same(actual, expected)
    canvases = torch.stack([attend.mix(query, key[i::3], value[i::3], *places).values for i in range(3)], 1)
    assert_same(by_products.values, canvases.flatten(0, 1))


@needs_onednn
@torch.no_grad()
def test_products_in_bfloat16_round_no_more_than_the_kernel(product_calls, monkeypatch):
    """They keep scores in float32; with sharp attention the kernel's bias, which is rounded, shows."""
    generator = torch.Generator().manual_seed(0)
    attend = random_model().blocks[0].attn
    exact = [torch.randn(1, 4, 32, 8, generator=generator).mul(3).bfloat16().float() for _ in range(3)]
    places = ((4, 4), slice(0, 8), slice(0, 8))
    expected = attend.attend(*exact, *places)
    by_products = attend.attend(*(each.bfloat16() for each in exact), *places)
    monkeypatch.setattr(attention, "gains_by_products", lambda dtype, device: False)
    by_kernel = attend.attend(*(each.bfloat16() for each in exact), *places)
    assert by_products.dtype == torch.bfloat16
    products_off, kernel_off = ((each.float() - expected).abs().mean() for each in (by_products, by_kernel))
    assert 0 < products_off < kernel_off


@needs_onednn
@pytest.mark.parametrize("turned", [False, True])
@torch.no_grad()
def test_a_plain_product_is_one(turned):
    left, right, plus = torch.randn(7, 5), torch.randn(5, 9).T if turned else torch.randn(9, 5), torch.randn(7, 9)
    assert_same(plain_product(left, right), left @ right.T)
    assert_same(plain_product(left, right, plus), left @ right.T + plus)


@pytest.mark.skipif(not gains_by_products(torch.float32, torch.device("cpu")), reason="oneDNN is not the faster here")
@torch.no_grad()
def test_large_models_are_computed_by_products(product_calls, monkeypatch):
    monkeypatch.setattr(attention, "gains_by_products", gains_by_products)
    model, inputs = random_model(), random_inputs(batch=1, count=2)
    assert_same(for_inference(model)(*inputs), plain(model, *inputs))
    assert product_calls


def test_without_the_private_operation_nothing_gains(monkeypatch):
    assert _PRODUCT is None or "binary" in _PRODUCT.overloads(), "this torch lacks it; the products are never used"
    monkeypatch.setattr("incontext.model.fast_linear._PRODUCT", None)
    assert not gains_by_products(torch.float32, torch.device("cpu"))


@torch.no_grad()
def test_merging_equals_attention_to_all_keys():
    generator = torch.Generator().manual_seed(0)
    attend = random_model().blocks[0].attn
    query, key, value = (torch.randn(2, 4, 32, 8, generator=generator) for _ in range(3))
    whole = attend.attend(query, key, value, (4, 4), slice(0, 8), slice(0, 8))
    top, bottom = (slice(0, 16), slice(0, 4)), (slice(16, 32), slice(4, 8))
    parts = [
        attend.mix(query, key[:, :, tokens], value[:, :, tokens], (4, 4), slice(0, 8), rows)
        for tokens, rows in (top, bottom)
    ]
    for one, other in (parts, parts[::-1]):
        assert_same(attention.join_heads(one.mean_with(other)), whole)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["instance", ["instance", "semantic"]])
@torch.no_grad()
def test_a_kept_target_stream_equals_computing_it(count, kind):
    model, (query, images, targets) = random_model(), random_inputs(batch=2, count=count)
    stream = model.encode_targets(images, targets, kind=kind)
    expected = model(query, images, targets, kind=kind)
    assert_same(model(query, images, targets, kind=kind, target_stream=stream), expected)


@torch.no_grad()
def test_one_target_stream_serves_many_queries():
    model, (query, images, targets) = random_model(), random_inputs(batch=3, count=2)
    images, targets = images[:1], targets[:1]
    stream = model.encode_targets(images, targets)
    shown = [each.expand(3, -1, -1, -1, -1) for each in (images, targets)]
    assert_same(model(query, *shown, target_stream=stream), model(query, *shown))


@torch.no_grad()
def test_a_target_stream_is_not_used_where_the_query_is_painted():
    model, inputs, (target, hidden) = random_model(), random_inputs(batch=1, count=2), random_painted(batch=1)
    stream = model.encode_targets(*inputs[1:])
    painted = {"query_target": target, "hidden": hidden}
    assert torch.equal(model(*inputs, **painted, target_stream=stream), model(*inputs, **painted))


@torch.no_grad()
def test_a_target_stream_of_other_examples_is_refused():
    model, (query, images, targets) = random_model(), random_inputs(batch=2, count=2)
    with pytest.raises(ValueError, match="target_stream: expected that of these examples"):
        model(query, images, targets, target_stream=model.encode_targets(images[:, :1], targets[:, :1]))
    with pytest.raises(ValueError, match="target_stream: expected that of these examples"):
        model(query, images, targets, target_stream=model.encode_targets(images, targets, kind="semantic"))


@torch.no_grad()
def test_the_target_stream_in_a_cache_equals_computing_it():
    model, (query, images, targets) = random_model(TINY_CACHED), random_inputs(batch=2, count=3)
    cache = model.encode_prompt(images[:1], targets[:1])
    without = dataclasses.replace(cache, target=None)
    expected = model.forward_cached(query, without)
    assert_same(model.forward_cached(query, cache), expected)
    assert model.encode_prompt(images[:1], targets[:1], keep_target=False).target is None
    target, hidden = random_painted(batch=2)
    painted = {"query_target": target, "hidden": hidden}
    assert torch.equal(model.forward_cached(query, cache, **painted), model.forward_cached(query, without, **painted))
