"""Training on several processes, one for each GPU, as `torchrun` starts them.

Gradients are summed once per step, by hand: with losses that are weighted by their share of the joint batch, the result
is that of one process with the whole batch, whatever is unevenly spread over the processes; but for stochastic depth,
which each draws for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are; 1 without `torchrun`.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process evaluates and writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over the processes, in one message for each type of numbers.

        Parameters that took no part in a step get a gradient of zero, in one process as in several: the optimiser
        treats "none" and "zero" differently, and what one process lacks another may have.
        """
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_type.setdefault(parameter.dtype, []).append(parameter.grad)
        if self.size == 1:
            return
        for gradients in by_type.values():
            joined = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(joined)
            parts = joined.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """Joins the processes that `torchrun` has started, if it has; leaves them afterwards.

    Args:
        device: where to train. "cuda" becomes this process's own GPU.

    Yields:
        The group and the device of this process.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Group(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()
