"""Scores a model, and the two baselines, on labelled folders."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from incontext.evaluation.baselines import BASELINES
from incontext.evaluation.episodes import Episode, across_images, first_frame, within_image
from incontext.evaluation.metrics import Tally
from incontext.labelled_folders import ImageSet, VideoSet, find_sets
from incontext.types import Example, Segmentation

WITHIN = ("bsds500*",)
"""Sets whose ids mean nothing across images."""


class Method(Protocol):
    """What can be evaluated: a `Predictor`, or a baseline."""

    def predict(self, image, examples: Sequence[Example], *, ensemble: str | None = None) -> Segmentation: ...


@dataclass(frozen=True)
class Shown:
    """A predictor that is shown every image in one way.

    Attributes:
        predictor: a `Predictor`.
        options: of its `predict`, such as `tile` and `flip`.
    """

    predictor: Method
    options: Mapping[str, Any]

    def predict(self, image, examples: Sequence[Example], *, ensemble: str | None = None) -> Segmentation:
        """As the predictor does, with the options."""
        return self.predictor.predict(image, examples, ensemble=ensemble, **self.options)


@dataclass(frozen=True)
class Selecting:
    """A method that is shown those of a pool that suit the image best.

    Attributes:
        method: what segments.
        pool: how many examples there are to choose from, at least 1.
        choose: (image, the pool, how many) -> examples.
    """

    method: Method
    pool: int
    choose: Callable[[np.ndarray, Sequence[Example], int], list[Example]]

    def predict(self, image, examples: Sequence[Example], *, ensemble: str | None = None) -> Segmentation:
        """As the method does, with the examples chosen."""
        return self.method.predict(image, examples, ensemble=ensemble)


@dataclass(frozen=True)
class Score:
    """How one method did on one set.

    Attributes:
        set: name of the set.
        protocol: "across", "within" or "video": see `incontext.evaluation.episodes`.
        method: name of the method.
        shots: examples per query.
        queries: how many were segmented.
        miou: the number of the set, 0..1. Across images `Tally.class_mean`; within an image
            `Tally.image_mean`, as its ids aren't classes; for videos the mean over videos of J, the mean IoU
            over frames (an object that is absent and not painted counts as 1).
        image_mean: mean over images of the mean over classes, 0..1.
        parts: IoU per class, or J per video.
        seconds: per query, without reading files.
        same_pixels: the part of all pixels that get the same label as from the method that this one is compared with;
            nan where there is none.
        same_masks: the mean over images of the mean IoU of its masks with those of that method; nan too.
    """

    set: str
    protocol: str
    method: str
    shots: int
    queries: int
    miou: float
    image_mean: float
    parts: dict[str, float]
    seconds: float
    same_pixels: float = math.nan
    same_masks: float = math.nan


@dataclass(frozen=True, eq=False)
class Sample:
    """One query with what each method made of it, for a picture: (method, shots) -> Segmentation."""

    set: str
    episode: Episode
    results: dict[tuple[str, int], Segmentation]


@dataclass(frozen=True, eq=False)
class Report:
    """All scores, in the order of sets, methods and shots; and a few samples per set."""

    scores: list[Score]
    samples: list[Sample] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)

    def mean(self, method: str, shots: int, protocol: str | None = None) -> float:
        """Mean of the sets' mIoU.

        Args:
            method: name of a method.
            shots: number of examples.
            protocol: only sets of this protocol; all by default.

        Returns:
            0..1; nan where a set lacks that number of shots, as means over different sets don't compare.
        """
        among = [s for s in self.scores if protocol in (None, s.protocol)]
        values = {s.set: s.miou for s in among if (s.method, s.shots) == (method, shots)}
        complete = bool(values) and set(values) == {s.set for s in among}
        return sum(values.values()) / len(values) if complete else math.nan


def evaluate_folders(
    data: str | Path,
    models: dict[str, Method] | None = None,
    *,
    shots: Sequence[int] = (1,),
    sets: Sequence[str] | None = None,
    within: Sequence[str] = WITHIN,
    limit: int | None = None,
    seed: int = 0,
    ensemble: str = "feature",
    baselines: bool = True,
    samples: int = 0,
    compared: Mapping[str, str] | None = None,
    progress: Callable[[str, Iterator[Episode], int | None], Iterator[Episode]] | None = None,
) -> Report:
    """Evaluates on folders laid out as `incontext.labelled_folders` says, by the protocols of `.episodes`.

    Args:
        data: a folder of sets, or one set.
        models: name -> method; may be empty to run the baselines alone.
        shots: numbers of examples. Within images and on videos only one shot exists, and is always run.
        sets: names of the sets to take; all by default.
        within: patterns of the names of sets whose ids mean nothing across images.
        limit: most queries per set (per video for videos), evenly spread; all by default.
        seed: of the choice of examples.
        ensemble: how the methods join several examples, "feature" or "spatial".
        baselines: whether to run them too, with the same shots.
        samples: how many queries per set to keep for a picture.
        compared: method -> another whose results its own are compared with, as well as with the truth.
        progress: (set name, episodes, how many at most) -> the same episodes; wraps each set's loop.

    Returns:
        The report.

    Raises:
        SetError: the folder is not laid out as expected.
        ValueError: shots are not positive, or there is nothing to run.
    """
    shots = tuple(sorted(dict.fromkeys(shots)))
    if not shots or shots[0] < 1:
        raise ValueError(f"expected numbers of shots from 1 on, such as 1,4,8; got {shots or 'none'}")
    methods: dict[str, Method] = {b.name: b() for b in BASELINES} if baselines else {}
    methods.update(models or {})
    if not methods:
        raise ValueError("nothing to evaluate: give a model, or leave the baselines on")
    scores: list[Score] = []
    kept: list[Sample] = []
    for source in find_sets(data, sets):
        if isinstance(source, VideoSet):
            protocol, episodes, steps = "video", first_frame(source, limit=limit), (1,)
            total = sum(min(len(frames) - 1, limit or len(frames)) for _, frames in source.videos)
        elif any(fnmatch.fnmatch(source.name, pattern) for pattern in within):
            protocol, episodes, steps = "within", within_image(source, seed=seed, limit=limit), (1,)
            total = _total(source, limit)
        else:
            protocol, steps = "across", shots
            most = max(shots[-1], *(each.pool for each in methods.values() if isinstance(each, Selecting)), 1)
            episodes, total = across_images(source, most, seed=seed, limit=limit), _total(source, limit)
        if progress is not None:
            episodes = progress(source.name, episodes, total)
        found, shown = score_episodes(source.name, protocol, episodes, methods, steps, ensemble, samples, compared)
        scores += found
        kept += shown
    settings = {"seed": seed, "limit": limit, "shots": list(shots), "ensemble": ensemble}
    return Report(scores, kept, settings)


def score_episodes(
    name: str,
    protocol: str,
    episodes: Iterator[Episode],
    methods: dict[str, Method],
    shots: Sequence[int] = (1,),
    ensemble: str = "feature",
    samples: int = 0,
    compared: Mapping[str, str] | None = None,
) -> tuple[list[Score], list[Sample]]:
    """Runs methods on episodes.

    Args:
        name: of the set.
        protocol: "across", "within" or "video"; decides what `Score.miou` is.
        episodes: consumed once; each holds enough examples for the largest number of shots.
        methods: name -> method.
        shots: numbers of examples.
        ensemble: passed to the methods.
        samples: how many episodes to keep with their results, the first ones of different groups.
        compared: see `evaluate_folders`.

    Returns:
        A score for each method and number of shots; the samples.
    """
    runs = {(method, k): _Run() for method in methods for k in shots}
    kept: list[Sample] = []
    names: dict[int, str] = {}
    for episode in episodes:
        names.update({id: text for e in episode.examples for id, text in e.names.items()})
        results = {}
        for (method, k), run in runs.items():
            start, chosen = time.perf_counter(), methods[method]
            examples = list(episode.examples[:k])
            if isinstance(chosen, Selecting):
                examples = chosen.choose(episode.image, episode.examples[: chosen.pool], k)
            found = chosen.predict(episode.image, examples, ensemble=ensemble)
            run.add(found, episode, time.perf_counter() - start)
            results[method, k] = found
        for method, other in (compared or {}).items():
            for k in shots:
                runs[method, k].compare(results[method, k], results[other, k])
        fresh = not episode.group or all(episode.group != s.episode.group for s in kept)
        if len(kept) < samples and fresh:
            kept.append(Sample(name, episode, results))
    return [run.score(name, protocol, method, k, names) for (method, k), run in runs.items()], kept


class _Run:
    """Counts of one method at one number of shots on one set."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.groups: dict[str, list[float]] = {}
        self.queries = 0
        self.seconds = 0.0
        self.same = Tally()
        self.pixels: list[float] = []

    def add(self, found: Segmentation, episode: Episode, seconds: float) -> None:
        ious = self.tally.add(found.labels, episode.truth, episode.ids)
        frame = [1.0 if math.isnan(v) else v for v in ious.values()]
        self.groups.setdefault(episode.group, []).append(sum(frame) / len(frame))
        self.queries += 1
        self.seconds += seconds

    def compare(self, found: Segmentation, other: Segmentation) -> None:
        """Beside another method's answer to the same query."""
        self.same.add(found.labels, other.labels, sorted({*found.ids, *other.ids}))
        self.pixels.append(float((found.labels == other.labels).mean()))

    def score(self, name: str, protocol: str, method: str, shots: int, names: dict[int, str]) -> Score:
        parts = {names.get(id, str(id)): v for id, v in self.tally.per_class.items()}
        miou = self.tally.class_mean
        if protocol == "within":
            parts, miou = {}, self.tally.image_mean
        elif protocol == "video":
            parts = {video: sum(v) / len(v) for video, v in self.groups.items()}
            miou = sum(parts.values()) / len(parts) if parts else math.nan
        per_query = self.seconds / self.queries if self.queries else math.nan
        pixels = sum(self.pixels) / len(self.pixels) if self.pixels else math.nan
        masks = self.same.image_mean if self.pixels else math.nan
        return Score(
            name, protocol, method, shots, self.queries, miou, self.tally.image_mean, parts, per_query, pixels, masks
        )


def _total(source: ImageSet, limit: int | None) -> int:
    return min(len(source.items), limit or len(source.items))
