"""From images and examples to segmentations: prepare, paint, decode."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from incontext.appearance_cache import AppearanceCache
from incontext.clicks import Click, click_radii, paint_clicks
from incontext.decoding import Decoder
from incontext.device import pick_device
from incontext.geodesic import Reach
from incontext.image import ImageError, open_image, resize_image
from incontext.model.checkpoint import fingerprint
from incontext.model.inference import for_inference
from incontext.model.seggpt import KINDS, SegGPT
from incontext.pack import PromptPack
from incontext.painter import Manner, Painter
from incontext.palette import DEFAULT_TEMPERATURE, Palette
from incontext.picture_file import describe
from incontext.prefetch import prefetch
from incontext.prompt import ENSEMBLES, Prompt, Source, check_sources, resize_hints
from incontext.refinement import Refinement
from incontext.tiling import AUTO_SLACK, Layout, Tiling, auto_tile, thin_tile
from incontext.types import Example, Segmentation

_KEPT_PROMPTS = 4


@dataclass(frozen=True, eq=False)
class _Query:
    """An image ready for the model.

    Attributes:
        layout: whole, or its tiles.
        crops: uint8 (n, h, w, 3), one for each tile, at the model's input size.
        hints: int (n, h, w), what is painted on them, negative elsewhere; or None.
        given: int (H, W), the same at the image's size; or None.
        image: uint8 (H, W, 3), where the result goes by its edges too; or None.
    """

    layout: Layout
    crops: np.ndarray
    hints: np.ndarray | None = None
    given: np.ndarray | None = None
    image: np.ndarray | None = None


class Predictor:
    """Segments images as examples show, or prompt packs.

    Wherever a method takes examples, it takes packs too, alone, several, or together with examples; see
    `incontext.prompt` for how they join. What a call leaves open (ensemble, kind, tile) is as the packs were
    made for, else "feature", the predictor's kind, and whole images where these show the objects.

    The same input gives the same output: colours come from a fixed search, or from `seed`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str | torch.device = "auto",
        kind: str = "instance",
        ids_per_pass: int | None = None,
        one_by_one: bool | None = None,
        seed: int | None = None,
        palette: Callable[[tuple[int, ...]], Palette] | None = None,
        temperature: float | None = None,
        refine: bool | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            model: a `SegGPT`, or anything with its `config` and its forward signature. It is moved to the
                device.
            device: "auto", "cpu", "cuda", "cuda:1", "mps"; see `pick_device`.
            kind: the type token, unless a call or a pack says otherwise: "instance" or "semantic".
            ids_per_pass: how many ids are painted in one pass; more take several passes, and the time of
                several. By default what the weights separate well (`config.ids_per_pass`).
            one_by_one: paint each of several ids by itself, too, and take the mean: better, and slower. By default as
                the weights ask for (`config.one_by_one`). More than `ONE_BY_ONE_MOST` ids, and packs, are not.
            seed: draw random far-apart colours with this seed instead of the fixed ones and the packs' own.
                Segmentations under several seeds show how much depends on the colours.
            palette: gives the ids of one pass their colours; instead of `seed`.
            temperature: how steeply confidence falls with a colour's distance; see `Palette.probabilities`.
                It does not move labels, except where flips or several passes disagree, or results are refined.
                By default that of the packs, else `DEFAULT_TEMPERATURE`.
            refine: fit results to what pixels look like: the examples' (see `incontext.appearance`), and the
                edges of the query (see `incontext.refinement`). For models with coarse patches. By default as the
                weights ask for (`config.refine`).
            precision: what the model's large matrices are computed in: "fp32", "bf16", "fp16", or "auto" (bf16 where
                the device is fast at it); see `incontext.model.inference.for_inference`.

        Raises:
            ValueError: for a value outside of its range.
        """
        if seed is not None and palette is not None:
            raise ValueError("give seed or palette, not both: either decides the colours")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        device = pick_device(device)
        model = model.to(device)
        if isinstance(model, SegGPT):
            if precision == "fp16":  # which rounds so that the fingerprint would be another's
                self.fingerprint = fingerprint(model)
            model = for_inference(model, precision)
        self._painter = Painter(model, device)
        self.kind = _one_of("kind", kind, KINDS)
        self.ids_per_pass = model.config.ids_per_pass if ids_per_pass is None else ids_per_pass
        self.one_by_one = model.config.one_by_one if one_by_one is None else bool(one_by_one)
        self.seed = seed
        self.palette = palette
        self.temperature = DEFAULT_TEMPERATURE if temperature is None else temperature
        self._given_temperature = temperature
        self.refine = model.config.refine if refine is None else bool(refine)
        self._prompts: OrderedDict[tuple, Prompt] = OrderedDict()
        # Where paintings are, as the painter gives them.
        painted_on = device if device.type == "cuda" else torch.device("cpu")
        self._appearances = AppearanceCache(model.config.image_size, model.config.patch_size, painted_on)

    @property
    def model(self) -> nn.Module:
        """The model that paints. Its weights must not change during the life of a predictor that has used it,
        since prompts are kept encoded; a new predictor costs nothing."""
        return self._painter.model

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._painter.device

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments, but for model, device and precision, that make another predictor like this one."""
        names = ("kind", "ids_per_pass", "one_by_one", "seed", "palette", "refine")
        return {name: getattr(self, name) for name in names} | {"temperature": self._given_temperature}

    def temperature_for(self, prompt: Prompt) -> float:
        """The temperature of a prompt's confidences: the one given, else that of its packs, else the default."""
        return self._given_temperature or prompt.temperature or self.temperature

    def varied(self, **changes: Any) -> Predictor:
        """Returns a predictor like this one but for some settings. They share the model as it is made ready here.

        Args:
            changes: any of `settings`.

        Raises:
            ValueError: for a value outside of its range.
        """
        other = Predictor(self.model, device=self.device, **self.settings | changes)
        if "fingerprint" in vars(self):
            other.fingerprint = self.fingerprint
        return other

    @cached_property
    def fingerprint(self) -> str:
        """Of the model; see `incontext.model.checkpoint.fingerprint`. Packs are made for one."""
        return fingerprint(self.model)

    def prompt(self, examples: Source | Iterable[Source], *, ids: Iterable[int] = ()) -> Prompt:
        """Prepares examples and packs once. The methods take the result wherever they take examples.

        They keep the last few lists of examples prepared anyway; a prompt stays prepared as long as it lives.

        Args:
            examples: each with its own ids; packs among them join by the names of their classes.
            ids: further ids, which no example shows.

        Raises:
            PackError: a pack was made for another model.
            TypeError, ValueError: see `Prompt.build`.
        """
        examples = check_sources(examples)
        for pack in examples:
            if isinstance(pack, PromptPack):
                pack.check_model(self.fingerprint)
        palette = self.palette
        if palette is None and self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            palette = partial(Palette.random, generator=generator)
        return Prompt.build(examples, self.ids_per_pass, palette, ids, self.one_by_one)

    def predict(
        self,
        image: Any,
        examples: Source | Iterable[Source] | Prompt = (),
        *,
        query_labels: np.ndarray | None = None,
        ensemble: str | None = None,
        flip: bool = False,
        kind: str | None = None,
        tile: int | str | None = "thin",
        overlap: float = 0.25,
        batch_size: int = 8,
    ) -> Segmentation:
        """Segments one image.

        Args:
            image: path, PIL image or array; see `open_image`.
            examples: examples, packs, or a prompt of them. None are needed with `query_labels`.
            query_labels: what is already known of this very image: int (H, W) of its size, ids and 0
                (background) where known, negative (`IGNORE`) elsewhere. The model goes by it, and it stands
                in the result. Every patch that holds a known pixel counts as painted by the user: its other
                pixels are shown as background.
            ensemble: how several examples work together: "feature" averages what each tells the query,
                "spatial" shows them in one small grid, which is as quick as one example. By default as the
                packs were made for, else "feature".
            flip: also segment the mirrored image, and average. The examples are mirrored with it, so that
                left and right keep their meaning between them.
            kind: "instance" or "semantic", instead of the packs' or the predictor's.
            tile: show larger images in square tiles of this many pixels, for objects too small to be seen
                otherwise. Examples are cut to match, so a pixel must mean the same length in examples and
                queries. "auto" tiles only where the examples' thinnest objects need it; see `auto_tile`. "thin"
                does so where all of their objects are too thin to be seen in whole images, and nothing is known of
                the image; at most `THIN_TILES` along a side of the largest example. None never does. Packs know
                their own scale, which is what all but a number means with them.
            overlap: the least part of a tile that the next one repeats, 0 to 0.75.
            batch_size: how many tiles go through the model at once.

        Returns:
            The segmentation, at the image's own size.

        Raises:
            ImageError: the image cannot be read.
            TypeError, ValueError: something is out of its range, or does not fit the rest.
        """
        given = None if query_labels is None else _check_hints(query_labels)
        known = () if given is None else np.unique(given[given > 0]).tolist()
        prompt = self._prepare(examples, known)
        manner = self._manner(prompt, ensemble, flip, kind, batch_size)
        if tile == "thin" and given is not None:
            tile = None
        query = self._load(image, prompt, self._tiling(tile, overlap, prompt), given)
        if query.layout.tile is not None and not prompt.sources:
            raise ValueError("tile: expected examples, got query_labels alone; most tiles would have nothing to go by")
        return next(self._segment([query], prompt, manner))

    def click(
        self, image: Any, clicks: Sequence[Click], examples: Source | Iterable[Source] | Prompt = (), **how: Any
    ) -> Segmentation:
        """Segments what is clicked on in one image: `predict` with points for query labels.

        The result makes an example for other images: `Example(open_image(image), segmentation.labels)`.

        Args:
            image: path, PIL image or array; see `open_image`.
            clicks: at least one, on an object or, with id 0, on what is not meant. Any ids may be told apart at once.
            examples: that show the same ids, if there are any; the clicks correct what they tell.
            how: `ensemble`, `flip`, `kind`, as in `predict`.

        Returns:
            The segmentation, at the image's own size.

        Raises:
            ImageError: the image cannot be read.
            TypeError, ValueError: a click is out of its range, or as in `predict`.
        """
        pixels = open_image(image)
        config, size = self.model.config, pixels.shape[:2]
        known = paint_clicks(clicks, size, click_radii(size, config.image_size, config.patch_size))
        return self.predict(pixels, examples, query_labels=known, **how)

    def predict_many(
        self,
        images: Iterable[Any],
        examples: Source | Iterable[Source] | Prompt,
        *,
        ensemble: str | None = None,
        flip: bool = False,
        kind: str | None = None,
        tile: int | str | None = "thin",
        overlap: float = 0.25,
        batch_size: int = 8,
        threads: int = 4,
        on_error: str = "raise",
    ) -> Iterator[Segmentation | ImageError]:
        """Segments many images, lazily: reads a bounded number ahead, and yields results one by one.

        Args:
            images: paths, PIL images or arrays, of any sizes; any iterable, endless ones too.
            examples, ensemble, flip, kind, tile, overlap: as in `predict`.
            batch_size: how many images, or tiles of one image, go through the model at once. Results don't
                depend on it (but for the rounding of sums).
            threads: how many images are read at once.
            on_error: what an unreadable image does: "raise" its `ImageError`, or "yield" it in the image's
                place and go on.

        Returns:
            An iterator over segmentations, each at its image's own size, in the images' order.

        Raises:
            ImageError: an image cannot be read, and `on_error` is "raise".
            TypeError, ValueError: something is out of its range; at once, before the first image.
        """
        single = isinstance(images, (str, bytes, os.PathLike, Image.Image))
        if single or (isinstance(images, np.ndarray) and images.ndim < 4):
            raise TypeError(f"images: expected several images, got one ({describe(images)}); use predict, or a list")
        if threads < 1:
            raise ValueError(f"threads: expected 1 or more, got {threads}")
        _one_of("on_error", on_error, ("raise", "yield"))
        prompt = self._prepare(examples)
        manner = self._manner(prompt, ensemble, flip, kind, batch_size)
        tiling = self._tiling(tile, overlap, prompt)

        def load(image: Any) -> _Query | ImageError:
            try:
                return self._load(image, prompt, tiling)
            except ImageError as error:
                return error
            except OSError as error:
                return ImageError(f"{describe(image)}: expected a picture, but it cannot be read: {error}")

        def run() -> Iterator[Segmentation | ImageError]:
            waiting: list[_Query | ImageError] = []
            crops = 0
            ahead = threads if tiling.tile else threads + batch_size  # the tiles of a large image need memory
            for query in prefetch(load, images, threads, ahead):
                if isinstance(query, ImageError) and on_error == "raise":
                    yield from self._segment(waiting, prompt, manner)
                    raise query
                waiting.append(query)
                crops += len(query.crops) if isinstance(query, _Query) else 1
                if crops >= batch_size:
                    yield from self._segment(waiting, prompt, manner)
                    waiting, crops = [], 0
            yield from self._segment(waiting, prompt, manner)

        return run()

    def layout(
        self,
        size: tuple[int, int],
        examples: Source | Iterable[Source] | Prompt,
        *,
        tile: int | str | None = "thin",
        overlap: float = 0.25,
    ) -> Layout:
        """How `predict` shows an image: whole, or in which tiles.

        Args:
            size: (H, W) of the image.
            examples, tile, overlap: as in `predict`.

        Raises:
            TypeError, ValueError: something is out of its range.
        """
        prompt = self._prepare(examples)
        return self._tiling(tile, overlap, prompt).layout(size, prompt.sizes)

    def _manner(self, prompt: Prompt, ensemble: str | None, flip: bool, kind: str | None, batch_size: int) -> Manner:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        ensemble, kind = prompt.ensemble_for(ensemble), prompt.kind_for(kind, self.kind)
        return Manner(_one_of("ensemble", ensemble, ENSEMBLES), bool(flip), _one_of("kind", kind, KINDS), batch_size)

    def _tiling(self, tile: int | str | None, overlap: float, prompt: Prompt) -> Tiling:
        if not 0 <= overlap <= 0.75:
            raise ValueError(f"overlap: expected a part of a tile from 0 to 0.75, got {overlap}")
        config = self.model.config
        tile = prompt.tile_for(tile)
        if isinstance(tile, str) and tile in ("auto", "thin"):
            if tile == "thin" and not prompt.too_thin(config.image_size):
                return Tiling(None, overlap=overlap)
            scale = prompt.object_width, config.image_size, config.patch_size
            side = auto_tile(*scale) if tile == "auto" else thin_tile(*scale, prompt.sizes, overlap)
            return Tiling(side, AUTO_SLACK, overlap)
        is_side = isinstance(tile, (int, np.integer)) and not isinstance(tile, bool)
        if tile is not None and not (is_side and tile >= config.patch_size):
            raise ValueError(
                f"tile: expected None, 'thin', 'auto' or a side of at least {config.patch_size} pixels, got {tile!r}"
            )
        return Tiling(None if tile is None else int(tile), overlap=overlap)

    def _prepare(self, examples: Source | Iterable[Source] | Prompt, ids: Sequence[int] = ()) -> Prompt:
        """The prompt of these examples: the one from last time, if there was one."""
        if isinstance(examples, Prompt):
            if set(ids) <= set(examples.ids):
                return examples
            ids, examples = sorted({*examples.ids, *ids}), examples.sources
        examples = check_sources(examples)
        shown = {id for each in examples if isinstance(each, Example) for id in each.ids}
        ids = [id for id in ids if id not in shown]
        if not examples and not ids:
            raise ValueError("expected at least one example, or query_labels that show an id, got neither")
        key = (examples, tuple(ids))  # examples are equal only to themselves
        prompt = self._prompts.pop(key, None) or self.prompt(examples, ids=ids)
        self._prompts[key] = prompt
        while len(self._prompts) > _KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        return prompt

    def _load(self, image: Any, prompt: Prompt, tiling: Tiling, given: np.ndarray | None = None) -> _Query:
        """Opens an image and cuts and resizes it for the model. Runs in any thread."""
        pixels = open_image(image)
        size = self.model.config.image_size
        if given is not None and given.shape != pixels.shape[:2]:
            raise ValueError(f"query_labels: expected the image's size {pixels.shape[:2]}, got {given.shape}")
        layout = tiling.layout(pixels.shape[:2], prompt.sizes)
        crops = np.stack([resize_image(crop, size) for crop in layout.cut(pixels)])
        hints = None if given is None else np.stack([resize_hints(crop, size) for crop in layout.cut(given, fill=-1)])
        alone = given is not None and not prompt.sources
        return _Query(layout, crops, hints, given, pixels if self.refine or alone else None)

    def _segment(
        self, queries: Sequence[_Query | ImageError], prompt: Prompt, manner: Manner
    ) -> Iterator[Segmentation | ImageError]:
        """Whole images share their batches; a tiled one fills its own, pass by pass, so that memory is
        bounded."""
        whole = [query for query in queries if isinstance(query, _Query) and query.layout.tile is None]
        passes = range(len(prompt.passes))
        painted = self._paint_whole(whole, prompt, manner) if whole else []
        done = 0
        for query in queries:
            if isinstance(query, ImageError):
                yield query
            elif query.layout.tile is None:
                at = slice(done, done + 1)
                done += 1
                yield self._decode(query, prompt, (views[:, at] for views in painted))
            else:
                yield self._decode(query, prompt, (self._paint_tiles(query, prompt, index, manner) for index in passes))

    def _paint_whole(self, queries: Sequence[_Query], prompt: Prompt, manner: Manner) -> list[Tensor]:
        """Paintings of queries that are shown whole, for each pass (views, n, 3, h, w) in 0..255."""
        crops = np.concatenate([query.crops for query in queries])
        hints = None if queries[0].hints is None else np.concatenate([query.hints for query in queries])
        return self._painter.paint_passes(crops, prompt, manner, hints=hints)

    def _paint_tiles(self, query: _Query, prompt: Prompt, index: int, manner: Manner) -> Tensor:
        """Paintings of the tiles of a query: (views, n, 3, h, w) in 0..255."""
        return self._painter.paint(query.crops, prompt, index, manner, tile=query.layout.tile, hints=query.hints)

    @torch.inference_mode()
    def _decode(self, query: _Query, prompt: Prompt, passes: Iterable[Tensor]) -> Segmentation:
        decoder, temperature = None, self.temperature_for(prompt)
        for views in passes:
            if decoder is None:
                refinement = self._refinement(query, prompt)
                decoder = Decoder(query.layout.size, prompt.passes, views.device, temperature, refinement)
            decoder.add([query.layout.join(view) for view in views])
        return decoder.finish(prompt.names, query.given)

    def _refinement(self, query: _Query, prompt: Prompt) -> Refinement | None:
        if query.image is None:
            return None
        if self.refine:
            refinement = self.refinement(query.image, prompt, query.layout.tile)
        else:
            refinement = self._appearances.unfitted(query.image)
        if query.given is None or (query.given < 0).all():
            return refinement
        return replace(refinement, reach=Reach.of(query.image, query.given, alone=not prompt.sources))

    def refinement(self, image: np.ndarray, prompt: Prompt, tile: int | None = None, scale: float = 1.0) -> Refinement:
        """What fits results to the looks of an image; see `AppearanceCache.refinement`."""
        return self._appearances.refinement(image, prompt, tile, scale)


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
    return value


def _check_hints(labels: np.ndarray) -> np.ndarray:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.ndim != 2:
        got = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"query_labels: expected an integer array (H, W), got {got}")
    if labels.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"query_labels: expected ids up to {np.iinfo(np.int32).max}, got {labels.max()}")
    return np.maximum(labels.astype(np.int64), -1).astype(np.int32)
