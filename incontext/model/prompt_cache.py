"""What can be computed of a prompt once, for all queries that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from incontext.model.layers import KeyValue


@dataclass(frozen=True)
class PromptCache:
    """What a query needs to know of its examples, for models whose examples do not attend to the query.

    Attributes:
        layers: for every block the examples' keys and values, each (b, N, heads, L, d). Up to `merge_layer` b is 2B,
            the image streams before the target streams; after it b is B.
        border: (B, w, taps * D), the head's input for the last patch row of the first example, which the head's 3x3
            convolution lets the query's first pixel row see.
        grid: (h, w), patches of one half of the canvas.
        kind: the type token that the examples were encoded with.
        target: (B, l, D), the query's half of the target stream after `merge_layer`, for queries that are hidden
            whole: it depends on no query then. None where it was not kept; it is computed with each query then.
    """

    layers: tuple[KeyValue, ...]
    border: Tensor
    grid: tuple[int, int]
    kind: str | tuple[str, ...]
    target: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """B: 1, to serve any number of queries, or one prompt for each query."""
        return self.border.shape[0]

    @property
    def shape(self) -> tuple[int, tuple[int, int], str | tuple[str, ...]]:
        """(N, grid, kind)."""
        return self.layers[0].key.shape[1], self.grid, self.kind

    @classmethod
    def stack(cls, caches: Sequence[PromptCache], queries: int, after: int) -> PromptCache:
        """Returns the cache of P prompts for P times `queries` queries, the first prompt's first.

        Args:
            caches: each of one prompt, of one shape, with its target kept.
            queries: how many each serves.
            after: the last layer in which the streams are apart. Up to it the first prompt's layers stay as they are.
        """

        def line_up(kept: Sequence[Tensor]) -> Tensor:
            return torch.cat([each.expand(queries, *each.shape[1:]) for each in kept])

        first = caches[0]
        layers = [
            KeyValue(*(line_up(kept) for kept in zip(*layer, strict=True))) if index > after else first.layers[index]
            for index, layer in enumerate(zip(*(each.layers for each in caches), strict=True))
        ]
        border, target = line_up([each.border for each in caches]), line_up([each.target for each in caches])
        return cls(tuple(layers), border, first.grid, first.kind, target)

    def split(self) -> list[PromptCache]:
        """Returns a cache for each of its B prompts."""

        def pick(kept: Tensor, index: int) -> Tensor:
            return kept[index :: self.batch_size]  # the image streams stand before the target streams

        return [
            PromptCache(
                tuple(KeyValue(pick(layer.key, k), pick(layer.value, k)) for layer in self.layers),
                pick(self.border, k),
                self.grid,
                self.kind if isinstance(self.kind, str) else self.kind[k : k + 1],
                None if self.target is None else pick(self.target, k),
            )
            for k in range(self.batch_size)
        ]

    @classmethod
    def join(cls, caches: Sequence[PromptCache]) -> PromptCache:
        """Returns the cache of all examples of several caches, in their order: equal to encoding them at once.

        Only `target` is not joined: in it each query has looked at the examples of one cache.

        Args:
            caches: one or more, of the same B, grid and kind.

        Raises:
            ValueError: if they differ in one of these.
        """
        first = caches[0]
        for each in caches[1:]:
            same = (each.batch_size, each.grid, each.kind) == (first.batch_size, first.grid, first.kind)
            if not same:
                raise ValueError(
                    f"expected prompt caches of the same B, grid and kind as the first "
                    f"({first.batch_size}, {first.grid}, {first.kind!r}), got ({each.batch_size}, {each.grid}, "
                    f"{each.kind!r}); encode them alike"
                )
        layers = zip(*(each.layers for each in caches), strict=True)
        joined = tuple(KeyValue(*(torch.cat(kept, dim=1) for kept in zip(*layer, strict=True))) for layer in layers)
        return cls(joined, first.border, first.grid, first.kind)

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
        target = None if self.target is None else spread(self.target)
        return PromptCache(layers, spread(self.border), self.grid, kind, target)


@dataclass(frozen=True)
class TargetStream:
    """The target stream after `merge_layer`, for models whose examples attend to the query.

    Where a query is hidden whole, its half of the target stream is the mask token, and nothing of the stream depends on
    the query until the streams merge.

    Attributes:
        query: (B, l, D).
        examples: (B, N, l, D). B is 1 to serve any number of queries.
        grid: (h, w), patches of one half of the canvas.
        kind: the type token that the stream was computed with.
    """

    query: Tensor
    examples: Tensor
    grid: tuple[int, int]
    kind: str | tuple[str, ...]
