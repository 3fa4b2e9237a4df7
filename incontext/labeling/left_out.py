"""Examples predicted from others: what any choice of examples is worth, measured on those that were left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from incontext.image import resize_image, resize_labels
from incontext.predictor import Predictor
from incontext.types import IGNORE, Example

_MEASURED_SIDE = 512
"""Longest side, in pixels, at which IoU is measured: decoding more costs time and moves it by little."""


class LeftOut:
    """IoU of examples that are predicted from others. What was predicted once is not predicted again.

    Attributes:
        examples: in the user's order.
        predictions: how many were made.
    """

    def __init__(
        self, predictor: Predictor, examples: Sequence[Example], *, journal: str | os.PathLike | None = None
    ) -> None:
        """
        Args:
            predictor: predicts; the same colours are used for every choice of examples.
            examples: at least two.
            journal: a file of JSON lines that results are added to as they come, and taken from in later runs.
        """
        self.predictor = predictor
        self.examples = tuple(_shrink(example) for example in examples)
        self.predictions = 0
        self._prompt = predictor.prompt(self.examples)
        self._known: dict[str, float] = {}
        self._journal = None if journal is None else Path(journal)
        if self._journal is not None:
            settings = (predictor.fingerprint, predictor.kind, predictor.ids_per_pass, predictor.refine, predictor.seed)
            self._settings = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
            self._known = _read(self._journal)
        self._digests = [_digest(example) for example in self.examples]

    def ious(
        self, tasks: Iterable[tuple[int, Sequence[int]]], *, done: Callable[[], object] = lambda: None
    ) -> list[float]:
        """IoU of examples, each predicted from a choice of others.

        Args:
            tasks: (example, the others that are shown) as indexes; an example is never shown to itself.
            done: called after each task.

        Returns:
            For each task 0..1: the mean over ids that the example holds or that were found in it; 1 where there
            are none of either. 0 where nothing is shown.
        """
        found = []
        for query, shown in tasks:
            shown = tuple(sorted(set(shown) - {query}))
            key = self._key(query, shown)
            if key not in self._known:
                self._known[key] = self._predict(query, shown)
                self._write(key)
            found.append(self._known[key])
            done()
        return found

    def labels(self, query: int, shown: Sequence[int]) -> np.ndarray:
        """What is found in an example when others are shown: int32 (h, w), all 0 where they show nothing."""
        examples = tuple(self.examples[k] for k in sorted(set(shown) - {query}))
        ids = {id for example in examples for id in example.ids}
        palettes = tuple(palette for palette in self._prompt.palettes if ids.intersection(palette.ids))
        if not palettes:
            return np.zeros(self.examples[query].size, np.int32)
        # The whole set's colours, so that choices differ in what they show and in nothing else. Apart: an example
        # is encoded once for all choices. Not one by one: that would take several times as long.
        prompt = dataclasses.replace(self._prompt, examples=examples, palettes=palettes, apart=True, one_by_one=False)
        self.predictions += 1
        return self.predictor.predict(self.examples[query].image, prompt).labels

    def _predict(self, query: int, shown: tuple[int, ...]) -> float:
        return mean_iou(self.labels(query, shown), self.examples[query].labels)

    def _key(self, query: int, shown: tuple[int, ...]) -> str:
        if self._journal is None:
            return f"{query}:{shown}"
        parts = (self._settings, self._digests[query], *(self._digests[k] for k in shown))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]

    def _write(self, key: str) -> None:
        if self._journal is not None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "iou": self._known[key]}) + "\n")


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union, averaged over the ids that occur in either.

    Args:
        found: int (H, W).
        truth: int (H, W); pixels that are `IGNORE` don't count.

    Returns:
        0..1; 1 where neither holds an id.
    """
    valid = truth != IGNORE
    found, truth = found[valid], truth[valid]
    ids = [id for id in np.union1d(found, truth) if id > 0]
    ious = [np.count_nonzero((found == i) & (truth == i)) / np.count_nonzero((found == i) | (truth == i)) for i in ids]
    return float(np.mean(ious)) if ious else 1.0


def _shrink(example: Example) -> Example:
    scale = min(1.0, _MEASURED_SIDE / max(example.size))
    size = tuple(max(1, round(side * scale)) for side in example.size)
    return Example(resize_image(example.image, size), resize_labels(example.labels, size), example.names)


def _digest(example: Example) -> str:
    digest = hashlib.sha256(str(example.size).encode())
    digest.update(np.ascontiguousarray(example.image))
    digest.update(np.ascontiguousarray(example.labels))
    return digest.hexdigest()[:32]


def _read(journal: Path) -> dict[str, float]:
    """Results of earlier runs. A line that was cut off is passed over, and its prediction made again."""
    known = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            row = json.loads(line)
            known[str(row["key"])] = float(row["iou"])
        except (ValueError, TypeError, KeyError):
            continue
    return known
