"""How quick the tracker is, beside a loop that does the same work in the plainest way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from incontext.decoding import Decoder
from incontext.device import synchronise
from incontext.export import write_indexed
from incontext.image import denormalise, normalise, resize_image
from incontext.predictor import Predictor
from incontext.tiling import resize_painting
from incontext.types import Example
from incontext.video.frames import FrameError, Frames
from incontext.video.memory import Fifo
from incontext.video.tracker import Tracker

_MODEL_CALLS = ("forward", "forward_cached", "encode_prompt")


@dataclass
class Pace:
    """Measured times of one number of examples.

    Attributes:
        examples: N, the painted frame and N - 1 past ones, all changing at every frame.
        tracker, naive: seconds for each frame, one value for each round.
        in_model: of the tracker's time the part spent in the model, 0..1, one value for each round.
    """

    examples: int
    tracker: list[float] = field(default_factory=list)
    naive: list[float] = field(default_factory=list)
    in_model: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians: frames a second of both, how many times as quick, and the share that is not the model."""
        tracker, naive = statistics.median(self.tracker), statistics.median(self.naive)
        return {
            "examples": self.examples,
            "tracker_fps": round(1 / tracker, 3),
            "naive_fps": round(1 / naive, 3),
            "times_as_quick": round(naive / tracker, 2),
            "not_model": round(1 - statistics.median(self.in_model), 4),
        }


def measure_pace(
    predictor: Predictor, frames: Frames, mask: np.ndarray, *, examples: int, per_round: int = 8, rounds: int = 5
) -> Pace:
    """Tracks the first frames of a video both ways in turns, reading and writing included.

    The plain loop reads a frame, prepares all examples, shows each of them on a canvas of its own beside the query, as
    the published code does, compares and refines like the predictor, and writes the mask; then it takes the next frame.

    Args:
        predictor: what segments.
        frames: at least `examples + 1`, which are gone through again and again.
        mask: int (H, W) of the first frame.
        examples: N.
        per_round: frames in a round.
        rounds: how often both ways take turns; the medians are over these.

    Raises:
        ValueError: the video is too short.
    """
    if len(frames) < examples + 1:
        raise ValueError(f"{frames.name}: expected at least {examples + 1} frames to measure, got {len(frames)}")
    pace = Pace(examples)
    indices = range(1, min(len(frames), 1 + max(per_round, examples)))
    with TemporaryDirectory() as folder:
        tracker = Tracker(predictor, memory=Fifo(examples - 1))
        tracker.step(frames.read(0), mask)
        for index in range(1, examples):  # fills memory
            tracker.step(frames.read(index))
        memory = list(tracker.state.shown.values())
        for _ in range(rounds):
            part = indices[:per_round]
            with _model_time(predictor) as spent:
                start = time.perf_counter()
                _track(tracker, frames, part, Path(folder))
                took = time.perf_counter() - start
            pace.tracker.append(took / len(part))
            pace.in_model.append(spent[0] / took)
            start = time.perf_counter()
            _track_plainly(predictor, frames, part, memory, Path(folder))
            pace.naive.append((time.perf_counter() - start) / len(part))
    return pace


def _track(tracker: Tracker, frames: Frames, part: range, folder: Path) -> None:
    for index, frame in frames.stream(part):
        if isinstance(frame, FrameError):
            raise frame
        write_indexed(folder / f"{index}.png", tracker.step(frame).labels)


@torch.inference_mode()
def _track_plainly(predictor: Predictor, frames: Frames, part: range, memory: list[Example], folder: Path) -> None:
    size, device = predictor.model.config.image_size, predictor.device
    dtype = next((each.dtype for each in predictor.model.parameters()), torch.float32)
    for index in part:
        frame = frames.read(index)
        prompt = predictor.prompt(list(memory))
        query = normalise(np.stack([resize_image(frame, size)])).to(device, dtype)
        (palette,) = prompt.palettes
        images, targets = (each.to(device, dtype) for each in prompt.canvases(0, size))
        apart = [rearrange(each, "1 n c h w -> n 1 c h w") for each in (images, targets)]
        painting: Tensor = predictor.model(query.expand(len(memory), -1, -1, -1), *apart).mean(0, keepdim=True)
        painting = resize_painting(denormalise(painting).float(), frame.shape[:2])[0]
        refinement = predictor.refinement(frame, prompt) if predictor.refine else None
        decoder = Decoder(frame.shape[:2], [palette], painting.device, predictor.temperature, refinement)
        decoder.add([painting])
        write_indexed(folder / f"{index}.png", decoder.finish(prompt.names).labels)


@contextmanager
def _model_time(predictor: Predictor) -> Iterator[list[float]]:
    """Adds up the seconds that the model works, in the one value that it yields."""
    spent, depth, model = [0.0], [0], predictor.model

    def timed(function):
        def call(*args, **kwargs):
            depth[0] += 1
            start = time.perf_counter()
            try:
                result = function(*args, **kwargs)
                synchronise(predictor.device)
                return result
            finally:
                depth[0] -= 1
                if not depth[0]:  # a call within a call is part of it
                    spent[0] += time.perf_counter() - start

        return call

    found = [name for name in _MODEL_CALLS if hasattr(model, name)]
    for name in found:
        setattr(model, name, timed(getattr(model, name)))
    try:
        yield spent
    finally:
        for name in found:
            delattr(model, name)
