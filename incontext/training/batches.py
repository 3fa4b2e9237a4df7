"""Batches: episodes painted with random colours, as tensors, prepared ahead of the loop in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from incontext.image import normalise
from incontext.palette import random_colours
from incontext.training.episodes import Episode
from incontext.training.pack import IGNORE_ID


@dataclass(frozen=True)
class Batch:
    """Episodes as the model takes them, in normalised space.

    Attributes:
        query: (B, 3, H, W).
        target: (B, 3, H, W), the painting that is wanted.
        example_images, example_targets: (B, N, 3, H, W).
        hidden: (B, h * w) bool.
        labels: (B, H, W) int64: 0, 1..K, 255 ignored.
        colours: (B, K + 1, 3) in normalised space; the first is black. Unused slots repeat black.
        kinds: a kind for each query.
    """

    query: Tensor
    target: Tensor
    example_images: Tensor
    example_targets: Tensor
    hidden: Tensor
    labels: Tensor
    colours: Tensor
    kinds: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with its tensors on a device."""
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)


def collate(episodes: Sequence[Episode], patch_size: int, rng: np.random.Generator, partial: float = 0.0) -> Batch:
    """Paints episodes with random colours and stacks them.

    Args:
        episodes: all with the same view size and number of examples.
        patch_size: the model's.
        rng: source of randomness.
        partial: share of queries that are partly painted already: blocks of patches are hidden, not the whole.

    Returns:
        The batch.
    """
    images = np.stack([episode.images for episode in episodes])  # B, N + 1, H, W, 3
    labels = np.stack([episode.labels for episode in episodes])
    most = max(episode.count for episode in episodes)
    tables = np.zeros((len(episodes), 256, 3), np.uint8)
    seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for table, episode in zip(tables, episodes, strict=True):
        table[1 : episode.count + 1] = random_colours(episode.count, seed)[0]
    targets = tables[np.arange(len(episodes))[:, None, None, None], labels]
    h, w = (side // patch_size for side in labels.shape[-2:])
    hidden = np.stack(
        [random_hidden(rng, (h, w)) if rng.random() < partial else np.ones(h * w, bool) for _ in episodes]
    )
    pixels, painted = normalise(images), normalise(targets)  # B, N + 1, 3, H, W
    return Batch(
        query=pixels[:, -1],
        target=painted[:, -1],
        example_images=pixels[:, :-1],
        example_targets=painted[:, :-1],
        hidden=torch.from_numpy(hidden),
        labels=torch.from_numpy(labels[:, -1].astype(np.int64)),
        colours=normalise(tables[:, None, : most + 1])[:, :, 0].transpose(1, 2),
        kinds=tuple(episode.kind for episode in episodes),
    )


def random_hidden(rng: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
    """Hides blocks of patches until a share of 0.5 to 0.95 is hidden (Painter, arXiv 2212.02499, hides blocks too).

    Returns:
        (h * w) bool.
    """
    h, w = grid
    hidden, wanted = np.zeros(grid, bool), rng.uniform(0.5, 0.95)
    while hidden.mean() < wanted:
        rows, columns = rng.integers(1, max(2, h // 2) + 1), rng.integers(1, max(2, w // 2) + 1)
        top, left = rng.integers(0, h - rows + 1), rng.integers(0, w - columns + 1)
        hidden[top : top + rows, left : left + columns] = True
    return hidden.ravel()


def pixel_weights(labels: Tensor, balance: float) -> Tensor:
    """Weights of the loss per pixel.

    Args:
        labels: (B, H, W): 0 background, 255 ignored.
        balance: 0 weighs every valid pixel the same, as published. 1 gives foreground and background of each query
            half the weight each: a small model that starts from nothing otherwise paints everything black for long.

    Returns:
        (B, 1, H, W), mean 1 over the valid pixels of a query.
    """
    valid = (labels != IGNORE_ID).float()
    front = valid * (labels > 0)
    back = valid - front
    total, count = valid.sum((1, 2), keepdim=True), front.sum((1, 2), keepdim=True)
    even = front * total / (2 * count).clamp_min(1) + back * total / (2 * (total - count)).clamp_min(1)
    both = (count > 0) & (count < total)
    even = torch.where(both, even, valid)
    return ((1 - balance) * valid + balance * even)[:, None]


def prefetch(make: Callable[[int], Batch], steps: Iterator[int], ahead: int = 3, threads: int = 1) -> Iterator[Batch]:
    """Yields make(step) for each step in order, prepared ahead in threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
