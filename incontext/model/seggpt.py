"""SegGPT: a vanilla ViT that paints the query's half of an example/query canvas (arXiv 2304.03284)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from incontext.model.config import SegGPTConfig
from incontext.model.layers import Block, KeyValue, PatchEmbed
from incontext.model.prompt_cache import PromptCache, TargetStream

KINDS = ("instance", "semantic")


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")


class SegGPT(nn.Module):
    """In-context painter. Parameter names are those of the published checkpoint.

    Attributes:
        config: the architecture.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        keeps_positions: keep the position embedding of the last size, for models whose weights stay as they are.
    """

    def __init__(self, config: SegGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = self.keeps_positions = False
        self._kept_positions: tuple[tuple, Tensor] | None = None
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
        target_stream: TargetStream | None = None,
    ) -> Tensor:
        """Paints the queries as their examples are painted. All images are RGB in ImageNet-normalised space.

        Args:
            query: (B, 3, H, W); H and W are multiples of the patch size, not necessarily the config's.
            example_images: (B, N, 3, H, W), every query with its own N examples, or None (N = 0).
            example_targets: (B, N, 3, H, W), the painted masks of the examples.
            query_target: (B, 3, H, W), what is already painted on the query. Only its visible patches are read.
            hidden: (B, h * w) bool, True for the patches of the query that are to be painted. All, by default.
            kind: "instance" or "semantic", one for all or one for each query.
            target_stream: from `encode_targets` with these examples and this kind. It saves time where the queries
                are hidden whole (no `hidden`), and is not used elsewhere.

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
            cache = self.encode_prompt(example_images, example_targets, kind=kind, keep_target=hidden is None)
            return self.forward_cached(query, cache, query_target=query_target, hidden=hidden)

        kept = target_stream if hidden is None else None
        if kept is not None:
            self._check_stream(kept, example_images, grid, kind)
            query_tokens = self._embed_query_images(query, kind)
            examples = self._embed_examples(example_images, kind, self.segment_token_x)
        else:
            query_tokens = self._embed_query(query, query_target, hidden, kind)
            examples = self._embed_pairs(example_images, example_targets, kind)
        taps, borders = [], []
        for index, block in enumerate(self.blocks):
            last = index == self.config.depth - 1 and not torch.is_grad_enabled()
            options = {"border_only": True} if last else {}
            query_tokens, examples = self._run(block, query_tokens, examples, grid, **options)
            if index == self.config.merge_layer:
                query_tokens = _merge_streams(query_tokens, kept and kept.query)
                examples = _merge_streams(examples, kept and kept.examples)
            if index in self.config.tap_layers:
                taps.append(self.norm(query_tokens))
                borders.append(self.norm(examples[:, 0, -grid[1] :]))
        return self._decode(torch.cat(taps, -1), torch.cat(borders, -1), grid)

    def encode_targets(
        self, example_images: Tensor, example_targets: Tensor, *, kind: str | Sequence[str] = "instance"
    ) -> TargetStream:
        """Computes once what does not depend on the query though its examples attend to it: the target stream.

        Args:
            example_images: (B, N, 3, H, W), normalised; B is 1 for a prompt that all queries share. N >= 1.
            example_targets: (B, N, 3, H, W).
            kind: as in `forward`.

        Returns:
            What `forward` takes beside the same examples, for queries that are hidden whole.
        """
        _check_pairs(example_images, example_targets)
        grid = self._grid(example_images)
        query = self._embed_query_targets(example_images[:, 0], None, None, kind)
        examples = self._embed_examples(example_targets, kind, self.segment_token_y)
        for block in self.blocks[: self.config.merge_layer + 1]:
            query, examples = self._run(block, query, examples, grid)
        return TargetStream(query, examples, grid, kind if isinstance(kind, str) else tuple(kind))

    def encode_prompt(
        self,
        example_images: Tensor,
        example_targets: Tensor,
        *,
        kind: str | Sequence[str] = "instance",
        keep_target: bool = True,
    ) -> PromptCache:
        """Computes once what queries need of their examples.

        Args:
            example_images: (B, N, 3, H, W), normalised; B is 1 for a prompt that all queries share. N >= 1. Or
                (1, N, 3, H, W), painted in B ways: their stream, which knows of no target, is computed once.
            example_targets: (B, N, 3, H, W).
            kind: as in `forward`.
            keep_target: compute what queries that are hidden whole share, too; without, each of them computes it.

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
        _check_pairs(example_images, example_targets, one_for_all=True)
        grid, count = self._grid(example_images), len(example_targets)
        examples = self._embed_pairs(example_images, example_targets, kind)
        target = self._embed_query_targets(example_targets[:, 0], None, None, kind) if keep_target else None
        layers, borders = [], []
        for index, block in enumerate(self.blocks):
            examples, kept = self._run(block.encode_examples, examples, grid)
            if index <= self.config.merge_layer:
                kept = KeyValue(*(_two_streams(each, count) for each in kept))
            layers.append(kept)
            if target is not None and index <= self.config.merge_layer:
                target = self._run(block.decode_query, target, KeyValue(*(each.chunk(2)[1] for each in kept)), grid)
            if index == self.config.merge_layer:
                examples = _merge_streams(_two_streams(examples, count))
            if index in self.config.tap_layers:
                borders.append(self.norm(examples[:, 0, -grid[1] :]))
        kind = kind if isinstance(kind, str) else tuple(kind)
        return PromptCache(tuple(layers), torch.cat(borders, -1), grid, kind, target)

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
        if hidden is None and cache.target is not None:
            return self._paint(self._embed_query_images(query, cache.kind), cache, grid, cache.target)
        return self._paint(self._embed_query(query, query_target, hidden, cache.kind), cache, grid)

    def forward_passes(self, query: Tensor, caches: Sequence[PromptCache]) -> Tensor:
        """Paints queries that are hidden whole from prompts that show the same images, painted differently.

        That is how many classes are asked for, pass by pass. The query's image stream knows of no target, so it is
        computed once for all prompts.

        Args:
            query: (B, 3, H, W), normalised.
            caches: P prompts with their `target` kept, each to serve any number of queries.

        Returns:
            (P, B, 3, H, W), as `forward_cached` paints with each.

        Raises:
            ValueError: if a cache holds several prompts, or no target, or they differ in grid, kind or N.
        """
        grid, first = self._check_query(query, None, None), caches[0]
        for cache in caches:
            if cache.batch_size != 1 or cache.target is None or cache.shape != first.shape or cache.grid != grid:
                raise ValueError(
                    f"expected prompts for any query on a grid of {grid}, all with a kept target and as many examples "
                    f"of one kind, got {[(each.batch_size, each.target is not None, *each.shape) for each in caches]}"
                )
        count = len(query)
        tokens = self._embed_query_images(query, first.kind)
        for index in range(self.config.merge_layer + 1):
            kept = KeyValue(*(each.chunk(2)[0].expand(count, *each.shape[1:]) for each in first.layers[index]))
            tokens = self._run(self.blocks[index].decode_query, tokens, kept, grid)
        joined = PromptCache.stack(caches, count, after=self.config.merge_layer)
        merged = _merge_streams(tokens.repeat(len(caches), 1, 1), joined.target)
        return self._paint_merged(merged, joined, grid).unflatten(0, (len(caches), count))

    def _paint(
        self, query: Tensor, cache: PromptCache | None, grid: tuple[int, int], target: Tensor | None = None
    ) -> Tensor:
        """Runs embedded query tokens through blocks and head, beside a prompt or alone.

        The tokens are both streams, (2B, l, D), or the image stream alone where `target` has the other one, merged.
        """
        for index in range(self.config.merge_layer + 1):
            kept = cache.layers[index] if cache else None
            if target is not None:
                kept = KeyValue(*(each.chunk(2)[0] for each in kept))
            query = self._run(self.blocks[index].decode_query, query, kept, grid)
        return self._paint_merged(_merge_streams(query, target), cache, grid)

    def _paint_merged(self, query: Tensor, cache: PromptCache | None, grid: tuple[int, int]) -> Tensor:
        """Runs merged query tokens (B, l, D) through the rest of the blocks, and the head."""
        start = self.config.merge_layer
        taps = [self.norm(query)] if start in self.config.tap_layers else []
        for index in range(start + 1, self.config.depth):
            query = self._run(self.blocks[index].decode_query, query, cache.layers[index] if cache else None, grid)
            if index in self.config.tap_layers:
                taps.append(self.norm(query))
        return self._decode(torch.cat(taps, -1), cache.border if cache else None, grid)

    def _run(self, function, *args, **options):
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, **options)
        return function(*args, **options)

    def _embed_query(
        self, query: Tensor, target: Tensor | None, hidden: Tensor | None, kind: str | Sequence[str]
    ) -> Tensor:
        """Returns tokens (2B, l, D): the image stream, then the target stream."""
        return torch.cat(
            (self._embed_query_images(query, kind), self._embed_query_targets(query, target, hidden, kind))
        )

    def _embed_query_images(self, query: Tensor, kind: str | Sequence[str]) -> Tensor:
        """Returns the image stream (B, l, D) of queries (B, 3, H, W)."""
        place = self._positions(self._grid(query))[1] + self._type_token(kind, query.shape[0])
        return self.patch_embed(query) + self.segment_token_x[0] + place

    def _embed_query_targets(
        self, query: Tensor, target: Tensor | None, hidden: Tensor | None, kind: str | Sequence[str]
    ) -> Tensor:
        """Returns the target stream (B, l, D) of queries (B, 3, H, W), of which only the shape counts."""
        (h, w), batch = self._grid(query), query.shape[0]
        if target is None or hidden is None:
            tokens = self.mask_token[0].expand(batch, h * w, -1)
        else:
            tokens = torch.where(hidden[..., None], self.mask_token[0], self.patch_embed(target))
        return tokens + self.segment_token_y[0] + (self._positions((h, w))[1] + self._type_token(kind, batch))

    def _embed_pairs(self, images: Tensor, targets: Tensor, kind: str | Sequence[str]) -> Tensor:
        """Returns tokens (2B, N, l, D), or (1 + B, ...) of one for all: the image streams, then the target streams."""
        return torch.cat(
            (
                self._embed_examples(images, kind, self.segment_token_x),
                self._embed_examples(targets, kind, self.segment_token_y),
            )
        )

    def _embed_examples(self, pictures: Tensor, kind: str | Sequence[str], segment_token: Tensor) -> Tensor:
        """Returns one stream (B, N, l, D) of the examples' images, or of their targets."""
        place = self._positions(self._grid(pictures))[0] + self._type_token(kind, pictures.shape[0])[:, None]
        return self.patch_embed(pictures) + segment_token + place

    def _type_token(self, kind: str | Sequence[str], batch: int) -> Tensor:
        """Returns the type tokens, (1 or B, 1, D)."""
        kinds = [kind] if isinstance(kind, str) else list(kind)
        if len(kinds) not in (1, batch) or any(each not in KINDS for each in kinds):
            raise ValueError(f"kind must be one of {KINDS}, or one of them for each of {batch} queries, got {kind!r}")
        tokens = {"instance": self.type_token_ins[0], "semantic": self.type_token_cls[0]}
        return torch.cat([tokens[each] for each in kinds])

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns the position embedding of the canvas as (2, l, D): the example's half, the query's half."""
        if not self.keeps_positions or torch.is_grad_enabled():
            return self._resize_positions(grid)
        key, kept = (grid, self.pos_embed.device), self._kept_positions
        if kept is None or kept[0] != key:
            kept = self._kept_positions = (key, self._resize_positions(grid).contiguous())
        return kept[1]

    def _resize_positions(self, grid: tuple[int, int]) -> Tensor:
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
        # Channels last in memory: convolution, norm and GELU all run on it without a copy.
        features = rearrange(
            self.decoder_embed(tokens), "b (h w) (p q c) -> b (h p) (w q) c", w=grid[1], p=patch, q=patch
        )
        features = rearrange(features, "b h w c -> b c h w").to(self.decoder_pred[0].weight.dtype)
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

    def _check_stream(
        self, stream: TargetStream, images: Tensor, grid: tuple[int, int], kind: str | Sequence[str]
    ) -> None:
        kind = kind if isinstance(kind, str) else tuple(kind)
        expected, got = (images.shape[1], grid, kind), (stream.examples.shape[1], stream.grid, stream.kind)
        if got != expected or stream.query.shape[0] not in (1, images.shape[0]):
            raise ValueError(
                f"target_stream: expected that of these examples (N, grid, kind) = {expected}, got {got}; encode the "
                "targets of the same examples"
            )

    def _check_examples(self, query: Tensor, images: Tensor, targets: Tensor | None) -> None:
        expected = (query.shape[0], images.shape[1], *query.shape[1:])
        for name, tensor in (("example_images", images), ("example_targets", targets)):
            if tensor is None or tuple(tensor.shape) != expected:
                got = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"{name} must be (B, N, 3, H, W) = {expected} to fit the query, got {got}")


def _merge_streams(tokens: Tensor, target: Tensor | None = None) -> Tensor:
    """Averages the image stream and the target stream: (2B, ...), or (B, ...) and a kept target stream, to (B, ...)."""
    if target is not None:
        return (tokens + target) / 2
    return rearrange(tokens, "(s b) ... -> s b ...", s=2).mean(0)


def _two_streams(tokens: Tensor, count: int) -> Tensor:
    """Image streams and target streams (2B, ...), of which the former may be one for all, (1 + B, ...)."""
    if len(tokens) == 2 * count:
        return tokens
    return torch.cat((tokens[:1].expand(count, *tokens.shape[1:]), tokens[1:]))


def _check_pairs(images: Tensor, targets: Tensor, one_for_all: bool = False) -> None:
    expected = targets[:1].shape if one_for_all and len(images) == 1 else targets.shape
    if images.shape != expected or images.ndim != 5 or images.shape[1] == 0 or images.shape[2] != 3:
        raise ValueError(
            "example_images and example_targets must both be (B, N, 3, H, W) with N of 1 or more, got "
            f"{tuple(images.shape)} and {tuple(targets.shape)}"
        )
