"""Do scores find the bad masks? Risk-coverage curves of scores against chance, mask size and a perfect order.

Results are sorted by a score, the most trusted first. Coverage is the part that is kept, risk the mean of 1 - IoU over
what is kept (El-Yaniv and Wiener 2010; the area under the curve, AURC: Geifman et al. 2019). The user who looks at the
rest first wants it low early.

The protocol is that of a label job: of each set a few images are painted, once, and all others are labelled. Of a video
the first frame is painted. Results are sorted within a job only, as a user does: a score that merely knows which set
is easy would else look as if it could sort. Numbers are means over the sets, each the mean over its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from incontext.evaluation.episodes import Episode
from incontext.evaluation.metrics import iou
from incontext.labelled_folders import ImageSet, Item, SetError
from incontext.types import Example, Segmentation

BAD = 0.5
"""A mask of a lower IoU counts as bad."""

REVIEWED = 0.2
"""The part of all results that a person looks at, in "bad masks found"."""

SIZE = "mask size"
"""The baseline that needs no confidence: small masks are the worst."""

CHANCE, PERFECT = "chance", "perfect order"
"""The ends of the scale: any order, in expectation, and results sorted by the risk itself."""


class Judge(Protocol):
    """Predicts, and says how much to trust what it predicts."""

    def __call__(self, image: np.ndarray, examples: Sequence[Example]) -> tuple[Segmentation, Mapping[str, Trust]]: ...


@dataclass(frozen=True)
class Trust:
    """What one kind of score says of one result.

    Attributes:
        image: of the whole image; high is good.
        masks: id -> of each mask, for the ids that were found; empty where this kind has no such score.
    """

    image: float
    masks: Mapping[int, float]


@dataclass(frozen=True)
class Judged:
    """One result: an image, or one mask in it.

    Attributes:
        set: name of its set.
        job: what was labelled with the same examples: the set, or "SET/VIDEO".
        name: of the query, with "#ID" for a mask.
        risk: 1 - IoU, 0..1.
        scores: kind -> score; high is good.
    """

    set: str
    job: str
    name: str
    risk: float
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """Risk over coverage for one order of results.

    Attributes:
        coverage: float (n,), 1/n to 1.
        risk: float (n,): mean risk of what is kept. Results of equal score come in a random order, on average.
        bad_found: part of all bad results that lie in the least trusted `REVIEWED`; nan where none is bad.
    """

    coverage: np.ndarray
    risk: np.ndarray
    bad_found: float

    @property
    def area(self) -> float:
        """AURC: the mean risk over all coverages, 0..1; lower is better."""
        return float(self.risk.mean())


def risk_curve(scores: Sequence[float], risks: Sequence[float]) -> RiskCurve:
    """The curve of one kind of score.

    Args:
        scores: n numbers, high is good.
        risks: n numbers in 0..1.

    Raises:
        ValueError: there are none, or not as many of one as of the other, or a score is nan.
    """
    values, losses = np.asarray(scores, np.float64), np.asarray(risks, np.float64)
    if values.shape != losses.shape or values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"expected as many scores as risks, at least one, and no nan; got {values.shape} and {losses.shape}"
        )
    order = np.argsort(-values, kind="stable")
    _, group, counts = np.unique(-values[order], return_inverse=True, return_counts=True)
    # Among equal scores any order may come: each place then holds the mean of the group.
    expected, bad = ((np.bincount(group, part[order]) / counts)[group] for part in (losses, losses > 1 - BAD))
    count = len(values)
    reviewed = REVIEWED * count
    weights = np.clip(reviewed - np.arange(count)[::-1], 0, 1)  # the last ones are looked at, one of them in part
    found = float((bad * weights).sum() / bad.sum()) if bad.any() else float("nan")
    steps = np.arange(1, count + 1)
    return RiskCurve(steps / count, np.cumsum(expected) / steps, found)


@dataclass(frozen=True, eq=False)
class RiskReport:
    """Curves of all kinds of scores on the same results.

    Attributes:
        level: "masks" or "images".
        results: what was judged.
        kinds: of scores, with `CHANCE` and `PERFECT`.
        sets: set -> for each of its jobs, kind -> curve.
    """

    level: str
    results: tuple[Judged, ...]
    kinds: tuple[str, ...]
    sets: Mapping[str, tuple[Mapping[str, RiskCurve], ...]]

    @classmethod
    def of(cls, level: str, results: Iterable[Judged]) -> RiskReport:
        """Draws the curves.

        Raises:
            ValueError: there is no result.
        """
        results = tuple(results)
        if not results:
            raise ValueError(f"expected {level} to judge, got none")
        jobs: dict[str, dict[str, list[Judged]]] = {}
        for each in results:
            jobs.setdefault(each.set, {}).setdefault(each.job, []).append(each)
        sets = {name: tuple(_curves(job) for job in of_set.values()) for name, of_set in jobs.items()}
        return cls(level, results, tuple(sets[results[0].set][0]), sets)

    def areas(self, kind: str) -> dict[str, float]:
        """Set -> AURC, 0..1; lower is better."""
        return self._by_set(lambda curves: curves[kind].area)

    def gains(self, kind: str) -> dict[str, float]:
        """Set -> how far from chance (0) towards a perfect order (1) a kind of score gets: of AURC. Jobs whose
        results are all equally good have no room for either, and sets of such jobs alone are left out."""

        def gain(curves: Mapping[str, RiskCurve]) -> float:
            room = curves[CHANCE].area - curves[PERFECT].area
            return (curves[CHANCE].area - curves[kind].area) / room if room > 1e-9 else float("nan")

        return self._by_set(gain)

    def bad_found(self, kind: str) -> dict[str, float]:
        """Set -> part of the bad results that a person finds; see `RiskCurve`. Sets without any are left out."""
        return self._by_set(lambda curves: curves[kind].bad_found)

    def risk_at(self, kind: str, coverage: np.ndarray) -> np.ndarray:
        """Mean risk over the sets of what is kept.

        Args:
            kind: of score.
            coverage: float (n,), 0..1, rising.

        Returns:
            float (n,).
        """
        of_sets = (
            [np.interp(coverage, curves[kind].coverage, curves[kind].risk) for curves in jobs]
            for jobs in self.sets.values()
        )
        return np.mean([np.mean(risks, axis=0) for risks in of_sets], axis=0)

    def table(self) -> list[dict[str, Any]]:
        """A row for each kind, the best AURC first, as JSON takes it: means over the sets, and the gain in each."""
        rows = [
            {
                "score": kind,
                "aurc": _mean(self.areas(kind)),
                "gain": _mean(self.gains(kind)),
                "bad_found": _mean(self.bad_found(kind)),
                "gain_by_set": {name: round(gain, 5) for name, gain in self.gains(kind).items()},
            }
            for kind in self.kinds
        ]
        return sorted(rows, key=lambda row: row["aurc"])

    def _by_set(self, measure: Callable[[Mapping[str, RiskCurve]], float]) -> dict[str, float]:
        """The mean over each set's jobs of what is a number there."""
        found = {name: [measure(curves) for curves in jobs] for name, jobs in self.sets.items()}
        known = {name: [value for value in values if not np.isnan(value)] for name, values in found.items()}
        return {name: float(np.mean(values)) for name, values in known.items() if values}


