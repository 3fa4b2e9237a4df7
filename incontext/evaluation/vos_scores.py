"""Scores of tracked videos: which frames count, and how they are averaged.

An object counts on the annotated frames after the one where it is given, but for the video's last: in DAVIS, all frames
but the first and the last. Its mean, recall and decay go over these frames; the numbers of a data set are means over
objects, not over videos, as in the DAVIS toolkit. YouTube-VOS's server has kept its code to itself; its overall number
G is the mean of J and F over seen and unseen categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from incontext.evaluation.vos_metrics import Statistics, boundary, region, statistics
from incontext.evaluation.vos_videos import Video, VideoError, read_result


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object of one video.

    Attributes:
        video: the video's name.
        id: the object's.
        category: where known, else "".
        frames: how many counted.
        j: region similarity.
        f: boundary accuracy.
    """

    video: str
    id: int
    category: str
    frames: int
    j: Statistics
    f: Statistics

    @property
    def jf(self) -> float:
        """Mean of J and F, 0..1."""
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True)
class Summary:
    """Means over objects: J&F, then J and F with recall and decay."""

    jf: float
    j: Statistics
    f: Statistics
    objects: int


def score_video(video: Video, result: Callable[[str], np.ndarray]) -> list[ObjectScore]:
    """Scores one video.

    Args:
        video: with annotations.
        result: frame name -> int (H, W), the labels found. It is asked once for each frame that counts, in order.

    Returns:
        A score for each object that counts on a frame at least, by id. Ids that the truth lacks are not looked at.

    Raises:
        VideoError: a result has another size than its truth.
    """
    annotated = video.annotated
    order = {name: place for place, name in enumerate(annotated)}
    values: dict[int, list[tuple[float, float]]] = {id: [] for id in sorted(video.starts)}
    for name in annotated[1:-1]:
        counting = [id for id, start in video.starts.items() if order[start] < order[name]]
        if not counting:
            continue
        truth, found = video.truth(name), result(name)
        if truth.shape != found.shape:
            raise VideoError(
                f"{video.name}/{name}: expected a mask of the truth's size (H, W) {truth.shape}, got {found.shape}; "
                "save results at the size of the frames"
            )
        for id in counting:
            prediction, mask = found == id, truth == id
            values[id].append((region(prediction, mask), boundary(prediction, mask)))
    return [
        ObjectScore(
            video.name,
            id,
            video.categories.get(id, ""),
            len(pairs),
            statistics([j for j, _ in pairs]),
            statistics([f for _, f in pairs]),
        )
        for id, pairs in values.items()
        if pairs
    ]


def summarise(scores: Sequence[ObjectScore]) -> Summary:
    """Means over objects; nan where there are none."""
    j, f = (_mean_statistics([getattr(score, measure) for score in scores]) for measure in ("j", "f"))
    return Summary((j.mean + f.mean) / 2, j, f, len(scores))


def by_video(scores: Iterable[ObjectScore]) -> dict[str, Summary]:
    """Video -> means over its objects, in the order of the scores."""
    groups: dict[str, list[ObjectScore]] = {}
    for score in scores:
        groups.setdefault(score.video, []).append(score)
    return {name: summarise(group) for name, group in groups.items()}


def seen_and_unseen(scores: Sequence[ObjectScore], seen: Collection[str]) -> dict[str, Summary]:
    """YouTube-VOS's two halves: "seen" and "unseen" categories.

    Args:
        scores: with categories.
        seen: the categories that training shows.
    """
    return {
        "seen": summarise([score for score in scores if score.category in seen]),
        "unseen": summarise([score for score in scores if score.category not in seen]),
    }


def _mean_statistics(values: Sequence[Statistics]) -> Statistics:
    if not values:
        return Statistics(math.nan, math.nan, math.nan)
    rows = np.array([(v.mean, v.recall, v.decay) for v in values])
    return Statistics(*rows.mean(axis=0).tolist())


def score_folder(videos: Iterable[Video], folder: Path) -> tuple[list[ObjectScore], dict[str, str]]:
    """Scores indexed PNGs, FOLDER/VIDEO/FRAME.png, made here or elsewhere.

    Args:
        videos: those that are not scorable have no truth to score against, and are left out.
        folder: of the masks.

    Returns:
        The scores; and video -> why it could not be scored.
    """
    scores: list[ObjectScore] = []
    failures: dict[str, str] = {}
    for video in videos:
        if not video.scorable:
            continue
        try:
            scores += score_video(video, lambda name, v=video: read_result(folder / v.name / f"{name}.png", v.binary))
        except (ValueError, OSError) as error:
            failures[video.name] = str(error)
    return scores, failures
