"""What this machine can do at best: matrix products and memory traffic, measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from incontext.device import synchronise
from incontext.model.fast_linear import _PACK, FastLinear

_SHAPES = [(1536, 1536, 1536), (1568, 1024, 4096), (1568, 4096, 1024)]  # the latter two: the MLP of ViT-L
_SHAPES_GPU = [(8192, 8192, 8192), *_SHAPES[1:]]
_COPIED, _COPIED_GPU = 2**26, 2**28  # elements, beyond any cache
_REPEATS, _REPEATS_GPU, _SECONDS = 5, 30, 1.0  # of each product: so many times, but no longer than that
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Limits:
    """Attributes:
    matrix: precision -> operations a second of the best product of matrices of a model's shapes.
    best: precision -> which implementation that was.
    bandwidth: bytes a second, read and written, of copying a large tensor.
    """

    matrix: dict[str, float]
    best: dict[str, str]
    bandwidth: float


@torch.inference_mode()
def measure_limits(device: torch.device, precisions: tuple[str, ...]) -> Limits:
    """Measures for some seconds; the best of several repeats counts, since other work can only slow it down.

    Args:
        device: which.
        precisions: of "fp32", "bf16", "fp16".
    """
    gpu = device.type == "cuda"
    matrix, best = {}, {}
    for precision in precisions:
        for rows, inner, outer in _SHAPES_GPU if gpu else _SHAPES:
            for kind, product in _products(rows, inner, outer, _DTYPES[precision], device).items():
                speed = 2 * rows * inner * outer / _fastest(product, device)
                if speed > matrix.get(precision, 0.0):
                    matrix[precision], best[precision] = speed, f"{kind}, {rows} x {inner} x {outer}"
    source = torch.zeros(_COPIED_GPU if gpu else _COPIED, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)
    return Limits(matrix, best, bandwidth)


def _products(rows: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device) -> dict:
    tokens = torch.randn(rows, inner, device=device).to(dtype)
    weight, bias = torch.randn(outer, inner, device=device).to(dtype), torch.zeros(outer, device=device, dtype=dtype)
    found = {"torch's default": lambda: F.linear(tokens, weight, bias)}
    if device.type == "cpu" and dtype is torch.float32 and _PACK is not None:
        packed = FastLinear(weight, bias, packed=True)
        found["oneDNN, packed"] = lambda: packed(tokens)
    return found


def _fastest(function, device: torch.device) -> float:
    def finish() -> None:
        function()
        synchronise(device)

    seconds: list[float] = []
    finish()  # warms up
    while len(seconds) < (_REPEATS if device.type == "cpu" else _REPEATS_GPU) and sum(seconds) < _SECONDS:
        start = time.perf_counter()
        finish()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
