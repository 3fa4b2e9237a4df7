"""A prompt pack against real examples, on labelled images that neither has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from incontext.evaluation.metrics import Tally
from incontext.pack import PromptPack
from incontext.predictor import Predictor
from incontext.types import IGNORE, Example


@dataclass(frozen=True)
class PackScore:
    """mIoU (`Tally.class_mean`, 0..1) at the images' own size.

    Attributes:
        images: how many were segmented.
        pack: of the pack.
        real: of each draw of real examples.
    """

    images: int
    pack: float
    real: tuple[float, ...]

    def describe(self, name: str, shots: int) -> dict[str, str | int | float]:
        """The score as a card tells it, in percent."""
        told: dict[str, str | int | float] = {
            "test set": name,
            "test images": self.images,
            "test mIoU, this pack (percent)": round(100 * self.pack, 2),
        }
        if self.real:
            draws = f"{len(self.real)} draws" if len(self.real) > 1 else "one draw"
            real = f"{shots} real example{'s' * (shots > 1)}"
            told[f"test mIoU, {real}, mean of {draws}"] = round(100 * float(np.mean(self.real)), 2)
            told[f"test mIoU, {real}, best draw"] = round(100 * max(self.real), 2)
        return told


def score_pack(
    predictor: Predictor,
    pack: PromptPack,
    images: Iterable[Example],
    draws: Sequence[Sequence[Example]] = (),
) -> PackScore:
    """Scores a pack, and lists of real examples in its place, used as the pack is: kind, ensemble and tile.

    Args:
        predictor: of the pack's model.
        pack: the pack.
        images: images with their truth; classes are the pack's by name, by id where they have none.
        draws: lists of real examples.
    """
    methods = [pack, *(tuple(by_name(each, pack.names) for each in draw) for draw in draws)]
    prompts = [predictor.prompt(sources) for sources in methods]
    tallies = [Tally() for _ in prompts]
    count = 0
    for example in images:
        truth = by_name(example, pack.names).labels
        for prompt, tally in zip(prompts, tallies, strict=True):
            manner = {"ensemble": pack.ensemble, "kind": pack.kind, "tile": pack.tile}
            tally.add(predictor.predict(example.image, prompt, **manner).labels, truth, pack.ids)
        count += 1
    first, *others = (tally.class_mean for tally in tallies)
    return PackScore(count, first, tuple(others))


def by_name(example: Example, names: Mapping[int, str]) -> Example:
    """The example with the ids that its classes have in `names`; classes that are not there are background."""
    known = {name: id for id, name in names.items()}
    labels = np.zeros_like(example.labels)
    labels[example.labels == IGNORE] = IGNORE
    for id in example.ids:
        new = known.get(example.names[id], 0) if id in example.names else id * (id in names)
        labels[example.labels == id] = new
    return Example(example.image, labels, names)
