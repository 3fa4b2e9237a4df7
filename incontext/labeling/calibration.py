"""How far to trust a confidence: the palette's temperature, fitted on the user's own examples, and scores from it.

Each example is left out and predicted from the others; the temperature that makes confidence say how often pixels are
right is the one that goes into `Predictor(temperature=...)`. Scores then say of each mask, and of each image, which IoU
to expect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from incontext.decoding import Decoder
from incontext.image import resize_image, resize_labels
from incontext.pack import PromptPack
from incontext.palette import DEFAULT_TEMPERATURE, Palette
from incontext.predictor import Predictor
from incontext.prompt import Source
from incontext.refinement import Refinement
from incontext.types import IGNORE, Example, Segmentation

RANGE = (2 * 8.0**2, 2 * 512.0**2)
"""Temperatures that are tried: a painted channel is off by 8 to 512 of 255."""

MOST_LEFT_OUT = 16
"""How many examples are left out, one at a time, at most; of more, evenly spread ones are used."""

_CEILING = 0.999
"""Confidence above this counts as this, or one wrong pixel of a saturated softmax would decide everything."""

_BINS = 15

_DENSE = 1 << 16
"""Ids up to this are looked up in a table of all of them."""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it changes.

    Attributes:
        temperature: for `Predictor(temperature=...)`.
        error: expected calibration error, 0..1: how far confidence is from accuracy on average.
        loss: mean negative log likelihood of "this pixel's label is right", in nats.
        default_error, default_loss: the same at `DEFAULT_TEMPERATURE`.
        held_out: "examples", "views" of a lone example, or "nothing" where there was no pixel to learn from.
        count: how many predictions it was fitted on.
    """

    temperature: float
    error: float
    loss: float
    default_error: float
    default_loss: float
    held_out: str
    count: int


