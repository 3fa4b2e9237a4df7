"""SegGPT: a vanilla ViT that paints the query's half of an example/query canvas (arXiv 2304.03284)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from incontext.model.config import SegGPTConfig
from incontext.model.layers import Block, KeyValue, PatchEmbed

KINDS = ("instance", "semantic")


@dataclass(frozen=True)
class PromptCache:
    """What a query needs to know of its examples, for models whose examples do not attend to the query.

    Attributes:
        layers: for every block the examples' keys and values, each (b, N, heads, L, d). Up to `merge_layer` b is 2B,
            the image streams before the target streams; after it b is B.
        border: (B, w, taps * D), the head's input for the last patch row of the first example, which the head's 3x3
            convolution lets the query's first pixel row see. None when there are no examples.
        grid: (h, w), patches of one half of the canvas.
        kind: the type token that the examples were encoded with.
    """

    layers: tuple[KeyValue, ...]
    border: Tensor
    grid: tuple[int, int]
    kind: str | tuple[str, ...]

    @property
    def batch_size(self) -> int:
        """B: 1, to serve any number of queries, or one prompt for each query."""
        return self.border.shape[0]

    def expand(self, batch_size: int) -> PromptCache:
        """Returns the cache of one prompt as that of `batch_size` queries that share it.

        Raises:
            ValueError: if the cache holds another number of prompts than 1 or `batch_size`.
        """
        if self.batch_size == batch_size:
            return self
        if self.batch_size != 1:
            raise ValueError(
                f"the prompt cache holds {self.batch_size} prompts for {batch_size} queries; give one prompt for all, "
                "or one for each query"
            )

        def spread(kept: Tensor) -> Tensor:
            return (
                kept.repeat_interleave(batch_size, dim=0)
                if kept.shape[0] > 1
                else kept.expand(batch_size, *kept.shape[1:])
            )

        layers = tuple(KeyValue(spread(layer.key), spread(layer.value)) for layer in self.layers)
        kind = self.kind if isinstance(self.kind, str) else self.kind * batch_size
        return PromptCache(layers, spread(self.border), self.grid, kind)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")


class SegGPT(nn.Module):
    """In-context painter. Parameter names are those of the published checkpoint.

    Attributes:
        config: the architecture.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, patch = config.width, config.patch_size
        self.patch_embed = PatchEmbed(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.segment_token_x = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.segment_token_y = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.type_token_cls = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.type_token_ins = nn.Parameter(torch.zeros(1, 1, 1, width))
        rows, columns = config.pretrain_grid
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))  # the first is an unused class token
        drops = [config.stochastic_depth * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_embed = nn.Linear(len(config.tap_layers) * width, patch * patch * config.decoder_width)
        self.decoder_pred = nn.Sequential(
            nn.Conv2d(config.decoder_width, config.decoder_width, kernel_size=3, padding=1),
            LayerNorm2d(config.decoder_width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Conv2d(config.decoder_width, 3, kernel_size=1),
        )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights: truncated normal with deviation 0.02, zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name or name == "decoder_pred.1.weight":
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)

    def forward(
        self,
        query: Tensor,
        example_images: Tensor | None = None,
        example_targets: Tensor | None = None,
        *,
        query_target: Tensor | None = None,
        hidden: Tensor | None = None,
        kind: str | Sequence[str] = "instance",
    ) -> Tensor:
        """Paints the queries as their examples are painted. All images are RGB in ImageNet-normalised space.

        Args:
            query: (B, 3, H, W); H and W are multiples of the patch size, not necessarily the config's.
            example_images: (B, N, 3, H, W), every query with its own N examples, or None (N = 0).
            example_targets: (B, N, 3, H, W), the painted masks of the examples.
            query_target: (B, 3, H, W), what is already painted on the query. Only its visible patches are read.
            hidden: (B, h * w) bool, True for the patches of the query that are to be painted. All, by default.
            kind: "instance" or "semantic", one for all or one for each query.

        Returns:
            The painting, (B, 3, H, W).

        Raises:
            ValueError: if shapes do not fit each other, or there is nothing to go by: no example, no query target.
        """
        grid = self._check_query(query, query_target, hidden)
        count = 0 if example_images is None else example_images.shape[1]
        if count == 0:
            if query_target is None or hidden is None:
                raise ValueError(
                    "with no examples the query itself must be partly painted: give query_target and hidden"
                )
            return self._paint(self._embed_query(query, query_target, hidden, kind), None, grid)
        self._check_examples(query, example_images, example_targets)
        if not self.config.examples_attend_query:
            cache = self.encode_prompt(example_images, example_targets, kind=kind)
            return self.forward_cached(query, cache, query_target=query_target, hidden=hidden)

        query_tokens = self._embed_query(query, query_target, hidden, kind)
        examples = self._embed_examples(example_images, example_targets, kind)
        taps, borders = [], []
        for index, block in enumerate(self.blocks):
            query_tokens, examples = self._run(block, query_tokens, examples, grid)
            if index == self.config.merge_layer:
                query_tokens, examples = _merge_streams(query_tokens), _merge_streams(examples)
            if index in self.config.tap_layers:
                taps.append(self.norm(query_tokens))
                borders.append(self.norm(examples[:, 0, -grid[1] :]))
        return self._decode(torch.cat(taps, -1), torch.cat(borders, -1), grid)

    def encode_prompt(
        self, example_images: Tensor, example_targets: Tensor, *, kind: str | Sequence[str] = "instance"
    ) -> PromptCache:
        """Computes once what queries need of their examples.

        Args:
            example_images: (B, N, 3, H, W), normalised; B is 1 for a prompt that all queries share. N >= 1.
            example_targets: (B, N, 3, H, W).
            kind: as in `forward`.

        Returns:
            A cache for `forward_cached`.

        Raises:
            ValueError: if this model's examples attend to the query, so that nothing of them can be kept.
        """
        if self.config.examples_attend_query:
            raise ValueError(
                "this model's examples attend to the query, so their keys and values change with every query; "
                "call the model with the examples instead"
            )
        fits = example_images.shape == example_targets.shape and example_images.ndim == 5
        if not fits or example_images.shape[1] == 0 or example_images.shape[2] != 3:
            raise ValueError(
                "example_images and example_targets must both be (B, N, 3, H, W) with N of 1 or more, got "
                f"{tuple(example_images.shape)} and {tuple(example_targets.shape)}"
            )
        grid = self._grid(example_images)
        examples = self._embed_examples(example_images, example_targets, kind)
        layers, borders = [], []
        for index, block in enumerate(self.blocks):
            examples, kept = self._run(block.encode_examples, examples, grid)
            layers.append(kept)
            if index == self.config.merge_layer:
                examples = _merge_streams(examples)
            if index in self.config.tap_layers:
                borders.append(self.norm(examples[:, 0, -grid[1] :]))
        kind = kind if isinstance(kind, str) else tuple(kind)
        return PromptCache(tuple(layers), torch.cat(borders, -1), grid, kind)

    def forward_cached(
        self,
        query: Tensor,
        cache: PromptCache,
        *,
        query_target: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Paints queries from a cached prompt, with the same result as `forward` with its examples.

        Args:
            query: (B, 3, H, W), normalised, of the size that the prompt was encoded at.
            cache: from `encode_prompt`, for one prompt or for B.
            query_target, hidden: as in `forward`.

        Returns:
            The painting, (B, 3, H, W).
        """
        grid = self._check_query(query, query_target, hidden)
        if grid != cache.grid:
            raise ValueError(
                f"the prompt was encoded on a grid of {cache.grid} patches, the query has {grid}; resize it to "
                f"{tuple(side * self.config.patch_size for side in cache.grid)} pixels"
            )
        cache = cache.expand(query.shape[0])
        return self._paint(self._embed_query(query, query_target, hidden, cache.kind), cache, grid)

    def _paint(self, query: Tensor, cache: PromptCache | None, grid: tuple[int, int]) -> Tensor:
        """Runs embedded query tokens (2B, l, D) through blocks and head, beside a prompt or alone."""
        taps = []
        for index, block in enumerate(self.blocks):
            query = self._run(block.decode_query, query, cache.layers[index] if cache else None, grid)
            if index == self.config.merge_layer:
                query = _merge_streams(query)
            if index in self.config.tap_layers:
                taps.append(self.norm(query))
        return self._decode(torch.cat(taps, -1), cache.border if cache else None, grid)

    def _run(self, function, *args):
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def _embed_query(
        self, query: Tensor, target: Tensor | None, hidden: Tensor | None, kind: str | Sequence[str]
    ) -> Tensor:
        """Returns tokens (2B, l, D): the image stream, then the target stream."""
        image_tokens = self.patch_embed(query)
        if target is None or hidden is None:
            target_tokens = self.mask_token[0].expand_as(image_tokens)
        else:
            target_tokens = torch.where(hidden[..., None], self.mask_token[0], self.patch_embed(target))
        place = self._positions(self._grid(query))[1] + self._type_token(kind, query.shape[0])
        return torch.cat(
            (image_tokens + self.segment_token_x[0] + place, target_tokens + self.segment_token_y[0] + place)
        )

    def _embed_examples(self, images: Tensor, targets: Tensor, kind: str | Sequence[str]) -> Tensor:
        """Returns tokens (2B, N, l, D): the image streams, then the target streams."""
        place = self._positions(self._grid(images))[0] + self._type_token(kind, images.shape[0])[:, None]
        image_tokens = self.patch_embed(images) + self.segment_token_x + place
        target_tokens = self.patch_embed(targets) + self.segment_token_y + place
        return torch.cat((image_tokens, target_tokens))

    def _type_token(self, kind: str | Sequence[str], batch: int) -> Tensor:
        """Returns the type tokens, (1 or B, 1, D)."""
        kinds = [kind] if isinstance(kind, str) else list(kind)
        if len(kinds) not in (1, batch) or any(each not in KINDS for each in kinds):
            raise ValueError(f"kind must be one of {KINDS}, or one of them for each of {batch} queries, got {kind!r}")
        tokens = {"instance": self.type_token_ins[0], "semantic": self.type_token_cls[0]}
        return torch.cat([tokens[each] for each in kinds])

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns the position embedding of the canvas as (2, l, D): the example's half, the query's half."""
        rows, columns = self.config.pretrain_grid
        table = rearrange(self.pos_embed[:, 1:], "1 (h w) c -> 1 c h w", h=rows)
        canvas = (2 * grid[0], grid[1])
        if canvas != (rows, columns):
            table = F.interpolate(table, size=canvas, mode="bicubic", align_corners=False)
        return rearrange(table, "1 c (two h) w -> two (h w) c", two=2)

    def _decode(self, query: Tensor, border: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """The head, on the query's half only.

        Args:
            query: (B, l, taps * D).
            border: (B, w, taps * D), the patch row above the query on the first example's canvas, if any.
            grid: (h, w).
        """
        patch = self.config.patch_size
        tokens = query if border is None else torch.cat((border, query), dim=1)
        features = rearrange(
            self.decoder_embed(tokens), "b (h w) (p q c) -> b c (h p) (w q)", w=grid[1], p=patch, q=patch
        )
        if border is None:
            return self.decoder_pred(features)
        # Of the row above the query only its last pixel row is within reach of the 3x3 convolution.
        return self.decoder_pred(features[:, :, patch - 1 :])[:, :, 1:]

    def _grid(self, images: Tensor) -> tuple[int, int]:
        patch = self.config.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"image size ({height}, {width}) is not a multiple of the patch size {patch}")
        return height // patch, width // patch

    def _check_query(self, query: Tensor, target: Tensor | None, hidden: Tensor | None) -> tuple[int, int]:
        if query.ndim != 4 or query.shape[1] != 3:
            raise ValueError(f"query must be (B, 3, H, W), got {tuple(query.shape)}")
        h, w = self._grid(query)
        if target is not None and target.shape != query.shape:
            raise ValueError(
                f"query_target must have the query's shape {tuple(query.shape)}, got {tuple(target.shape)}"
            )
        if hidden is not None and (hidden.dtype != torch.bool or tuple(hidden.shape) != (query.shape[0], h * w)):
            raise ValueError(
                f"hidden must be bool of shape {(query.shape[0], h * w)}, one flag a patch, got {hidden.dtype} of "
                f"shape {tuple(hidden.shape)}"
            )
        if target is None and hidden is not None and not hidden.all():
            raise ValueError("hidden leaves patches visible, so query_target must say what is painted there")
        return h, w

    def _check_examples(self, query: Tensor, images: Tensor, targets: Tensor | None) -> None:
        expected = (query.shape[0], images.shape[1], *query.shape[1:])
        for name, tensor in (("example_images", images), ("example_targets", targets)):
            if tensor is None or tuple(tensor.shape) != expected:
                got = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"{name} must be (B, N, 3, H, W) = {expected} to fit the query, got {got}")


def _merge_streams(tokens: Tensor) -> Tensor:
    """Averages the image stream and the target stream: (2B, ...) to (B, ...)."""
    return rearrange(tokens, "(s b) ... -> s b ...", s=2).mean(0)
