"""What the ids of prompts look like, found once and kept as long as the prompts and their examples live."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from incontext.appearance import KEYS, MOST_KEYS, Appearance, Sample, detail_of, pixel_features
from incontext.pack import PromptPack
from incontext.pack.joining import mean_of
from incontext.pack.swatches import Swatches
from incontext.prompt import Prompt
from incontext.refinement import Refinement, mean_side
from incontext.tiling import object_widths
from incontext.types import Example

SWATCHES = (64, MOST_KEYS)
"""Of how many images a pack keeps pixels, and how many in all."""


@dataclass(frozen=True, eq=False)
class _Looks:
    """What the ids of a prompt look like.

    Attributes:
        width: of the objects, in patches.
        detail: step at which images are looked at, in patches.
        appearances: of ids that are shown together.
    """

    width: float
    detail: float
    appearances: tuple[Appearance, ...]


class AppearanceCache:
    """Compares images with prompts; what it learns of a prompt it keeps.

    Attributes:
        image_size: (height, width) of the model's input.
        patch_size: of the model, in pixels of its input.
        device: where to compute.
    """

    def __init__(self, image_size: tuple[int, int], patch_size: int, device: torch.device) -> None:
        self.image_size, self.patch_size, self.device = image_size, patch_size, device
        self._looks: weakref.WeakKeyDictionary[Prompt, dict] = weakref.WeakKeyDictionary()
        self._samples: weakref.WeakKeyDictionary[Example, dict] = weakref.WeakKeyDictionary()
        self._widths: weakref.WeakKeyDictionary[Example | PromptPack, list[float]] = weakref.WeakKeyDictionary()

    def refinement(self, image: np.ndarray, prompt: Prompt, tile: int | None = None, scale: float = 1.0) -> Refinement:
        """What fits results to the looks of an image.

        Args:
            image: uint8 (H, W, 3).
            prompt: whose examples it is compared with.
            tile: side of the tiles that it is shown in, in pixels of the examples; None where it is shown whole.
            scale: pixels of the image for one of the examples', in tiles.
        """
        patch = mean_side(self._patch(image.shape[:2], None if tile is None else tile * scale))
        looks = self._looks_of(prompt, tile)
        if not looks.appearances:
            return Refinement(image, patch, self.device)
        features = pixel_features(image, looks.detail * patch, self.device)
        found = tuple(each.find(features) for each in looks.appearances)
        return Refinement(image, looks.detail * patch, self.device, found, looks.width * patch)

    def unfitted(self, image: np.ndarray) -> Refinement:
        """What fits nothing, and only brings results to the size of an image, uint8 (H, W, 3)."""
        return Refinement(image, mean_side(self._patch(image.shape[:2], None)), self.device, width=0.0)

    def swatches(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], classes: int) -> Swatches | None:
        """Takes pixels of images that are shown whole, for a pack.

        Args:
            pairs: image, uint8 (H, W, 3), and classes 1..K, 0, and negative where nothing is known, int (H, W).
            classes: K.

        Returns:
            The pixels, as many of each image, at most `SWATCHES`; None if no image shows a class, or nothing is known
            of one of them.
        """
        images, pixels = SWATCHES
        pairs = [pairs[k] for k in np.linspace(0, len(pairs) - 1, min(images, len(pairs))).round().astype(int)]
        patches = [self._patch(labels.shape, None) for _, labels in pairs]
        widths = [
            width / mean_side(patch)
            for (_, labels), patch in zip(pairs, patches, strict=True)
            for width in object_widths(labels)
        ]
        if not widths:
            return None
        width = float(np.median(widths))
        detail, ids = detail_of(width), range(1, classes + 1)
        samples = [
            Sample.of(*pair, ids, patch, self.device, detail) for pair, patch in zip(pairs, patches, strict=True)
        ]
        count = min(pixels // len(samples), *(len(each.features) for each in samples))
        if not count:
            return None
        thin = [each.thinned(count) for each in samples]
        return Swatches(
            features=torch.stack([features for features, _ in thin]).half().cpu(),
            values=torch.stack([values for _, values in thin]).half().cpu(),
            held=torch.stack([each.held for each in samples]).half().cpu(),
            shown=torch.stack([each.shown for each in samples]).byte().cpu(),
            scale=torch.tensor([detail, width]),
        )

    def _looks_of(self, prompt: Prompt, tile: int | None) -> _Looks:
        """What a prompt's ids look like at a scale; made once for each."""
        kept = self._looks.setdefault(prompt, {})
        if tile not in kept:
            width = self._width(prompt, tile)
            detail = detail_of(width) if tile is None else 1.0
            looks = []
            for group, examples, packs in prompt.groups():
                ids = tuple(sorted(group))
                samples = [sample for pack in packs for sample in self._samples_of(pack, ids, tile, detail)]
                samples += [self._sample(each, ids, tile, detail) for each in examples]
                # The frames of a video are many and alike.
                keys = KEYS if prompt.apart else min(MOST_KEYS, KEYS * len(samples))
                keys = keys if detail == 1 else keys // 2  # a finer query has more pixels
                fitted = (
                    {} if examples else {"strength": mean_of(packs, "strength"), "favour": mean_of(packs, "favour")}
                )
                looks.append(Appearance.of(ids, samples, placed=tile is None, keys=keys, **fitted))
            kept[tile] = _Looks(width, detail, tuple(each for each in looks if each is not None))
        return kept[tile]

    def _width(self, prompt: Prompt, tile: int | None) -> float:
        """How wide objects are, in patches: the median over ids and images, or the small ones among many would decide;
        infinite without objects."""
        widths = [width for pack in prompt.packs for width in self._widths_of(pack)]
        for example in prompt.examples:
            if example not in self._widths:
                self._widths[example] = object_widths(example.labels)
            patch = mean_side(self._patch(example.size, tile))
            widths += [width / patch for width in self._widths[example]]
        return float(np.median(widths)) if widths else math.inf

    def _widths_of(self, pack: PromptPack) -> list[float]:
        """How wide the objects of a pack's images are, in patches: it holds images of the model's input size."""
        if pack.swatches is not None:
            return [pack.swatches.width]
        if pack not in self._widths:
            own = mean_side(self._patch(self.image_size, None))
            self._widths[pack] = [width / own for _, labels in pack.pairs for width in object_widths(labels)]
        return self._widths[pack]

    def _samples_of(self, pack: PromptPack, ids: tuple[int, ...], tile: int | None, detail: float) -> list[Sample]:
        """The pixels of a pack: its swatches, where they were taken at this step, else those of its images."""
        kept = pack.swatches
        if kept is None or tile is not None or not math.isclose(kept.detail, detail, rel_tol=1e-3):
            own = self._patch(self.image_size, None)
            return [Sample.of(*pair, ids, own, self.device, detail) for pair in pack.pairs]
        kept = kept.for_ids(pack.ids, ids)
        parts = (kept.features, kept.values, kept.held, kept.shown)
        features, values, held, shown = (each.to(self.device).float() for each in parts)
        return [Sample(*each) for each in zip(features, values, held, shown.bool(), strict=True)]

    def _sample(self, example: Example, ids: tuple[int, ...], tile: int | None, detail: float) -> Sample:
        """The pixels of an example; taken once, as the prompts of a video share most of their examples."""
        kept = self._samples.setdefault(example, {})
        if (ids, tile, detail) not in kept:
            patch = self._patch(example.size, tile)
            kept[ids, tile, detail] = Sample.of(example.image, example.labels, ids, patch, self.device, detail)
        return kept[ids, tile, detail]

    def _patch(self, size: tuple[int, int], tile: float | None) -> tuple[float, float]:
        """(height, width) of a patch of the model in the pixels of an image that is shown whole, or in tiles."""
        shown = size if tile is None else (tile, tile)
        height, width = (self.patch_size * side / pixels for side, pixels in zip(shown, self.image_size, strict=True))
        return height, width
