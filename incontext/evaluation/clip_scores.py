"""Do ids stay with their objects? Switches, losses and ghosts on clips whose truth is known.

A found and a true object of one frame match if their IoU is above 0.5, which can hold for one pair only. Ids start as
given. A switch is counted where an object matches another id than it last did, as in MOTS (Voigtlaender et al., CVPR
2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from incontext.evaluation import tables
from incontext.evaluation.metrics import iou
from incontext.evaluation.vos_metrics import boundary, region
from incontext.evaluation.vos_tracking import Track
from incontext.scenes.clips import Clip, render_clip

_MATCH = 0.5
_SEEN = 0.25  # of its area in the first frame: what shows less is too small to be asked for


@dataclass(frozen=True)
class IdCounts:
    """Counts over objects and frames, the first frame left out.

    Attributes:
        switches: how often an object took another id.
        lost: frames of a visible object that matches no id.
        ghosts: frames in which an id is painted though its object is not there at all.
        visible: frames of visible objects.
        hidden: frames of objects that are not there.
    """

    switches: int = 0
    lost: int = 0
    ghosts: int = 0
    visible: int = 0
    hidden: int = 0

    def __add__(self, other: IdCounts) -> IdCounts:
        return IdCounts(*(a + b for a, b in zip(self._values, other._values, strict=True)))

    @property
    def _values(self) -> tuple[int, ...]:
        return self.switches, self.lost, self.ghosts, self.visible, self.hidden


def count_ids(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> IdCounts:
    """Counts on one clip.

    Args:
        found: T times int (H, W).
        truth: T times int (H, W); the first frame shows all objects.

    Raises:
        ValueError: not as many results as frames, or the sizes differ.
    """
    if len(found) != len(truth):
        raise ValueError(f"expected a result for each of {len(truth)} frames, got {len(found)}")
    ids = [int(id) for id in np.unique(truth[0]) if id > 0]
    full = {id: np.count_nonzero(truth[0] == id) for id in ids}
    last = {id: id for id in ids}
    counts = IdCounts()
    for prediction, labels in zip(found[1:], truth[1:], strict=True):
        painted = [int(id) for id in np.unique(prediction) if id > 0]
        for id in ids:
            there = labels == id
            area = np.count_nonzero(there)
            if not area:
                counts += IdCounts(ghosts=int(id in painted), hidden=1)
            elif area >= _SEEN * full[id]:
                match = next((p for p in painted if iou(prediction == p, there) > _MATCH), None)
                counts += IdCounts(switches=int(match not in (None, last[id])), lost=int(match is None), visible=1)
                last[id] = last[id] if match is None else match
    return counts


@dataclass(frozen=True)
class ClipScore:
    """One way of tracking on clips of one number of objects.

    Attributes:
        objects: in each clip.
        counts: summed over the clips.
        j, f: means over objects of their means over frames, 0..1; see `vos_scores`.
        frames: that were tracked.
        seconds: what they took.
    """

    objects: int
    counts: IdCounts
    j: float
    f: float
    frames: int
    seconds: float


def random_clips(
    objects: int, clips: int, *, size: tuple[int, int] = (192, 192), frames: int = 32, seed: int = 0
) -> Iterator[Clip]:
    """Clips in which everything happens that there are objects for; the same ones for the same arguments."""
    for number in range(clips):
        yield render_clip(np.random.default_rng([seed, objects, number]), size, frames, objects)


def score_clips(objects: int, clips: Iterable[Clip], track: Track) -> ClipScore:
    """Tracks clips from their first frame.

    Args:
        objects: in each clip.
        clips: what to track.
        track: the tracker.
    """
    counts, frames, seconds = IdCounts(), 0, 0.0
    js: list[float] = []
    fs: list[float] = []
    for clip in clips:
        start = time.perf_counter()
        found = list(track(iter(clip.frames), {0: clip.labels[0]}))
        seconds += time.perf_counter() - start
        frames += len(found)
        counts += count_ids(found, clip.labels)
        inner = list(zip(found[1:-1], clip.labels[1:-1], strict=True))
        for id in range(1, objects + 1):
            js.append(float(np.mean([region(prediction == id, labels == id) for prediction, labels in inner])))
            fs.append(float(np.mean([boundary(prediction == id, labels == id) for prediction, labels in inner])))
    return ClipScore(objects, counts, float(np.mean(js)), float(np.mean(fs)), frames, seconds)


def clip_table(runs: Mapping[str, Sequence[ClipScore]]) -> list[list[str]]:
    """A row for each run and number of objects; percent but for the switches."""
    rows = [["run", "objects", "switches", "lost", "ghosts", "J&F", "J", "F", "frames/s"]]
    for name, scores in runs.items():
        for s in scores:
            c = s.counts
            shares = (
                part / whole if whole else math.nan for part, whole in ((c.lost, c.visible), (c.ghosts, c.hidden))
            )
            measures = map(tables.percent, (*shares, (s.j + s.f) / 2, s.j, s.f))
            rows.append([name, str(s.objects), str(c.switches), *measures, f"{s.frames / s.seconds:.2f}"])
    return rows