@dataclass(frozen=True, eq=False)
class _Painted:
    """A left-out example beside what was painted for it, at a size that can be decoded many times.

    Attributes:
        image: uint8 (h, w, 3).
        truth: int32 (h, w); `IGNORE` also where the prompt could not know the id.
        paintings: float (3, h, w) in 0..255, one for each pass.
        palettes: of the passes.
        refinement: of `image`, or None.
    """

    image: np.ndarray
    truth: np.ndarray
    paintings: tuple[torch.Tensor, ...]
    palettes: tuple[Palette, ...]
    refinement: Refinement | None

    def judge(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Confidence (n,) and whether the label is right, bool (n,), of the pixels whose truth is known."""
        decoder = Decoder(self.truth.shape, self.palettes, torch.device("cpu"), temperature, self.refinement)
        for painting in self.paintings:
            decoder.add([painting])
        found = decoder.finish({})
        known = self.truth != IGNORE
        return found.confidence[known], (found.labels == self.truth)[known]


def fit_temperature(
    predictor: Predictor, examples: Sequence[Example], packs: Sequence[PromptPack] = (), **manner: Any
) -> float:
    """The temperature of `calibrate`, in squared colour units."""
    return calibrate(predictor, examples, packs, **manner).temperature


def calibrate(
    predictor: Predictor,
    examples: Sequence[Example],
    packs: Sequence[PromptPack] = (),
    *,
    ensemble: str | None = None,
    kind: str | None = None,
    tile: int | str | None = "thin",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Calibration:
    """Fits the temperature by leaving out one example at a time.

    Pixels of a class that no other example shows don't count, nor does `IGNORE`. Of a lone example, mirrored and
    cropped views are predicted from itself. Those are easier than new images, so the temperature can only rise
    above the default: confidence never grows on such weak evidence.

    Packs are shown with the others, if they have a class in common with the examples, which tell nothing of where
    other classes are. A lone example is then predicted from the packs.

    Costs one prediction for each of at most `MOST_LEFT_OUT` examples, from the others.

    Args:
        predictor: its own temperature plays no part.
        examples: at least one.
        packs: as a `Prompt` of both holds them: what they share with the examples has one name and one id.
        ensemble, kind, tile: as the predictions will be made; see `Predictor.predict`.
        progress: wraps the loop over predictions, for example in `tqdm`.

    Raises:
        ValueError: there is no example.
    """
    if not examples:
        raise ValueError("expected at least one example to calibrate on, got none")
    count = min(len(examples), MOST_LEFT_OUT)
    chosen = [examples[k * len(examples) // count] for k in range(count)]
    known = {id for each in chosen for id in each.ids}
    packs = [pack for pack in packs if known.intersection(pack.ids)]
    lone = len(chosen) == 1 and not packs
    if lone:
        tasks = [(view, chosen) for view in _views(chosen[0])]
    else:
        tasks = [(each, [*packs, *chosen[:k], *chosen[k + 1 :]]) for k, each in enumerate(chosen)]
    manner = {"ensemble": ensemble, "kind": kind, "tile": tile}
    with torch.inference_mode():
        painted = [_paint(predictor, *tasks[k], manner) for k in progress(range(len(tasks)))]
        painted = [each for each in painted if each is not None]
        return _fit(painted, lone)


def _fit(painted: Sequence[_Painted], lone: bool) -> Calibration:
    if not painted:
        return Calibration(DEFAULT_TEMPERATURE, *([math.nan] * 4), held_out="nothing", count=0)

    def loss(log_temperature: float) -> float:
        return float(np.mean([log_loss(*each.judge(math.exp(log_temperature))) for each in painted]))

    low = math.log(DEFAULT_TEMPERATURE if lone else RANGE[0])
    found = minimize_scalar(loss, bounds=(low, math.log(RANGE[1])), method="bounded", options={"xatol": 0.02})
    # The search stays inside its bounds, so a default that is best would be missed by a little.
    best = min((found.x, math.log(DEFAULT_TEMPERATURE)), key=loss)
    return Calibration(
        temperature=math.exp(best),
        error=_error_at(painted, math.exp(best)),
        loss=loss(best),
        default_error=_error_at(painted, DEFAULT_TEMPERATURE),
        default_loss=loss(math.log(DEFAULT_TEMPERATURE)),
        held_out="views" if lone else "examples",
        count=len(painted),
    )


def _error_at(painted: Sequence[_Painted], temperature: float) -> float:
    judged = [each.judge(temperature) for each in painted]
    return calibration_error(*(np.concatenate(parts) for parts in zip(*judged, strict=True)))


def _paint(predictor: Predictor, shown: Example, others: Sequence[Source], manner: Mapping) -> _Painted | None:
    """Predicts one example from others and packs; None where they share no class."""
    known = {id for each in others for id in each.ids}
    if not known.intersection(shown.ids):
        return None
    config = predictor.model.config
    # The model sees no more than its input size; decoding fewer pixels many times is what makes the search cheap.
    scale = min(1.0, max(config.image_size) / max(shown.size))
    size = tuple(max(1, round(side * scale)) for side in shown.size)
    image, truth = resize_image(shown.image, size), resize_labels(shown.labels, size)
    truth = np.where(np.isin(truth, [0, *known]), truth, IGNORE)
    prompt = predictor.prompt(others)
    # One pass at a time: the painting of several together is a mixture that no longer tells what was painted.
    passes = [dataclasses.replace(prompt, palettes=(palette,), one_by_one=False) for palette in prompt.palettes]
    tile = predictor.layout(shown.size, prompt, tile=manner["tile"]).tile
    # Tiles are of a scale of their own: they are cut from the image as it is, and the painting is thinned out.
    query = image if tile is None else shown.image
    manner = {**manner, "tile": tile}
    paintings = [_thin_out(predictor.predict(query, one, **manner).painting, size) for one in passes]
    return _Painted(
        image,
        truth,
        tuple(torch.from_numpy(painting).movedim(-1, 0).float() for painting in paintings),
        prompt.palettes,
        predictor.refinement(image, prompt, tile, scale) if predictor.refine else None,
    )


def _thin_out(painting: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of (H, W, 3) at even distances: means of colours would be colours that nobody painted."""
    rows, columns = ((np.arange(n) + 0.5) * length / n for n, length in zip(size, painting.shape[:2], strict=True))
    return painting[rows.astype(int)[:, None], columns.astype(int)]


def _views(example: Example) -> list[Example]:
    """Mirrored crops of an example, one into each corner, darker and lighter, that still show an object."""
    height, width = example.size
    tall, wide = max(1, height * 4 // 5), max(1, width * 4 // 5)
    views = []
    for number, (top, left) in enumerate(
        ((0, 0), (0, width - wide), (height - tall, 0), (height - tall, width - wide))
    ):
        part = np.s_[top : top + tall, left : left + wide]
        image = example.image[part][:, ::-1] * (0.8 if number % 2 else 1.2)
        labels = np.ascontiguousarray(example.labels[part][:, ::-1])
        views.append(Example(image.clip(0, 255).astype(np.uint8), labels))
    return [view for view in views if view.ids]


def log_loss(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean negative log likelihood of being right, in nats.

    Args:
        confidence: float (n,) in 0..1.
        right: bool (n,), whether each label is right.
    """
    sure = np.clip(confidence.astype(np.float64), 1 - _CEILING, _CEILING)
    return float(-np.log(np.where(right, sure, 1 - sure)).mean()) if len(sure) else 0.0


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over 15 equal bins: the mean distance of confidence and accuracy, by pixels.

    Args:
        confidence: float (n,) in 0..1, n >= 1.
        right: bool (n,), whether each label is right.
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, right.astype(np.float64) - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def expected_ious(segmentation: Segmentation) -> dict[int, float]:
    """Which IoU each mask can expect, by its pixels' confidence: id -> 0..1.

    A mask should hold the confidence inside it as true pixels. Outside, what confidence leaves open may belong to
    a mask too: to each one in proportion to its area. The ratio of the two sums is the IoU of the expected areas;
    unlike the mean confidence, it knows that a border of doubt ruins a small mask and not a large one. It is as
    calibrated as the confidence is.
    """
    labels = np.maximum(segmentation.labels.ravel(), 0)
    ids = segmentation.ids
    known = np.array([0, *ids])
    if known[-1] > _DENSE:
        slots = np.searchsorted(known, labels)
    else:  # several times quicker
        table = np.zeros(known[-1] + 1, np.intp)
        table[known] = np.arange(len(known))
        slots = table[labels]
    areas = np.bincount(slots, minlength=len(known))
    sure = np.bincount(slots, segmentation.confidence.ravel().astype(np.float64), minlength=len(known))
    open_ = areas - sure  # confidence that is left to other ids, by the label that it is left by
    share = areas[1:] / max(1, areas[1:].sum())
    missed = (open_.sum() - open_[1:]) * share
    return {id: float(min(1.0, sure[k + 1] / (areas[k + 1] + missed[k]))) for k, id in enumerate(ids)}


def image_score(segmentation: Segmentation, ious: Mapping[int, float] | None = None) -> float:
    """Which IoU an image's result can expect, by its pixels' confidence, 0..1; a part of `incontext.labeling.trust`.

    The mean of `expected_ious`. Where nothing was found it is the mean confidence of the least sure hundredth of
    the pixels: an object that was nearly found lowers it, an empty scene does not.

    Args:
        segmentation: of the image.
        ious: its `expected_ious`, where they are known already.
    """
    ious = expected_ious(segmentation) if ious is None else ious
    if ious:
        return sum(ious.values()) / len(ious)
    flat = segmentation.confidence.ravel()
    count = max(1, flat.size // 100)
    return float(np.partition(flat, count - 1)[:count].mean())
