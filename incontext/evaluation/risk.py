"""Do scores find the bad masks? Risk-coverage curves of scores against chance, mask size and perfect knowledge.

Results are sorted by a score, the most trusted first. Coverage is the part that is kept, risk the mean of 1 - IoU over
what is kept (El-Yaniv and Wiener 2010; the area under the curve, AURC: Geifman et al. 2019). The user who looks at the
rest first wants it low early.

The protocol is that of a label job: of each set a few images are painted, once, and all others are labelled. Of a video
the first frame is painted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        name: of the query, with "#ID" for a mask.
        risk: 1 - IoU, 0..1.
        scores: kind -> score; high is good.
    """

    set: str
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
        curves: kind -> curve, with "random" (its expectation) and "oracle" (sorted by the risk itself).
    """

    level: str
    results: tuple[Judged, ...]
    curves: Mapping[str, RiskCurve]

    @classmethod
    def of(cls, level: str, results: Iterable[Judged]) -> RiskReport:
        """Draws the curves.

        Raises:
            ValueError: there is no result.
        """
        results = tuple(results)
        risks = [each.risk for each in results]
        kinds = {kind: [each.scores[kind] for each in results] for kind in (results[0].scores if results else ())}
        kinds = {"random": [0.0] * len(results), **kinds, "oracle": [-risk for risk in risks]}
        return cls(level, results, {kind: risk_curve(scores, risks) for kind, scores in kinds.items()})

    def gain(self, kind: str) -> float:
        """How far from chance (0) towards perfect knowledge (1) a kind of score gets: of AURC. nan where all results
        are equally good."""
        area = {name: self.curves[name].area for name in ("random", kind, "oracle")}
        room = area["random"] - area["oracle"]
        return (area["random"] - area[kind]) / room if room > 0 else float("nan")

    def within_sets(self, kind: str) -> float:
        """The mean over sets of each set's own gain: what sorting is worth to one job. nan where no set has room."""
        names = dict.fromkeys(each.set for each in self.results)
        parts = [RiskReport.of(self.level, [each for each in self.results if each.set == name]) for name in names]
        gains = [gain for part in parts if not np.isnan(gain := part.gain(kind))]
        return float(np.mean(gains)) if gains else float("nan")

    def table(self) -> list[dict[str, Any]]:
        """A row for each kind, the best AURC first, as JSON takes it."""
        rows = [
            {
                "score": kind,
                "aurc": _plain(curve.area),
                "gain": _plain(self.gain(kind)),
                "gain_within_sets": _plain(self.within_sets(kind)),
                "bad_found": _plain(curve.bad_found),
            }
            for kind, curve in self.curves.items()
        ]
        return sorted(rows, key=lambda row: row["aurc"])


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
        scores = {kind: trust.image for kind, trust in trusts.items()}
        images.append(Judged(name, episode.name, 1 - float(np.mean(list(ious.values()))), {**scores, SIZE: area}))
        for id in found.ids:
            if id in ious:
                size = int(found.mask(id).sum()) / found.labels.size
                scores = {kind: trust.masks[id] for kind, trust in trusts.items() if trust.masks}
                masks.append(Judged(name, f"{episode.name}#{id}", 1 - ious[id], {**scores, SIZE: size}))
    return masks, images


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else round(float(value), 5)
