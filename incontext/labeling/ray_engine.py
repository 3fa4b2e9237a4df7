"""Many models on one machine or a cluster: Ray Data gives blocks of images to actors that each hold the model.

Actors read images and write masks themselves, so the images and the output folder must be on storage that every
machine reaches under the same path. Rows come back to the process that started the job, which alone writes the
manifest: a block that is done again because its machine died leaves one row for each image all the same.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from incontext.labeling.config import LabelConfig
from incontext.labeling.image_writer import ImageWriter
from incontext.labeling.labeller import Labeller
from incontext.labeling.local_engine import run_local
from incontext.labeling.manifest import Row
from incontext.labeling.reading import JobStopped, Task
from incontext.predictor import Predictor

if TYPE_CHECKING:
    from torch import nn

    from incontext.prompt import Prompt

_BATCHES_PER_BLOCK = 16
"""Batches in a block: enough for reading and writing to overlap with the model, few enough that a machine that dies
takes little work with it."""

_STOPPED = "stopped"


@dataclass(frozen=True, eq=False)
class _Share:
    """What an actor needs to make its own labeller. It travels to each machine once."""

    model: nn.Module
    fingerprint: str
    settings: dict
    prompt: Prompt
    config: LabelConfig
    cache: Path | None
    writer: ImageWriter


class _Actor:
    """Holds a model, and labels one block of tasks after another."""

    def __init__(self, share: _Share, device: str) -> None:
        predictor = Predictor(share.model, device=device, **share.settings)
        predictor.fingerprint = share.fingerprint  # of the model as it was loaded: packs know it by that
        self._labeller = Labeller(predictor, share.prompt, share.config, share.cache)
        self._writer = share.writer

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tasks = [pickle.loads(task) for task in block["task"]]
        rows: list[str] = []
        try:
            run_local(tasks, self._labeller, self._writer, lambda row: rows.append(json.dumps(row.to_dict())))
        except JobStopped as error:  # as an answer: raised, it would cost the rows before it, and its own kind
            rows.append(json.dumps({_STOPPED: str(error)}))
        return {"row": np.array(rows, dtype=object)}


def run_ray(tasks: Sequence[Task], labeller: Labeller, writer: ImageWriter, on_row: Callable[[Row], None]) -> None:
    """Labels images on the Ray cluster that this process is connected to, or else on one of this machine's own.

    The masks are those of `run_local`, bit for bit where batches hold one image, as they do on CPUs by default;
    other batches can round differently.

    Args:
        tasks: all of them.
        labeller: whose model, prompt and settings the actors take.
        writer: writes, on every machine.
        on_row: called in this thread when the row of an image has come back.

    Raises:
        ValueError: Ray is not installed.
        JobStopped: an actor cannot go on; see `run_local`.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")
    config, predictor = labeller.config, labeller.predictor
    tasks = [replace(task, path=task.path.absolute(), start=task.start.absolute()) for task in tasks]
    gpu = predictor.device.type == "cuda"
    there = ray.cluster_resources()
    workers = config.workers or max(1, int(there.get("GPU", 0)) if gpu else int(there.get("CPU", 1)) - 1)
    share = _Share(
        copy.deepcopy(predictor.model).cpu() if gpu else predictor.model,
        predictor.fingerprint,
        predictor.settings,
        labeller.prompt,
        config,
        labeller.cache and labeller.cache.absolute(),
        replace(writer, out=writer.out.absolute()),
    )
    blocks = -(-len(tasks) // (_BATCHES_PER_BLOCK * labeller.batch_size))
    blocks = min(len(tasks), max(blocks, 2 * workers))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    dataset = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=blocks)
    labelled = dataset.map_batches(
        _Actor,
        fn_constructor_args=(share, "cuda" if gpu else predictor.device.type),
        batch_size=None,  # a block at a time
        concurrency=min(workers, blocks),
        num_cpus=1,
        num_gpus=1 if gpu else 0,
    )
    for answer in labelled.iter_rows():
        values = json.loads(answer["row"])
        if _STOPPED in values:
            raise JobStopped(values[_STOPPED])
        on_row(Row.from_dict(values))


def import_ray() -> ModuleType:
    """Ray, with Ray Data.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"engine 'ray': expected Ray, got: {error}; pip install 'incontext[ray]'") from error
    return ray
