"""Muon: what it does to matrices, and that it is torch's, where torch has one."""

from __future__ import annotations

import pytest
import torch

from incontext.training.muon import Muon, orthogonal

SHAPES = [(24, 8), (8, 8), (8, 24), (24, 8), (8, 8)]


def make_parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters, seed):
    for parameter, gradient in zip(parameters, make_parameters(seed), strict=True):
        parameter.grad = gradient.detach()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_singular_values_come_near_one(shape):
    """Its coefficients bring them between 0.7 and 1.2, the sooner the larger they were (Jordan 2024)."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonal(matrices).float())
    assert 0.2 < found.min() and found.max() < 1.3 and 0.8 < found.median() < 1.1
    for one, together in zip(matrices, orthogonal(matrices), strict=True):
        torch.testing.assert_close(orthogonal(one[None])[0], together, atol=0.02, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has one from 2.9 on")
def test_equals_that_of_torch():
    ours, theirs = make_parameters(), make_parameters()
    optimisers = (
        Muon(ours, lr=0.1, weight_decay=0.05),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for seed in range(1, 4):
        for parameters, optimiser in zip((ours, theirs), optimisers, strict=True):
            set_gradients(parameters, seed)
            optimiser.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_parameters_without_a_gradient_stay():
    parameters = make_parameters()
    before = parameters[1].detach().clone()
    set_gradients(parameters, 1)
    parameters[1].grad = None
    Muon(parameters, lr=0.1).step()
    assert torch.equal(parameters[1], before) and not torch.equal(parameters[4], before)


def test_takes_matrices_alone():
    with pytest.raises(ValueError, match=r"expected matrices, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
