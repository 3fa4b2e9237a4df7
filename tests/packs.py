"""Small packs for tests."""

from __future__ import annotations

from fake_models import example
from random_models import TINY_CACHED, random_model

from incontext.model.seggpt import SegGPT
from incontext.pack import PromptPack
from incontext.pack.compiling import compile_pack

SIZE = (48, 40)  # (H, W) of the examples: neither square nor the model's input


def cached_model() -> SegGPT:
    """A tiny model whose prompts can be kept encoded."""
    return random_model(TINY_CACHED)


def examples(names, count=2, seed=1):
    """Examples of `blocks` with the ids 1, 2, ... of these names."""
    ids = range(1, len(names) + 1)
    return [example(ids, SIZE, seed + k, names=dict(zip(ids, names, strict=True))) for k in range(count)]


def small_pack(model, names=("cell", "nucleus"), name="small", **options) -> PromptPack:
    """A pack of two compiled examples."""
    return compile_pack(model, examples(names, seed=len(name)), name, **options)
