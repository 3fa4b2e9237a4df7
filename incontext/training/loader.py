"""The loader: the batches of a run in order, made ahead of time in a thread or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from incontext.prefetch import prefetch
from incontext.training.batches import RawBatch, collate
from incontext.training.config import TrainConfig
from incontext.training.distributed import Group
from incontext.training.episodes import EpisodeSampler
from incontext.training.pack import Pack

_AHEAD = 3  # batches that wait, for each that makes them
_KEPT = 16  # batches that are kept until they come again


class StepBatches(Dataset):
    """The batch of every step: step -> `RawBatch`.

    The step and an episode's place in it alone decide what it is. So a resumed run sees the same batches, worker
    processes change nothing, and the processes of a group share one joint batch between them.
    """

    def __init__(self, pack: Pack, config: TrainConfig, patch_size: int, group: Group) -> None:
        """Prepares to draw.

        Args:
            pack: to draw from.
            config: how to train.
            patch_size: the model's.
            group: of processes; this one gets every `group.size`-th episode of a step.

        Raises:
            ValueError: if there is nothing to draw from, or the views do not fit the patches, or some
                steps have fewer episodes than there are processes.
        """
        self.sampler = EpisodeSampler(pack, config.mixture)
        self.config, self.patch_size, self.group = config, patch_size, group
        if any(side % patch_size for side in config.size):
            raise ValueError(f"size {config.size} must be a multiple of the patch size {patch_size}")
        least = min(self._batch_size(shots) for shots in config.shots)
        if least < group.size:
            raise ValueError(
                f"batch_size {config.batch_size} leaves {least} episodes of {max(config.shots)} examples in a step for "
                f"{group.size} processes; raise it, so that each has one"
            )

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> RawBatch:
        config = self.config
        numbers, shares = np.array(list(config.shots)), np.array(list(config.shots.values()))
        shots = int(np.random.default_rng([config.seed, step]).choice(numbers, p=shares / shares.sum()))
        places = range(self.group.rank, self._batch_size(shots), self.group.size)
        rngs = [np.random.default_rng([config.seed, step, place]) for place in places]
        episodes = [self.sampler.draw(rng, config.size, shots) for rng in rngs]
        return collate(episodes, self.patch_size, rngs, config.telling)

    def _batch_size(self, shots: int) -> int:
        """The same number of images at any number of examples."""
        return max(1, 2 * self.config.batch_size // (shots + 1))


def load(batches: StepBatches, start: int, workers: int, device: torch.device) -> Iterator[tuple[RawBatch, int]]:
    """Yields the batches from step `start` on, on the CPU.

    Where each is used several times, some are drawn, then all of them used, then all of them again as their echoes.

    Args:
        batches: the batches.
        start: the first step.
        workers: processes that make them; 0 makes them in a thread of this one, beside the training.
        device: where they go; for a GPU they are laid in pinned memory.

    Yields:
        The batches, in order, and the number of the echo of each that is to be used; 0 is the batch itself.
    """
    echoes, steps = batches.config.echoes, len(batches)
    together = _KEPT if echoes > 1 else 1
    drawn_before = start // (together * echoes) * together
    drawn = _draw(batches, range(drawn_before, steps), workers, device)
    kept: dict[int, RawBatch] = {}
    for step in range(drawn_before * echoes, steps):
        echo, place = divmod(step % (together * echoes), together)
        if echo == 0:
            kept[place] = next(drawn)
        if step >= start:
            yield kept[place], echo


def _draw(batches: StepBatches, draws: range, workers: int, device: torch.device) -> Iterator[RawBatch]:
    if workers == 0:
        yield from prefetch(batches.__getitem__, draws, threads=1, ahead=_AHEAD)
        return
    yield from DataLoader(
        batches,
        sampler=draws,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        pin_memory=device.type == "cuda",
    )