def _curves(results: Sequence[Judged]) -> dict[str, RiskCurve]:
    """The curves of one job: kind -> curve."""
    risks = [each.risk for each in results]
    kinds = {kind: [each.scores[kind] for each in results] for kind in results[0].scores}
    kinds = {CHANCE: [0.0] * len(results), **kinds, PERFECT: [-risk for risk in risks]}
    return {kind: risk_curve(scores, risks) for kind, scores in kinds.items()}


def painted_once(source: ImageSet, shots: int, *, seed: int = 0, limit: int | None = None) -> Iterator[Episode]:
    """Episodes of a label job: the same few images of a set are the examples of all others.

    The examples are drawn so that their classes add up: at each step an image that shows most of the classes that are
    still missing, at random among equals. Classes that none of them shows are not asked for.

    Args:
        source: images with masks.
        shots: examples.
        seed: of the draw.
        limit: most queries, evenly spread.

    Raises:
        SetError: the set has no more images than `shots`.
    """
    items = [item for item in source.items if item.ids]
    if len(items) <= shots:
        raise SetError(f"{source.name}: expected more than {shots} images with labelled objects, got {len(items)}")
    order = [items[k] for k in np.random.default_rng([seed, len(items)]).permutation(len(items))]
    chosen: list[Item] = []
    missing = {id for item in items for id in item.ids}
    for _ in range(shots):
        best = max((item for item in order if item not in chosen), key=lambda item: len(missing & set(item.ids)))
        chosen.append(best)
        missing -= set(best.ids)
    examples = tuple(Example(*item.open_pair(), names=source.names) for item in chosen)
    ids = tuple(sorted({id for example in examples for id in example.ids}))
    queries = [item for item in items if item not in chosen]
    count = min(len(queries), limit or len(queries))
    for item in (queries[k * len(queries) // count] for k in range(count)):
        image, labels = item.open_pair()
        yield Episode(item.name, image, np.where(np.isin(labels, (*ids, 0)) | (labels < 0), labels, 0), examples, ids)


def judge_episodes(name: str, episodes: Iterable[Episode], judge: Judge) -> tuple[list[Judged], list[Judged]]:
    """Predicts episodes, and holds each result's scores against its true IoU.

    Args:
        name: of the set.
        episodes: of one set.
        judge: predicts and scores.

    Returns:
        The masks that were found, and the images. An image's IoU is the mean over the ids that it holds or that were
        found in it; images with neither are left out. The kind `SIZE` is added to the judge's own.
    """
    masks: list[Judged] = []
    images: list[Judged] = []
    for episode in episodes:
        found, trusts = judge(episode.image, episode.examples)
        valid = episode.truth >= 0
        area = int((found.labels[valid] > 0).sum()) / max(1, int(valid.sum()))
        ious = {id: iou(found.labels == id, episode.truth == id, valid) for id in episode.ids}
        ious = {id: value for id, value in ious.items() if not np.isnan(value)}
        if not ious:
            continue
        job = f"{name}/{episode.group}" if episode.group else name
        scores = {kind: trust.image for kind, trust in trusts.items()}
        images.append(Judged(name, job, episode.name, 1 - float(np.mean(list(ious.values()))), {**scores, SIZE: area}))
        for id in found.ids:
            if id in ious:
                size = int(found.mask(id).sum()) / found.labels.size
                scores = {kind: trust.masks[id] for kind, trust in trusts.items() if trust.masks}
                masks.append(Judged(name, job, f"{episode.name}#{id}", 1 - ious[id], {**scores, SIZE: size}))
    return masks, images


def _mean(values: Mapping[str, float]) -> float | None:
    """Rounded; None, as JSON has no nan, where there are none."""
    return round(float(np.mean(list(values.values()))), 5) if values else None
