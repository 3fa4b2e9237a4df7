"""What a label job can be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from incontext.model.seggpt import KINDS
from incontext.prompt import ENSEMBLES, Prompt

ENGINES = ("local", "ray")

MAX_PIXELS = 80_000_000
"""Pixels of the largest image that is labelled by default. Each takes about 40 bytes while it is at work."""

MAX_BYTES = 2 << 30
"""Bytes of the largest file that is opened at all."""


@dataclass(frozen=True)
class LabelConfig:
    """How a job labels.

    Attributes:
        formats: names in `incontext.export.formats.FORMATS`, to be written beside the masks.
        ensemble, kind, flip, tile, overlap: see `Predictor.predict`.
        batch_size: images or tiles at once; None: 8, on a CPU 1.
        instances: make every connected part of a class an object of its own. SegGPT has no native instances:
            it tells classes apart, not objects that touch.
        min_area: of objects, in pixels; smaller ones become background in the formats. Needs `instances`.
        select: show each image only so many examples, the most useful ones for it, out of all. Packs are always shown.
        recolourings: paint each image in so many other sets of colours, every other one mirrored, and record how
            far they disagree with the result. Each costs the time of one prediction.
        calibrate: fit the confidence to the examples by leaving one out at a time. Packs alone keep their own.
        review: write `review.html` and `review.csv`, the least sure images first.
        engine: "local", or "ray" for many machines.
        workers: models that Ray holds at once; None: one for each GPU, else one for each CPU but one.
        threads: that read, and that write.
        max_pixels: larger images are recorded as failed.

    Raises:
        ValueError: a field is outside of its range.
    """

    formats: tuple[str, ...] = ()
    ensemble: str | None = None
    kind: str | None = None
    flip: bool = False
    tile: int | str | None = "thin"
    overlap: float = 0.25
    batch_size: int | None = None
    instances: bool = False
    min_area: int = 0
    select: int | None = None
    recolourings: int = 0
    calibrate: bool = True
    review: bool = False
    engine: str = "local"
    workers: int | None = None
    threads: int = 4
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", tuple(dict.fromkeys(self.formats)))
        if self.engine not in ENGINES:
            raise ValueError(f"engine: expected one of {ENGINES}, got {self.engine!r}")
        for name, value, choices in (("ensemble", self.ensemble, ENSEMBLES), ("kind", self.kind, KINDS)):
            if value is not None and value not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
        for name, least in (("min_area", 0), ("recolourings", 0), ("threads", 1), ("max_pixels", 1)):
            _require_at_least(name, getattr(self, name), least)
        for name in ("batch_size", "select", "workers"):
            if getattr(self, name) is not None:
                _require_at_least(name, getattr(self, name), 1)
        if self.min_area and not self.instances:
            raise ValueError("min_area: expected instances too, since it is objects that are measured; ask for both")
        if self.workers is not None and self.engine != "ray":
            raise ValueError("workers: expected the engine 'ray' with it; the local engine runs one model")

    def resolved(self, prompt: Prompt, kind: str) -> LabelConfig:
        """The same job with nothing left open that a prompt decides: ensemble, kind, tile, and whether to calibrate.

        Args:
            prompt: what the job shows.
            kind: where neither this nor a pack says one.

        Raises:
            PackError: packs differ in what is left to them.
            ValueError: there is no example to select from.
        """
        if self.select is not None and not prompt.examples:
            raise ValueError(
                "select: expected examples to choose from, got packs alone, which are always shown whole; give "
                "examples too, or leave it out"
            )
        return replace(
            self,
            ensemble=prompt.ensemble_for(self.ensemble),
            kind=prompt.kind_for(self.kind, kind),
            tile=prompt.tile_for(self.tile),
            calibrate=self.calibrate and bool(prompt.examples),
        )

    def painting_settings(self) -> dict:
        """Those fields that decide what a mask and its scores are, as JSON knows them."""
        names = ("ensemble", "kind", "flip", "tile", "overlap", "select", "recolourings", "calibrate")
        return {name: getattr(self, name) for name in names}


def _require_at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
