"""A predictor with its examples, ready to label any number of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from incontext.labeling.config import LabelConfig
from incontext.labeling.disagreement import disagreement_score, recoloured
from incontext.labeling.example_pool import ExamplePool
from incontext.labeling.reading import JobStopped
from incontext.predictor import Predictor
from incontext.types import Example, Segmentation


@dataclass(frozen=True, eq=False)
class Labelled:
    """What the model says about one image.

    Attributes:
        segmentation: its labels.
        disagreement: between recolourings, 0..1; None where there were none.
    """

    segmentation: Segmentation
    disagreement: float | None = None


class Labeller:
    """Labels images in their order. The examples are prepared once, for as long as the labeller lives."""

    def __init__(
        self, predictor: Predictor, examples: Sequence[Example], config: LabelConfig, cache: Path | None = None
    ) -> None:
        """
        Args:
            predictor: on the device that is to compute.
            examples: all of them; with `config.select` the pool to choose from.
            config: how.
            cache: a folder in which the pool's embeddings are kept.
        """
        self.predictor, self.examples, self.config, self.cache = predictor, tuple(examples), config, cache
        self.batch_size = config.batch_size or (1 if predictor.device.type == "cpu" else 8)
        selects = config.select is not None and config.select < len(self.examples)
        self._pool = ExamplePool(predictor, self.examples, cache=cache) if selects else None
        self._prompt = None if selects else predictor.prompt(self.examples)
        self._recoloured = recoloured(predictor, config.recolourings)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Labelled]:
        """Labels images lazily: takes a bounded number ahead, in the calling thread.

        Args:
            images: uint8 (H, W, 3) each, of any sizes.

        Raises:
            JobStopped: the device has too little memory.
        """
        try:
            if self._pool is None and not self.config.recolourings:
                yield from map(Labelled, self._predict_many(images))
            elif self._pool is None:
                yield from self._predict_and_compare(images)
            else:
                for image in images:
                    yield self._predict_by_choice(image)
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
            "flip": config.flip,
            "tile": config.tile,
            "overlap": config.overlap,
            "batch_size": self.batch_size,
        }

    def _predict_many(self, images: Iterable[np.ndarray]) -> Iterator[Segmentation]:
        return self.predictor.predict_many(images, self._prompt, threads=self.config.threads, **self._manner)

    def _predict_and_compare(self, images: Iterable[np.ndarray]) -> Iterator[Labelled]:
        ahead: deque[np.ndarray] = deque()

        def remembered() -> Iterator[np.ndarray]:
            for image in images:
                ahead.append(image)
                yield image

        for segmentation in self._predict_many(remembered()):
            yield Labelled(segmentation, self._disagree(ahead.popleft(), self.examples))

    def _predict_by_choice(self, image: np.ndarray) -> Labelled:
        chosen = self._pool.pick(image, self.config.select)
        segmentation = self.predictor.predict(image, chosen, **self._manner)
        return Labelled(segmentation, self._disagree(image, chosen) if self.config.recolourings else None)

    def _disagree(self, image: np.ndarray, examples: Sequence[Example]) -> float:
        return disagreement_score([each.predict(image, examples, **self._manner) for each in self._recoloured])
