"""The model at work: crops of queries beside the examples of one pass, in batches."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from incontext.canvas import pixels_to_patches
from incontext.image import denormalise, normalise
from incontext.model.layers import KeyValue
from incontext.model.prompt_cache import PromptCache, TargetStream
from incontext.model.seggpt import SegGPT
from incontext.pack import PackError
from incontext.pack.tokens import add_tokens
from incontext.prompt import Prompt, Source


@dataclass(frozen=True)
class Manner:
    """How to paint: the arguments of `Predictor.predict` that reach the model."""

    ensemble: str
    flip: bool
    kind: str
    batch_size: int


@dataclass(frozen=True, eq=False)
class _Condition:
    """What the model is given beside the query in one pass: examples (1, N, 3, h, w) and what is kept of them, their
    cache, or nothing."""

    images: Tensor | None = None
    targets: Tensor | None = None
    stream: TargetStream | None = None
    cache: PromptCache | None = None


class Painter:
    """Runs a model, and keeps the examples of each prompt ready on its device.

    Attributes:
        model: a `SegGPT`, or anything with its `config` and forward signature; moved to the device.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        self.dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        self._conditions: weakref.WeakKeyDictionary[Prompt, dict[tuple, _Condition]] = weakref.WeakKeyDictionary()
        self._encoded: weakref.WeakKeyDictionary[Source, dict[tuple, PromptCache]] = weakref.WeakKeyDictionary()

    def paint_passes(
        self, crops: np.ndarray, prompt: Prompt, manner: Manner, *, hints: np.ndarray | None = None
    ) -> list[Tensor]:
        """Paints crops of queries that are shown whole, in all passes of a prompt.

        Passes that show the same images are painted together, as many as go through the model at once.

        Args:
            crops, prompt, manner, hints: as in `paint`.

        Returns:
            What `paint` gives, for each pass.
        """
        together = self._alike(prompt, manner, max(1, manner.batch_size // len(crops))) if hints is None else []
        painted: dict[int, Tensor] = {}
        for indexes in together:
            painted |= zip(indexes, self._paint_together(crops, prompt, indexes, manner), strict=True)
        for index in range(len(prompt.passes)):
            if index not in painted:
                painted[index] = self.paint(crops, prompt, index, manner, hints=hints)
        return [painted[index] for index in range(len(prompt.passes))]

    def _alike(self, prompt: Prompt, manner: Manner, most: int) -> list[list[int]]:
        """Numbers of passes that can be painted together, at least two and at most so many each."""
        model = self.model
        if not isinstance(model, SegGPT) or model.config.examples_attend_query or most < 2:
            return []
        if prompt.apart and manner.ensemble == "feature":
            return []  # sources that are encoded one by one keep no common target
        groups: dict[tuple, list[int]] = {}
        for index in range(len(prompt.passes)):
            if prompt.cache(index, ensemble=manner.ensemble, kind=manner.kind) is None:
                key = (
                    prompt.shown(index),
                    tuple((pack, *pack.kept(prompt.passes[index])) for pack in prompt.shown_packs(index)),
                )
                groups.setdefault(key, []).append(index)
        parts = [group[k : k + most] for key, group in groups.items() if any(key) for k in range(0, len(group), most)]
        return [part for part in parts if len(part) > 1]

    @torch.inference_mode()
    def _paint_together(self, crops: np.ndarray, prompt: Prompt, indexes: list[int], manner: Manner) -> Tensor:
        """The passes of one group from `_alike`: (passes, views, n, 3, h, w)."""
        views = []
        for mirrored in (False, True) if manner.flip else (False,):
            caches = self._encode_together(prompt, indexes, manner, mirrored)
            paintings = []
            for start in range(0, len(crops), manner.batch_size):
                images = self._upload(crops[start : start + manner.batch_size])
                images = self._place(images.flip(-1) if mirrored else images)
                with _evaluating(self.model):
                    painting = self.model.forward_passes(images, caches)
                painting = denormalise(painting.flatten(0, 1)).unflatten(0, painting.shape[:2])
                paintings.append(painting.flip(-1) if mirrored else painting)
            views.append(torch.cat(paintings, 1))
        painted = torch.stack(views, 1)
        return painted if painted.device.type == "cuda" else painted.cpu()

    def _encode_together(self, prompt: Prompt, indexes: list[int], manner: Manner, mirrored: bool) -> list[PromptCache]:
        """The caches of passes that show the same images; those that are not kept yet are encoded in one batch."""
        kept = self._conditions.setdefault(prompt, {})
        keys = {index: _key(index, manner, None, mirrored) for index in indexes}
        missing = [index for index in indexes if keys[index] not in kept]
        if len(missing) > 1:
            pairs = [self._canvases(prompt, index, manner, None, mirrored) for index in missing]
            images, targets = pairs[0][0], torch.cat([each for _, each in pairs])
            tokens = [prompt.tokens(index, ensemble=manner.ensemble) for index in missing]
            for index, cache in zip(missing, self._encode(images, targets, tokens, manner, mirrored), strict=True):
                kept[keys[index]] = _Condition(cache=cache)
        return [self._condition(prompt, index, manner, None, mirrored).cache for index in indexes]

    @torch.inference_mode()
    def paint(
        self,
        crops: np.ndarray,
        prompt: Prompt,
        index: int,
        manner: Manner,
        *,
        tile: int | None = None,
        hints: np.ndarray | None = None,
    ) -> Tensor:
        """Paints crops of queries in one pass.

        With `manner.flip` the whole canvas is mirrored for a second view, examples too: between example and
        query left stays left, so an id that means "left door" does not land on the right one.

        Args:
            crops: uint8 (n, h, w, 3) of the model's input size.
            prompt: the examples.
            index: which of the prompt's passes.
            manner: how.
            tile: side of the tiles that the examples are to be cut by, if any.
            hints: int (n, h, w), labels that are known, negative elsewhere.

        Returns:
            float32 (views, n, 3, h, w) in 0..255: one view, or with flips two, both upright. On the CPU, or
            where CUDA painted it.
        """
        views = []
        for mirrored in (False, True) if manner.flip else (False,):
            condition = self._condition(prompt, index, manner, tile, mirrored)
            paintings = []
            for start in range(0, len(crops), manner.batch_size):
                batch = slice(start, start + manner.batch_size)
                images, target, hidden = self._upload(crops[batch]), None, None
                if hints is not None:
                    known = torch.from_numpy(hints[batch] >= 0)
                    target = normalise(torch.from_numpy(prompt.passes[index].paint(hints[batch])))
                    if mirrored:
                        known, target = known.flip(-1), target.flip(-1)
                    hidden = pixels_to_patches(known, self.model.config.patch_size)
                if mirrored:
                    images = images.flip(-1)
                painting = denormalise(self._forward(images, condition, target, hidden, manner.kind))
                paintings.append(painting.flip(-1) if mirrored else painting)
            views.append(torch.cat(paintings))
        painted = torch.stack(views)
        return painted if painted.device.type == "cuda" else painted.cpu()

    def _forward(
        self, images: Tensor, condition: _Condition, target: Tensor | None, hidden: Tensor | None, kind: str
    ) -> Tensor:
        images, target, hidden = (
            None if tensor is None else self._place(tensor) for tensor in (images, target, hidden)
        )
        with _evaluating(self.model):
            if condition.cache is not None:
                return self.model.forward_cached(images, condition.cache, query_target=target, hidden=hidden)
            shown = (condition.images, condition.targets)
            shown = [None if each is None else each.expand(len(images), -1, -1, -1, -1) for each in shown]
            kept = {} if condition.stream is None else {"target_stream": condition.stream}
            return self.model(images, *shown, query_target=target, hidden=hidden, kind=kind, **kept)

    def _condition(self, prompt: Prompt, index: int, manner: Manner, tile: int | None, mirrored: bool) -> _Condition:
        """The examples of one pass on the device, with their cache; made once for each prompt."""
        kept = self._conditions.setdefault(prompt, {})
        key = _key(index, manner, tile, mirrored)
        if key not in kept:
            kept[key] = self._make_condition(prompt, index, manner, tile, mirrored)
        return kept[key]

    def _make_condition(
        self, prompt: Prompt, index: int, manner: Manner, tile: int | None, mirrored: bool
    ) -> _Condition:
        config = self.model.config
        cache = None if mirrored else prompt.cache(index, ensemble=manner.ensemble, kind=manner.kind)
        if cache is not None:
            return _Condition(cache=self._place_cache(cache))
        shared = prompt.apart and not config.examples_attend_query and manner.ensemble == "feature" and tile is None
        if shared and (prompt.shown(index) or prompt.shown_packs(index)):
            return _Condition(cache=self._join_encoded(prompt, index, manner, mirrored))
        canvases = self._canvases(prompt, index, manner, tile, mirrored)
        if canvases is None:
            return _Condition()
        images, targets = canvases
        tokens = prompt.tokens(index, ensemble=manner.ensemble)
        if not config.examples_attend_query and isinstance(self.model, SegGPT):
            (cache,) = self._encode(images, targets, [tokens], manner, mirrored)
            return _Condition(cache=cache)
        if tokens is not None:
            raise PackError("expected packs without learned tokens: this model's examples attend to the query")
        if not isinstance(self.model, SegGPT):
            return _Condition(images, targets)
        with _evaluating(self.model):
            return _Condition(images, targets, self.model.encode_targets(images, targets, kind=manner.kind))

    def _canvases(
        self, prompt: Prompt, index: int, manner: Manner, tile: int | None, mirrored: bool
    ) -> tuple[Tensor, ...] | None:
        """Images and targets of one pass, each (1, N, 3, h, w), on the device; None if it shows nothing."""
        canvases = prompt.canvases(index, self.model.config.image_size, ensemble=manner.ensemble, tile=tile)
        if canvases is None:
            return None
        return tuple(self._place(each.flip(-1) if mirrored else each) for each in canvases)

    def _encode(
        self, images: Tensor, targets: Tensor, tokens: list[Tensor | None], manner: Manner, mirrored: bool
    ) -> list[PromptCache]:
        """The caches of P passes, whose targets (P, N, 3, h, w) go through the model at once, with their tokens; the
        images (1, N, 3, h, w) are the same in all."""
        with _evaluating(self.model):
            caches = self.model.encode_prompt(images, targets, kind=manner.kind).split()
        return [
            cache if each is None else add_tokens(cache, self._place(each), mirrored=mirrored)
            for cache, each in zip(caches, tokens, strict=True)
        ]

    def _join_encoded(self, prompt: Prompt, index: int, manner: Manner, mirrored: bool) -> PromptCache:
        """The cache of one pass, of sources that are encoded one by one and kept as long as they live."""
        palette = prompt.passes[index]
        key = (palette.ids, palette.colours.tobytes(), manner.kind, mirrored)
        alone = [(pack, Prompt((), (palette,), {}, (pack,))) for pack in prompt.shown_packs(index)]
        alone += [(example, Prompt((example,), (palette,), {})) for example in prompt.shown(index)]
        parts = []
        for source, itself in alone:
            kept = self._encoded.setdefault(source, {})
            if key not in kept:
                kept[key] = self._make_condition(itself, 0, manner, None, mirrored).cache
            parts.append(kept[key])
        return PromptCache.join(parts)

    def _upload(self, crops: np.ndarray) -> Tensor:
        """Crops, uint8 (n, h, w, 3), as the model sees them; a GPU is sent bytes, from pinned memory."""
        pixels = torch.from_numpy(crops)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return normalise(pixels)

    def _place(self, tensor: Tensor) -> Tensor:
        """Moves to the model's device and, but for flags, type."""
        return tensor.to(self.device, None if tensor.dtype == torch.bool else self.dtype)

    def _place_cache(self, cache: PromptCache) -> PromptCache:
        layers = tuple(KeyValue(*map(self._place, layer)) for layer in cache.layers)
        return dataclasses.replace(cache, layers=layers, border=self._place(cache.border))


def _key(index: int, manner: Manner, tile: int | None, mirrored: bool) -> tuple:
    """What the examples of one pass, as they are kept, depend on."""
    return index, manner.ensemble, manner.kind, tile, mirrored


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode for a while, and back: a training run may share it."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
