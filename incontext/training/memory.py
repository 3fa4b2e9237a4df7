"""How much memory each way of fine-tuning takes, from shapes alone: nothing is computed, and nothing large allocated.

Weights, gradients, moments and averages are counted. Activations are those that autograd keeps in a forward pass on
PyTorch's "meta" device, whose tensors have shapes and no values; there attention keeps its whole matrix in fp32, of
which fused kernels keep less. What is left out is what a device allocates for a moment inside an operation, and its own
libraries: add a tenth, and about a gigabyte on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from incontext.model.config import SegGPTConfig
from incontext.model.seggpt import SegGPT
from incontext.training.config import TRAINABLE, TrainConfig
from incontext.training.optimiser import choose_trainable


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that training takes.

    Attributes:
        trainable, checkpointing: as in `TrainConfig`.
        weights: of the model and its average, in fp32.
        learning: gradients and AdamW's two moments, in fp32.
        activations: kept for the backward pass of one micro batch; under autocast with the weights' 16-bit copies.
    """

    trainable: str
    checkpointing: bool
    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.learning + self.activations


def memory_table(
    config: SegGPTConfig, *, batch: int = 1, shots: int = 1, rank: int = 8, dtype: torch.dtype = torch.float32
) -> list[MemoryNeed]:
    """Estimates the memory of every way of fine-tuning a model at its own input size.

    Args:
        config: the architecture.
        batch: episodes that go through the model at once (`micro_batch`).
        shots: examples of each, 1 or more.
        rank: of low-rank additions.
        dtype: of the activations; bfloat16 under autocast.

    Returns:
        One need for each of `TRAINABLE`, with and without checkpointing.
    """
    needs = []
    for trainable in TRAINABLE:
        with torch.device("meta"):
            model = SegGPT(config)
        choose_trainable(model, TrainConfig(init="-", trainable=trainable, rank=rank))
        weights = sum(parameter.numel() for parameter in model.parameters())
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        model = model.to(dtype)
        casts = weights * dtype.itemsize if dtype != torch.float32 else 0  # autocast keeps a copy of each weight
        kept = _kept(model, batch, shots, dtype)
        for checkpointing in (False, True):
            size = min(kept, _kept_checkpointed(model, batch, shots, dtype)) if checkpointing else kept
            needs.append(MemoryNeed(trainable, checkpointing, 8 * weights, 12 * learning, size + casts))
    return needs


def saved_bytes(model: nn.Module, run) -> int:
    """Returns the bytes of the distinct tensors, but for the model's own, that autograd keeps while `run` runs."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # holds it, so that its address is not given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def _kept(model: SegGPT, batch: int, shots: int, dtype: torch.dtype) -> int:
    size = model.config.image_size
    query = torch.empty(batch, 3, *size, device="meta", dtype=dtype)
    examples = torch.empty(batch, shots, 3, *size, device="meta", dtype=dtype)
    return saved_bytes(model, lambda: model(query, examples, examples))


def _kept_checkpointed(model: SegGPT, batch: int, shots: int, dtype: torch.dtype) -> int:
    """What enters the blocks, all that the largest block keeps while it is computed anew, and the head's share."""
    config, (h, w) = model.config, model.config.grid
    tokens = batch * (1 + shots) * h * w * config.width * dtype.itemsize
    rows = 2 * (config.merge_layer + 1) + config.depth - config.merge_layer - 1  # two streams until they merge
    wide, block = 2 * batch, model.blocks[0]
    query = torch.empty(wide, h * w, config.width, device="meta", dtype=dtype).requires_grad_()
    examples = torch.empty(wide, shots, h * w, config.width, device="meta", dtype=dtype).requires_grad_()
    largest = saved_bytes(block, lambda: block(query, examples, (h, w)))
    taps = torch.empty(batch, h * w, len(config.tap_layers) * config.width, device="meta", dtype=dtype)
    border = torch.empty(batch, w, len(config.tap_layers) * config.width, device="meta", dtype=dtype)
    head = saved_bytes(model, lambda: model._decode(taps, border, (h, w)))
    return rows * tokens + largest + head
