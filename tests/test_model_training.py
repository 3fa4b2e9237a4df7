"""Training: gradients, activation checkpointing, stochastic depth, and the loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model, random_painted

from incontext.canvas import hidden_half, patches_to_pixels
from incontext.model.loss import smooth_l1

CONFIGS = {"attending": TINY, "not attending": TINY_CACHED}
EVERY_STEP_DROPS = dataclasses.replace(TINY, stochastic_depth=0.9)


@pytest.fixture(params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param])


def gradients(model, **options):
    query, images, targets = random_inputs(batch=2, count=2)
    painted, hidden = random_painted(batch=2)
    painting = model(query, images, targets, query_target=painted, hidden=hidden, **options)
    model.zero_grad()
    smooth_l1(painting, torch.zeros_like(painting), hidden).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_reach_all_parameters_in_use(model):
    found = gradients(model, kind=["instance", "semantic"])
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    assert not found["pos_embed"][:, 0].any()  # the class token of pre-training has no place on the canvas


@pytest.mark.parametrize(("kind", "unused"), [("instance", "type_token_cls"), ("semantic", "type_token_ins")])
def test_the_other_kinds_token_gets_no_gradient(model, kind, unused):
    found = gradients(model, kind=kind)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == [unused]


def test_activation_checkpointing_gives_the_same_gradients(model):
    model.train()  # with stochastic depth: the recomputed blocks must drop what the first pass dropped
    found = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        torch.manual_seed(0)
        found.append(gradients(model, kind=["instance", "semantic"]))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5)


def test_gradients_flow_into_a_cached_prompt():
    """Tuning a prompt with the model frozen."""
    model = random_model(TINY_CACHED).requires_grad_(False)
    query, images, targets = random_inputs(batch=2, count=2)
    images.requires_grad_()
    targets.requires_grad_()
    model.forward_cached(query, model.encode_prompt(images, targets)).square().mean().backward()
    for prompt in (images, targets):
        assert (prompt.grad.flatten(2).abs().amax(-1) > 0).all()  # every example of every prompt


def test_stochastic_depth_acts_in_training_alone():
    model, plain = random_model(EVERY_STEP_DROPS), random_model(TINY)
    arguments = random_inputs(batch=4, count=2)
    with torch.no_grad():
        assert torch.equal(model(*arguments), plain(*arguments))
        model.train()
        torch.manual_seed(0)
        first, second = model(*arguments), model(*arguments)
        torch.manual_seed(0)
        again = model(*arguments)
    assert torch.equal(first, again)
    assert (first - second).abs().mean() > 0.01


def test_stochastic_depth_grows_from_none_to_the_configs():
    drops = [block.drop for block in random_model(TINY).blocks]
    assert drops == pytest.approx(torch.linspace(0, TINY.stochastic_depth, TINY.depth).tolist())


def test_stochastic_depth_keeps_the_mean():
    """A branch is dropped or scaled up so that its expectation stays; whole rows at a time."""
    block = random_model(EVERY_STEP_DROPS).blocks[-1].train()
    torch.manual_seed(0)
    keep = block._survival(torch.empty(20000, 2, 3))
    assert keep.shape == (20000,)
    assert keep.unique().tolist() == pytest.approx([0.0, 10.0])
    assert keep.mean().item() == pytest.approx(1.0, abs=0.1)  # standard error 0.02
    assert random_model(TINY).blocks[0].train()._survival(torch.empty(2, 2, 3)) is None


def paintings(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    painting, target = (torch.randn(2, 3, 32, 32, generator=generator) for _ in range(2))
    _, hidden = random_painted(batch=2)
    return painting.requires_grad_(), target, hidden


def test_loss_is_the_mean_over_hidden_pixels():
    painting, target, hidden = paintings()
    pixels = patches_to_pixels(hidden, TINY.grid, TINY.patch_size)
    difference = (painting - target).movedim(1, -1)[pixels].abs()
    expected = torch.where(difference < 0.01, difference.square() / 0.02, difference - 0.005).mean()
    torch.testing.assert_close(smooth_l1(painting, target, hidden), expected)


def test_loss_ignores_visible_patches():
    painting, target, hidden = paintings()
    pixels = patches_to_pixels(hidden, TINY.grid, TINY.patch_size)[:, None]
    loss = smooth_l1(painting, target, hidden)
    loss.backward()
    assert not painting.grad[~pixels.expand_as(painting)].any()
    assert painting.grad[pixels.expand_as(painting)].all()
    assert torch.equal(smooth_l1(painting, torch.where(pixels, target, 7.0), hidden), loss)


def test_loss_weighs_pixels():
    painting, target, hidden = paintings()
    everything = hidden_half(2, TINY.grid)
    weight = torch.zeros(2, 1, 32, 32)
    weight[:, :, :16] = 1.0
    upper = smooth_l1(painting[:, :, :16], target[:, :, :16], everything[:, :8])
    lower = smooth_l1(painting[:, :, 16:], target[:, :, 16:], everything[:, :8])
    torch.testing.assert_close(smooth_l1(painting, target, everything, weight=weight), upper)
    torch.testing.assert_close(
        smooth_l1(painting, target, everything, weight=3 * weight + (1 - weight)), (3 * upper + lower) / 4
    )
    loss = smooth_l1(painting, torch.where(weight > 0, target, 7.0), everything, weight=weight)
    torch.testing.assert_close(loss, upper)


@pytest.mark.parametrize("case", ["nothing hidden", "nothing valid", "no overlap"])
def test_loss_without_a_pixel_is_zero(case):
    painting, target, _ = paintings()
    hidden = hidden_half(2, TINY.grid)
    weight = torch.zeros(2, 1, 32, 32) if case == "nothing valid" else torch.ones(2, 1, 32, 32)
    if case == "nothing hidden":
        hidden = ~hidden
    if case == "no overlap":
        hidden[:, 8:] = False
        weight[:, :, :16] = 0.0
    loss = smooth_l1(painting, target, hidden, weight=weight)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(painting.grad, torch.zeros_like(painting))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_paintings(dtype):
    """A float16 sum over this many pixels would overflow."""
    painting, target = torch.zeros(8, 3, 160, 160, dtype=dtype), torch.ones(8, 3, 160, 160)
    loss = smooth_l1(painting, target, torch.ones(8, 400, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.995)
