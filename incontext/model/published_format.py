"""What the published `.pth` leaves unsaid: constants of its code, and a config that no file holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from incontext.model.config import SegGPTConfig

# Written into the published code, so that its weights do not tell.
CONSTANTS = {"merge_layer": 2, "tap_layers": (5, 11, 17, 23), "layer_norm_eps": 1e-6}
_DEPTH = 24
_OWN_FORMAT = "keep it in this project's own format (OUT.safetensors)"


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> SegGPTConfig | None:
    """Reads the architecture off the shapes of the weights, for files without a config.

    Args:
        shapes: by published name.

    Returns:
        The config, or None if these are not the weights of a SegGPT.

    Raises:
        ValueError: if they are, but the shapes do not tell it all.
    """
    try:
        width = shapes["mask_token"][3]
        patch = shapes["patch_embed.proj.weight"][2]
        positions = shapes["pos_embed"][1] - 1
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
        taps = shapes["decoder_embed.weight"][1] / width
        decoder_width = shapes["decoder_pred.0.weight"][0]
    except (KeyError, IndexError, ZeroDivisionError):
        return None
    depth = sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in shapes)
    side = math.isqrt(max(positions, 0))
    relative = [shapes.get(f"blocks.0.attn.rel_pos_{axis}", ()) for axis in "hw"]
    unknown = []
    if depth != _DEPTH or taps != len(CONSTANTS["tap_layers"]):
        unknown.append("tap_layers and merge_layer")
    if any(len(shape) != 2 or not shape[1] for shape in relative):
        unknown.append("heads and image_size")
    if side * side != positions:
        unknown.append("pretrain_grid")
    if unknown:
        raise ValueError(
            f"there is none in the file, and its shapes do not tell {', '.join(unknown)}; put transformers' "
            "config.json beside it, or pass config=SegGPTConfig(...)"
        )
    (rows, head_width), (columns, _) = relative
    return SegGPTConfig(
        image_size=((rows + 1) // 4 * patch, (columns + 1) // 2 * patch),
        patch_size=patch,
        width=width,
        depth=depth,
        heads=width // head_width,
        mlp_ratio=mlp_ratio(hidden, width),
        decoder_width=decoder_width,
        pretrain_grid=(side, side),
        **CONSTANTS,
    )


def mlp_ratio(hidden: int, width: int) -> float:
    """Returns the `mlp_ratio` of an MLP of `hidden` channels."""
    ratio = hidden / width
    # The quotient may be rounded down, and int() would then lose a channel.
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def require_published(config: SegGPTConfig) -> None:
    """Checks that the published code would compute what our model does.

    Raises:
        ValueError: if it would not.
    """
    require_published_attention(config, "the published code")
    wrong = any(getattr(config, name) != value for name, value in CONSTANTS.items())
    rows, columns = config.pretrain_grid
    if wrong or rows != columns or not config.relative_position:
        raise ValueError(
            f"the published code is fixed to {CONSTANTS}, a square position embedding and relative "
            f"positions; this model differs; {_OWN_FORMAT}"
        )


def require_published_attention(config: SegGPTConfig, where: str) -> None:
    """Refuses models that other code would load and then run with another result.

    Raises:
        ValueError: if the model's examples do not attend to the query.
    """
    if not config.examples_attend_query:
        raise ValueError(
            f"in this model examples do not attend to the query; {where} has no such switch and would paint "
            f"something else; {_OWN_FORMAT}"
        )
