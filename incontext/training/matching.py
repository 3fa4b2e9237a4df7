"""Two helps for a small model that starts from nothing: a start in which attention is similarity, and a matching loss.

In-context painting needs attention from a patch of the query to patches of the example that show the same thing. Left
alone, that takes a small model long to find; both helps point at it directly, and neither changes the architecture.
"""

from __future__ import annotations

import math
from types import TracebackType

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incontext.image import normalise
from incontext.model.attention import Attention
from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch


@torch.no_grad()
def start_as_similarity(model: SegGPT, generator: torch.Generator | None = None) -> None:
    """Draws fresh weights for training from nothing.

    Linear layers start as in MAE (Xavier uniform). Every block's key weights equal its query weights, so attention
    compares; its output projection undoes its value projection, so what attention finds arrives as it is. Both halves
    of the canvas start from the same sine-cosine positions, so place compares, too. Black and the mask token start as
    nothing in the target stream, so after the merge a query's patch and its like on a background are the same token.
    The head starts from black, with layers wide enough to leave it.

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
        block.attn.proj.weight.copy_(let_compare(block.attn, generator).T)
    for layer in (model.decoder_pred[0], model.decoder_pred[3]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
    black = normalise(np.zeros((model.config.patch_size, model.config.patch_size, 3), np.uint8))
    silent = model.patch_embed(black[None])[0, 0]
    model.segment_token_y[0, 0, 0] -= silent
    model.mask_token[0, 0, 0] += silent
    model.decoder_pred[3].bias.copy_(black[:, 0, 0])
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


@torch.no_grad()
def let_compare(attention: Attention, generator: torch.Generator | None = None) -> Tensor:
    """Draws weights of an attention layer with which it compares tokens: keys equal to queries, all orthogonal.

    Args:
        attention: changed in place, but for its output projection.
        generator: source of randomness.

    Returns:
        The weights of the values, (D, D).
    """
    query, key, value = attention.qkv.weight.chunk(3)
    nn.init.orthogonal_(query, generator=generator)
    key.copy_(query)
    nn.init.orthogonal_(value, generator=generator)
    return value


class MatchingLoss:
    """Asks that attention to the examples, alone, would already paint the query's patches roughly right.

    It is the mean over the blocks in which the streams are one. It listens to their projections while it is a context:

        with MatchingLoss(model) as matching:
            painting = model(...)
            loss = loss + matching(batch, weights)
    """

    def __init__(self, model: SegGPT) -> None:
        self.config = model.config
        self._blocks = model.blocks[model.config.merge_layer + 1 :]
        self._projections: dict[int, dict[str, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> MatchingLoss:
        for index, block in enumerate(self._blocks):
            kept = self._projections[index] = {}

            def listen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, kept: dict = kept) -> None:
                kept["query" if output.ndim == 3 else "examples"] = output

            self._handles.append(block.attn.qkv.register_forward_hook(listen))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._projections.clear()

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        """Returns the loss of the last forward pass.

        Args:
            batch: what the model was given, with N >= 1.
            weight: (B, 1, H, W), as for `smooth_l1`.
        """
        patch = self.config.patch_size
        colours = reduce(batch.example_targets, "b n c (h p) (w q) -> b (n h w) c", "mean", p=patch, q=patch)
        wanted = reduce(batch.target, "b c (h p) (w q) -> b (h w) c", "mean", p=patch, q=patch)
        weights = reduce(weight, "b 1 (h p) (w q) -> b (h w) 1", "mean", p=patch, q=patch)
        losses = [weight.new_zeros(())]
        for kept in self._projections.values():
            painted = self._attention(**kept) @ colours
            error = F.smooth_l1_loss(painted, wanted, beta=0.1, reduction="none") * weights
            losses.append(error.sum() / (3 * weights.sum()).clamp_min(1e-6))
        return torch.stack(losses).sum() / max(len(self._projections), 1)

    def _attention(self, query: Tensor, examples: Tensor) -> Tensor:
        """How a block's heads, on average, spread a query patch over the examples' patches: (b, l, n * l)."""
        heads = self.config.heads
        query = rearrange(query, "b l (three a d) -> three b a l d", three=3, a=heads)[0]
        key = rearrange(examples, "b n l (three a d) -> three b a (n l) d", three=3, a=heads)[1]
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
