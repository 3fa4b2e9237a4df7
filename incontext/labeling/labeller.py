"""A predictor with its prompt, ready to label any number of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from incontext.labeling.config import LabelConfig
from incontext.labeling.disagreement import disagreement_score, views
from incontext.labeling.embedding import Embedder
from incontext.labeling.example_pool import ExamplePool
from incontext.labeling.reading import JobStopped
from incontext.labeling.side_by_side import count_side_by_side, side_by_side
from incontext.labeling.wholeness import mean_wholeness, usual_wholeness, wholeness
from incontext.predictor import Predictor
from incontext.prompt import Prompt, Source
from incontext.types import Segmentation


@dataclass(frozen=True, eq=False)
class Labelled:
    """What the model says about one image.

    Attributes:
        segmentation: its labels.
        usual: id -> how whole its masks are in the examples; see `wholeness`.
        disagreement: of other views, 0..1; None where none was asked.
    """

    segmentation: Segmentation
    usual: Mapping[int, float]
    disagreement: float | None = None

    @cached_property
    def wholeness(self) -> float | None:
        """Of its masks, 0..1; None where there is none. Computed by whoever asks: a thread that writes, and not the one
        that the model waits for."""
        return mean_wholeness(wholeness(self.segmentation.labels, self.usual))


class Labeller:
    """Labels images in their order. The prompt stays prepared for as long as the labeller lives."""

    def __init__(self, predictor: Predictor, prompt: Prompt, config: LabelConfig, cache: Path | None = None) -> None:
        """
        Args:
            predictor: on the device that is to compute.
            prompt: what it shows; with `config.select` its examples are the pool to choose from.
            config: how.
            cache: a folder in which the pool's embeddings are kept.
        """
        self.predictor, self.prompt, self.config, self.cache = predictor, prompt, config, cache
        self.batch_size = config.batch_size or (1 if predictor.device.type == "cpu" else 8)
        selects = config.select is not None and config.select < len(prompt.examples)
        self._pool = None
        if selects:
            self._pool = ExamplePool(predictor, prompt.examples, embedder=Embedder(predictor, cache))
        self._views = views(predictor, config.recolourings)
        self._usual = usual_wholeness(prompt.examples)
        self._at_once = 1 if selects else count_side_by_side(predictor, self.batch_size)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Labelled]:
        """Labels images lazily: takes a bounded number ahead, in the calling thread.

        Args:
            images: uint8 (H, W, 3) each, of any sizes.

        Raises:
            JobStopped: the device has too little memory.
        """
        try:
            if self._at_once > 1:
                with closing(side_by_side(self._predict, images, self._at_once)) as labelled:
                    yield from labelled
            elif self._pool is None and not self.config.recolourings:
                yield from (Labelled(each, self._usual) for each in self._predict_many(images))
            elif self._pool is None:
                yield from self._predict_and_compare(images)
            else:
                yield from map(self._predict, images)
        except torch.OutOfMemoryError as error:
            raise JobStopped(
                f"the device's memory is too small for batches of {self.batch_size}; choose a smaller batch size "
                f"and start again, the job goes on where it stopped ({error})"
            ) from error

    @property
    def _manner(self) -> dict:
        config = self.config
        return {
            "ensemble": config.ensemble,
            "kind": config.kind,
            "flip": config.flip,
            "tile": config.tile,
            "overlap": config.overlap,
            "batch_size": self.batch_size,
        }

    def _predict(self, image: np.ndarray) -> Labelled:
        shown, sources = self.prompt, self.prompt.sources
        if self._pool is not None:
            shown = sources = (*self.prompt.packs, *self._pool.pick(image, self.config.select))
        segmentation = self.predictor.predict(image, shown, **self._manner)
        disagreement = self._disagree(segmentation, image, sources) if self._views else None
        return Labelled(segmentation, self._usual, disagreement)

    def _predict_many(self, images: Iterable[np.ndarray]) -> Iterator[Segmentation]:
        return self.predictor.predict_many(images, self.prompt, threads=self.config.threads, **self._manner)

    def _predict_and_compare(self, images: Iterable[np.ndarray]) -> Iterator[Labelled]:
        ahead: deque[np.ndarray] = deque()

        def remembered() -> Iterator[np.ndarray]:
            for image in images:
                ahead.append(image)
                yield image

        for segmentation in self._predict_many(remembered()):
            disagreement = self._disagree(segmentation, ahead.popleft(), self.prompt.sources)
            yield Labelled(segmentation, self._usual, disagreement)

    def _disagree(self, found: Segmentation, image: np.ndarray, sources: Sequence[Source]) -> float:
        return disagreement_score(found, [view.predict(image, sources, **self._manner) for view in self._views])
