"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon): steps that turn matrices, of many matrices at once.

The same as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, which torch has from 2.9 on and which takes the
matrices one by one: on a GPU that is some 30 small kernels for each. Here matrices of one shape go through together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPSILON = 1e-7
_RMS = 0.2  # of a step, at a rate of 1: that of AdamW (arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, as the step of every matrix; scaled so that AdamW's rates suit it."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        """
        Args:
            params: matrices, or groups of them.
            lr: rate.
            weight_decay: share of the rate by which weights shrink, apart from the step.
            momentum: of the mean of the gradients, in Nesterov's form.

        Raises:
            ValueError: if a parameter is no matrix.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"expected matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self) -> None:
        """Takes a step with the parameters that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                self._turn(parameters, group["lr"], group["weight_decay"], group["momentum"])

    def _turn(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        means = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        steps = orthogonal(torch.stack(torch._foreach_lerp(gradients, means, momentum)))
        rate = lr * _RMS * max(steps.shape[1:]) ** 0.5
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, list(steps.to(gradients[0].dtype)), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Brings all singular values near 1, by Newton and Schulz's iteration in bfloat16.

    Args:
        matrices: (n, r, c).

    Returns:
        bfloat16 (n, r, c).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    turned = (matrices.mT if tall else matrices).bfloat16()
    turned = turned / turned.norm(dim=(1, 2), keepdim=True).clamp_min(_EPSILON)
    first, second, third = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = turned @ turned.mT
        turned = torch.baddbmm(turned, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), turned, beta=first)
    return turned.mT if tall else turned
