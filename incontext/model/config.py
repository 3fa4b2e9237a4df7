"""The one config that describes a SegGPT model, and the named presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SegGPTConfig:
    """Architecture of a `SegGPT` model. The defaults are the published ViT-L (arXiv 2304.03284).

    Attributes:
        image_size: (H, W) in pixels of one half of the canvas: one example, or the query.
        patch_size: side of a patch in pixels.
        width: channels of a token.
        depth: number of transformer blocks.
        heads: attention heads per block.
        mlp_ratio: hidden width of the MLP over `width`.
        merge_layer: index of the block after which the image stream and the target stream are averaged.
        tap_layers: indexes of the blocks whose outputs the head reads. None lies before `merge_layer`.
        decoder_width: channels of the full-resolution feature map in the head.
        pretrain_grid: (rows, columns) of the stored absolute position embedding, resized to the canvas when used.
        relative_position: whether attention adds the decomposed relative position bias.
        examples_attend_query: whether an example's tokens attend to the query's (the published weights: yes). Where
            they do not, the examples' keys and values are independent of the query and can be kept in a `PromptCache`.
        layer_norm_eps: epsilon of every layer norm.
        stochastic_depth: drop probability of the last block's residual branches while training; it grows linearly
            from 0 at the first block.
        loss_beta: transition point of the smooth-L1 loss, in normalised colour space.
        ids_per_pass: how many objects the weights separate well in one pass. Predictors split larger sets.
        one_by_one: whether predictors paint each of several objects by itself, too, and take the mean, unless they are
            told otherwise.
        refine: whether predictors fit results to what pixels look like, unless they are told otherwise; see
            `incontext.appearance` and `incontext.refinement`.

    Raises:
        ValueError: if the fields contradict each other.
    """

    image_size: tuple[int, int] = (448, 448)
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    merge_layer: int = 2
    tap_layers: tuple[int, ...] = (5, 11, 17, 23)
    decoder_width: int = 64
    pretrain_grid: tuple[int, int] = (14, 14)
    relative_position: bool = True
    examples_attend_query: bool = True
    layer_norm_eps: float = 1e-6
    stochastic_depth: float = 0.1
    loss_beta: float = 0.01
    ids_per_pass: int = 10
    one_by_one: bool = False
    refine: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "tap_layers", "pretrain_grid"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        if len(self.image_size) != 2 or len(self.pretrain_grid) != 2:
            raise ValueError("image_size and pretrain_grid each take two numbers: (height, width)")
        for name in ("patch_size", "width", "depth", "heads", "decoder_width", "ids_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if min(self.pretrain_grid) < 1 or min(self.image_size) < 1:
            raise ValueError("image_size and pretrain_grid must be positive")
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if not 0 <= self.merge_layer < self.depth:
            raise ValueError(f"merge_layer must lie in 0..{self.depth - 1}, got {self.merge_layer}")
        taps = self.tap_layers
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < self.merge_layer or taps[-1] >= self.depth:
            raise ValueError(
                f"tap_layers must rise from merge_layer ({self.merge_layer}) or later to at most {self.depth - 1}, "
                f"got {taps}"
            )
        if not 0.0 <= self.stochastic_depth < 1.0:
            raise ValueError(f"stochastic_depth must lie in [0, 1), got {self.stochastic_depth}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in one half of the canvas."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values (tuples become lists)."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SegGPTConfig:
        """Builds a config from `to_dict` output.

        Raises:
            ValueError: for unknown fields or values of a wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"unknown config fields {unknown}; this version knows {sorted(known)}")
        for field in dataclasses.fields(cls):
            if field.name in fields and not _is_like(fields[field.name], field.default):
                raise ValueError(
                    f"the config field {field.name} must be like {field.default!r}, got {fields[field.name]!r}"
                )
        return cls(**fields)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value from a file has the type of a field's default. JSON writes tuples as lists and 4.0 as 4."""
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(_is_like(each, 0) for each in value)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is type(default)


PRESETS: dict[str, SegGPTConfig] = {
    "seggpt-vit-large": SegGPTConfig(),
    # What the bundled model was grown from: small enough for a CPU, cacheable prompts.
    "small": SegGPTConfig(
        image_size=(128, 128),
        patch_size=8,
        width=192,
        depth=8,
        heads=6,
        merge_layer=2,
        tap_layers=(2, 4, 6, 7),
        decoder_width=24,
        pretrain_grid=(24, 12),
        relative_position=False,
        examples_attend_query=False,
        stochastic_depth=0.0,
        ids_per_pass=1,
        refine=True,
    ),
    # For tests: every mechanism of the published model, in miniature.
    "tiny": SegGPTConfig(
        image_size=(32, 32),
        patch_size=8,
        width=32,
        depth=6,
        heads=4,
        merge_layer=2,
        tap_layers=(2, 3, 4, 5),
        decoder_width=8,
        pretrain_grid=(3, 3),
    ),
}
