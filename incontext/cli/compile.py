"""`incontext compile`: the attention compiled for this CPU."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `compile`."""
    parser = subparsers.add_parser(
        "compile",
        help="make attention about twice as fast on this CPU, once",
        description="Compiles the attention for this CPU and the installed torch, which takes less than a minute, "
        "compares it with torch's own and measures the gain. All commands and models on a CPU use it from then on. It "
        "needs Linux, a CPU with AVX-512 and g++; without it everything works the same, slower.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 1 if what was compiled computes something else.

    Raises:
        ValueError: if this machine cannot compile it, with the reason.
    """
    import torch

    from incontext.model.compiled import DTYPES, compile_attention

    path = compile_attention()
    print(f"compiled: {path}")
    for dtype in DTYPES:
        gain, difference = _compare(dtype)
        name = str(dtype).removeprefix("torch.")
        print(f"attention of a ViT-L in {name}: {gain:.1f} times as fast; largest difference {difference:.0e}")
        if not difference < (1e-4 if dtype is torch.float32 else 5e-2):
            path.unlink(missing_ok=True)
            print("that is too much: removed, and not used; please report it with your CPU and versions")
            return 1
    return 0


def _compare(dtype) -> tuple[float, float]:
    """How many times as fast it is as torch's own (median of interleaved rounds), and the largest difference."""
    import time
    from statistics import median

    import torch

    from incontext.model.attention import Attention
    from incontext.model.compiled import without_compiled
    from incontext.model.config import PRESETS

    config = PRESETS["seggpt-vit-large"]
    grid, whole = config.grid, slice(0, 2 * config.grid[0])
    layer = Attention(config).requires_grad_(False)
    for table in (layer.rel_pos_h, layer.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    shape = (3, 1, config.heads, 2 * grid[0] * grid[1], config.width // config.heads)
    tensors = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def attend() -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        mixed = layer.attend(*tensors, grid, whole, whole)
        return time.perf_counter() - start, mixed

    gains, differences = [], []
    with torch.inference_mode():
        for _ in range(5):
            fast, mixed = attend()
            with without_compiled():
                slow, expected = attend()
            gains.append(slow / fast)
            differences.append((mixed.float() - expected.float()).abs().max().item())
    return median(gains), max(differences)
