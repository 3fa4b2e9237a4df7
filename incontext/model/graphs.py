"""CUDA graphs for prediction: calls of the same shapes are captured once and replayed.

Small models are bound by kernel launches on a GPU; a graph is one launch. A call of a model is run plainly the first
time that its shapes are seen, captured the second time, and replayed from then on. Off CUDA and with gradients nothing
of this happens.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from incontext.model.prompt_cache import PromptCache, TargetStream
from incontext.model.seggpt import SegGPT

logger = logging.getLogger(__name__)

_KEPT, _KNOWN = 8, 64  # graphs, and shapes that were seen once
_off = False

_References = tuple[weakref.ref, ...] | None  # to what was kept, by identity


@contextmanager
def without_graphs() -> Iterator[None]:
    """Runs models plainly within a `with` block, for comparisons, in all threads."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


class GraphedSegGPT(SegGPT):
    """A `SegGPT` whose calls without gradients on CUDA are replayed from graphs. Results are the caller's own.

    The weights must stay in their places; `incontext.model.inference.for_inference` makes such models.
    """

    @classmethod
    def of(cls, model: SegGPT) -> GraphedSegGPT:
        """Turns a model that nobody else holds into one with graphs; they share all they have."""
        graphed = cls.__new__(cls)
        graphed.__dict__.update(model.__dict__)
        graphed.graphs = Graphs()
        return graphed

    def _apply(self, fn: Callable, recurse: bool = True) -> GraphedSegGPT:
        self._kept_positions = None  # a model that moves to a machine without CUDA takes nothing along that is there
        for block in self.blocks:
            block.attn._kept_tables.clear()
        return super()._apply(fn, recurse)

    def forward(self, query: Tensor, example_images=None, example_targets=None, **options: Any) -> Tensor:
        """As `SegGPT.forward`."""
        if options.get("hidden") is not None and options.get("query_target") is None:
            return super().forward(query, example_images, example_targets, **options)  # looks at values
        stream = options.pop("target_stream", None)
        inputs = (query, example_images, example_targets, options)
        return self.graphs.call(self, _forward, inputs, None if stream is None else (stream,))

    def forward_cached(self, query: Tensor, cache: PromptCache, **options: Any) -> Tensor:
        """As `SegGPT.forward_cached`."""
        if options.get("hidden") is not None and options.get("query_target") is None:
            return super().forward_cached(query, cache, **options)
        return self.graphs.call(self, _forward_cached, (query, options), (cache,))

    def forward_passes(self, query: Tensor, caches: Sequence[PromptCache]) -> Tensor:
        """As `SegGPT.forward_passes`."""
        return self.graphs.call(self, _forward_passes, (query,), tuple(caches))

    def encode_prompt(self, example_images: Tensor, example_targets: Tensor, **options: Any) -> PromptCache:
        """As `SegGPT.encode_prompt`."""
        return self.graphs.call(self, _encode_prompt, (example_images, example_targets, options), None)

    def encode_targets(self, example_images: Tensor, example_targets: Tensor, **options: Any) -> TargetStream:
        """As `SegGPT.encode_targets`."""
        return self.graphs.call(self, _encode_targets, (example_images, example_targets, options), None)


def _forward(model: SegGPT, inputs: tuple, kept: tuple | None) -> Tensor:
    *pictures, options = inputs
    return SegGPT.forward(model, *pictures, **options, target_stream=kept and kept[0])


def _forward_cached(model: SegGPT, inputs: tuple, kept: tuple) -> Tensor:
    return SegGPT.forward_cached(model, inputs[0], kept[0], **inputs[1])


def _forward_passes(model: SegGPT, inputs: tuple, kept: tuple) -> Tensor:
    return SegGPT.forward_passes(model, inputs[0], kept)


def _encode_prompt(model: SegGPT, inputs: tuple, kept: None) -> PromptCache:
    return SegGPT.encode_prompt(model, *inputs[:2], **inputs[2])


def _encode_targets(model: SegGPT, inputs: tuple, kept: None) -> TargetStream:
    return SegGPT.encode_targets(model, *inputs[:2], **inputs[2])


