"""Two helps for a small model that starts from nothing: a start in which attention is similarity, and a matching loss.

In-context painting needs attention from a patch of the query to patches of the example that show the same thing. Left
alone, that takes a small model long to find; both helps point at it directly, and neither changes the architecture.
"""

from __future__ import annotations

import math
from types import TracebackType

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch


@torch.no_grad()
def start_as_similarity(model: SegGPT, generator: torch.Generator | None = None) -> None:
    """Draws fresh weights for training from nothing.

    Linear layers start as in MAE (Xavier uniform); every block's key weights equal its query weights, so attention
    compares; both halves of the canvas start from the same sine-cosine positions, so that place compares, too.

    Args:
        model: changed in place.
        generator: source of randomness.
    """
    model.reset_parameters(generator)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
    nn.init.xavier_uniform_(model.patch_embed.proj.weight.view(model.config.width, -1), generator=generator)
    for block in model.blocks:
        query, key, _ = block.attn.qkv.weight.chunk(3)
        key.copy_(query)
    rows, columns = model.config.pretrain_grid
    half = rows // 2
    y = (torch.arange(rows) % half).float() / half if half else torch.zeros(rows)
    x = torch.arange(columns).float() / columns
    quarter = model.config.width // 4
    frequencies = math.pi * torch.logspace(0, math.log10(max(half, columns, 2)), quarter)
    waves = [f(axis[:, None] * frequencies) for axis in (y, x) for f in (torch.sin, torch.cos)]
    table = torch.zeros(rows, columns, model.config.width)
    table[..., :quarter], table[..., quarter : 2 * quarter] = waves[0][:, None], waves[1][:, None]
    table[..., 2 * quarter : 3 * quarter], table[..., 3 * quarter : 4 * quarter] = waves[2], waves[3]
    model.pos_embed[0, 1:] = 0.3 * rearrange(table, "h w c -> (h w) c")


class MatchingLoss:
    """Asks that one layer's attention to the examples, alone, would already paint the query's patches roughly right.

    Listens to the projections of a block (the first after the streams merge) while it is a context:

        with MatchingLoss(model) as matching:
            painting = model(...)
            loss = loss + matching(batch, weights)
    """

    def __init__(self, model: SegGPT) -> None:
        self.config = model.config
        index = min(model.config.merge_layer + 1, model.config.depth - 1)
        self._attention = model.blocks[index].attn
        self._tokens: dict[str, Tensor] = {}
        self._handle = None

    def __enter__(self) -> MatchingLoss:
        def listen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._tokens["query" if output.ndim == 3 else "examples"] = output

        self._handle = self._attention.qkv.register_forward_hook(listen)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handle.remove()
        self._tokens.clear()

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        """Returns the loss of the last forward pass.

        Args:
            batch: what the model was given, with N >= 1.
            weight: (B, 1, H, W), as for `smooth_l1`.
        """
        heads, patch = self._attention.heads, self.config.patch_size
        query = rearrange(self._tokens["query"], "b l (three a d) -> three b a l d", three=3, a=heads)[0]
        key = rearrange(self._tokens["examples"], "b n l (three a d) -> three b a (n l) d", three=3, a=heads)[1]
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        colours = reduce(batch.example_targets, "b n c (h p) (w q) -> b (n h w) c", "mean", p=patch, q=patch)
        painted = scores.softmax(-1).mean(1) @ colours
        wanted = reduce(batch.target, "b c (h p) (w q) -> b (h w) c", "mean", p=patch, q=patch)
        weights = reduce(weight, "b 1 (h p) (w q) -> b (h w) 1", "mean", p=patch, q=patch)
        error = F.smooth_l1_loss(painted, wanted, beta=0.1, reduction="none") * weights
        return error.sum() / (3 * weights.sum()).clamp_min(1e-6)
