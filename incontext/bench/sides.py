"""The ways to paint a query that are measured side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from incontext.bench.models import Inputs
from incontext.device import synchronise
from incontext.model.inference import for_inference, with_prompt_caching
from incontext.model.seggpt import SegGPT

WAYS = {
    "transformers": "transformers' SegGPT, which computes all of every canvas",
    "plain": "this model as it is trained: the query once, the whole bias, nothing kept",
    "first": "a query with examples that were not seen before",
    "next": "a further query with the same examples: what can be kept of them exactly, is",
    "cached": "a further query where the prompt is cached; an approximation for weights that were trained otherwise",
}
"""Way -> what it is."""

_WARM_UPS_CUDA = 3


@dataclass(frozen=True)
class Side:
    """One way to paint, at one precision.

    Attributes:
        way: one of `WAYS`.
        precision: "fp32", "bf16" or "fp16".
    """

    way: str
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """What tables and charts call it."""
        ours = {"first": "incontext, first query", "next": "incontext, further queries", "cached": "prompt cached (*)"}
        ours["plain"] = "incontext, plain form"
        return f"{ours.get(self.way, self.way)}, {self.precision}"


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def prepare(side: Side, model: SegGPT, inputs: Inputs) -> Callable[[], Tensor]:
    """Makes a side ready: all that is done once for a prompt is done here.

    Args:
        side: what to run.
        model: float32, on the device; not changed, its weights are shared where they are of the same type.
        inputs: on the same device. With transformers either one query or one example: it mixes batches otherwise.

    Returns:
        A function that paints the queries once: float32 (B, 3, H, W), on the device, finished when it returns.
    """
    if side.way == "transformers":
        paint = _transformers(model, side.precision, inputs)
    else:
        paint = _ours(side, model, inputs)

    def finished() -> Tensor:
        with torch.enable_grad() if side.way == "plain" else torch.inference_mode():
            painting = paint()
        synchronise(painting.device)
        return painting.float()

    return finished


def warm_up(paint: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Paints often enough that later runs are as fast as they get, and returns the last painting.

    That is once on a CPU. On CUDA the second run captures a graph, and the third is the first to replay it.
    """
    for _ in range(_WARM_UPS_CUDA - 1 if device.type == "cuda" else 0):
        paint()
    return paint()


def _ours(side: Side, model: SegGPT, inputs: Inputs) -> Callable[[], Tensor]:
    if side.way == "plain":  # gradients on, and no weight that wants one: the form of training, without its memory
        return lambda: model(*inputs.expanded())
    if side.way == "cached":
        model = with_prompt_caching(model)
    fast = for_inference(model, side.precision)
    if side.way == "first":
        return lambda: fast(*inputs.expanded())
    with torch.inference_mode():
        if model.config.examples_attend_query:
            stream = fast.encode_targets(inputs.images, inputs.targets)
            return lambda: fast(*inputs.expanded(), target_stream=stream)
        cache = fast.encode_prompt(inputs.images, inputs.targets)
    return lambda: fast.forward_cached(inputs.query, cache)


def _transformers(model: SegGPT, precision: str, inputs: Inputs) -> Callable[[], Tensor]:
    from transformers import SegGptConfig, SegGptForImageSegmentation

    from incontext.model.transformers_format import config_to_transformers, key_to_transformers

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.device("meta"):
        port = SegGptForImageSegmentation(SegGptConfig(**config_to_transformers(model.config)))
    state = {key_to_transformers(key): tensor.to(dtype) for key, tensor in model.state_dict().items()}
    port.load_state_dict(state, assign=True)
    port.eval()
    (queries, examples), height = (len(inputs.query), inputs.images.shape[1]), inputs.query.shape[-2]
    if min(queries, examples) > 1:
        raise ValueError(f"transformers takes one query or one example, got {queries} queries and {examples} examples")
    rows = max(queries, examples)
    canvases = [each.expand(rows, -1, -1, -1).to(dtype) for each in (inputs.query, inputs.images[0], inputs.targets[0])]

    def paint() -> Tensor:
        masks = port(*canvases, feature_ensemble=examples > 1).pred_masks
        return masks[:queries, :, height:]

    return paint