class Graphs:
    """The graphs of one model: a bounded number, the least recently used one goes first. They share their memory.

    Attributes:
        most: how many are kept.
    """

    def __init__(self, most: int = _KEPT) -> None:
        self.most = most
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._refused: set[Callable] = set()
        self._lock, self._inside = threading.RLock(), False
        self._hooks: list[dict] | None = None
        self._last: tuple[_References, Hashable] = (None, None)

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs(self.most)

    def __reduce__(self):
        return Graphs, (self.most,)

    def __len__(self) -> int:
        return len(self._graphs)

    def call(self, model: SegGPT, function: Callable, inputs: tuple, kept: tuple | None) -> Any:
        """Calls function(model, inputs, kept), by a graph where there is one or it is time to capture one.

        Args:
            model: whose weights are used.
            function: without side effects; it must not look at the values of tensors.
            inputs: tensors, strings, None and containers of these; copied into the graph's own memory at each call.
            kept: prompt caches and streams, copied only where one is another object than last time; they must not
                change.

        Returns:
            What the function gives; a replayed graph's result is copied, so that it stays.
        """
        with self._lock:
            if self._inside or not _can_replay(model) or function in self._refused or self._has_hooks(model):
                return function(model, inputs, kept)
            self._inside = True  # what is called within is part of this
            try:
                return self._call(model, function, inputs, kept)
            finally:
                self._inside = False

    def _call(self, model: SegGPT, function: Callable, inputs: tuple, kept: tuple | None) -> Any:
        key = (function, _shape(inputs), self._shape_of_kept(kept), *_surroundings(model))
        graph = self._graphs.get(key)
        if graph is None:
            if key not in self._seen:
                self._seen[key] = None
                if len(self._seen) > _KNOWN:
                    self._seen.popitem(last=False)
                return function(model, inputs, kept)
            graph = self._make(model, function, inputs, kept, key[-1])
            if graph is None:
                return function(model, inputs, kept)
            self._graphs[key] = graph
            while len(self._graphs) > self.most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return graph.replay(inputs, kept)

    def _has_hooks(self, model: SegGPT) -> bool:
        """Whether somebody listens to one of the layers, as `incontext.labeling.embedding` does."""
        if self._hooks is None:
            self._hooks = [each for m in model.modules() for each in (m._forward_hooks, m._forward_pre_hooks)]
        return any(self._hooks)

    @torch.inference_mode()
    def _make(
        self, model: SegGPT, function: Callable, inputs: tuple, kept: tuple | None, stream: Hashable
    ) -> _Graph | None:
        # What runs on one stream runs one after the other, and may share memory.
        pool = next((graph.graph.pool() for key, graph in self._graphs.items() if key[-1] == stream), None)
        own_inputs, own_kept = _map(_copy, inputs), _map(_copy, kept)
        run = functools.partial(function, model, own_inputs, own_kept)
        run()  # once more, where its own inputs lie
        try:
            captured, result = _capture(run, pool, model.pos_embed.device)
        except RuntimeError as error:
            self._refused.add(function)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("%s runs without a CUDA graph, slower: %s", function.__name__.strip("_"), reason)
            return None
        tables = [list(block.attn._kept_tables.values()) for block in model.blocks]
        alive = [each.detach() for each in model.parameters()], model._kept_positions, tables
        return _Graph(captured, own_inputs, own_kept, _refer(kept), result, alive)

    def _shape_of_kept(self, kept: tuple | None) -> Hashable:
        if not _are(self._last[0], kept):
            self._last = _refer(kept), _shape(kept)
        return self._last[1]


@dataclasses.dataclass
class _Graph:
    """A captured call with its own memory.

    Attributes:
        graph: a torch.cuda.CUDAGraph.
        inputs, kept: where it reads.
        source: what `kept` was copied from.
        result: where it writes.
        alive: what else it reads, so that this is not freed.
    """

    graph: Any
    inputs: tuple
    kept: tuple | None
    source: _References
    result: Any
    alive: tuple

    @torch.inference_mode()
    def replay(self, inputs: tuple, kept: tuple | None) -> Any:
        for own, given in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            own.copy_(given)
        if not _are(self.source, kept):
            torch._foreach_copy_(_tensors(self.kept), _tensors(kept))
            self.source = _refer(kept)
        self.graph.replay()
        return _map(Tensor.clone, self.result)


def _can_replay(model: SegGPT) -> bool:
    """Whether calls of this model are captured: on CUDA, without gradients, not within another capture."""
    return (
        not _off
        and model.pos_embed.device.type == "cuda"
        and not torch.is_grad_enabled()
        and not model.training
        and not torch.is_autocast_enabled("cuda")
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def _surroundings(model: SegGPT) -> tuple[Hashable, ...]:
    """What else a graph depends on: where the weights are, and the stream."""
    device = model.pos_embed.device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return str(device), model.pos_embed.data_ptr(), stream


def _capture(function: Callable, pool: Any, device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Warms a function up on a side stream and captures it there.

    Raises:
        RuntimeError: if it does what cannot be captured.
    """
    with torch.cuda.device(device):
        before, side = torch.cuda.current_stream(), _side_stream(device)
        try:
            side.wait_stream(before)
            with torch.cuda.stream(side):
                function()
            before.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                result = function()
        except RuntimeError:
            with suppress(RuntimeError):
                _settle(side)
            raise
        finally:
            torch.cuda.set_stream(before)  # torch leaves the side stream current where a capture fails
    return graph, result


def _settle(stream: torch.cuda.Stream) -> None:
    """Ends what a failed capture leaves behind: without another one torch would draw no more random numbers on CUDA."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _refer(kept: tuple | None) -> _References:
    return None if kept is None else tuple(weakref.ref(each) for each in kept)


def _are(references: _References, kept: tuple | None) -> bool:
    """Whether these very objects were referred to."""
    if references is None or kept is None:
        return references is kept
    return len(references) == len(kept) and all(ref() is each for ref, each in zip(references, kept, strict=True))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _shape(value: Any) -> Hashable:
    """What of a value decides about a graph: shapes and types of tensors, and all else as it is."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if dataclasses.is_dataclass(value):
        return type(value), *(_shape(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return tuple((name, _shape(each)) for name, each in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return tuple(_shape(each) for each in value)
    return value


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same value with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value):
        parts = {field.name: _map(change, getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, dict):
        return {name: _map(change, each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_map(change, each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a value, always in the same order."""
    found: list[Tensor] = []
    _map(lambda tensor: found.append(tensor) or tensor, value)
    return found
