"""The layout of SegGPT in transformers: its weight names and its config.json, to ours and back.

Our weight names are those of the published checkpoint, so this table is the only one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from incontext.model.config import SegGPTConfig
from incontext.model.published_format import mlp_ratio, require_published_attention

# (ours, transformers). A name that ends in a dot stands for all that begin so; {n} is the index of a block.
KEY_TABLE: tuple[tuple[str, str], ...] = (
    ("mask_token", "model.embeddings.mask_token"),
    ("segment_token_x", "model.embeddings.segment_token_input"),
    ("segment_token_y", "model.embeddings.segment_token_prompt"),
    ("type_token_cls", "model.embeddings.type_token_semantic"),
    ("type_token_ins", "model.embeddings.type_token_instance"),
    ("pos_embed", "model.embeddings.position_embeddings"),
    ("patch_embed.proj.", "model.embeddings.patch_embeddings.projection."),
    ("blocks.{n}.attn.", "model.encoder.layers.{n}.attention."),
    ("blocks.{n}.mlp.fc1.", "model.encoder.layers.{n}.mlp.lin1."),
    ("blocks.{n}.mlp.fc2.", "model.encoder.layers.{n}.mlp.lin2."),
    ("blocks.{n}.norm1.", "model.encoder.layers.{n}.layernorm_before."),
    ("blocks.{n}.norm2.", "model.encoder.layers.{n}.layernorm_after."),
    ("norm.", "model.encoder.layernorm."),
    ("decoder_embed.", "decoder.decoder_embed."),
    ("decoder_pred.0.", "decoder.decoder_pred.conv."),
    ("decoder_pred.1.", "decoder.decoder_pred.layernorm."),
    ("decoder_pred.3.", "decoder.decoder_pred.head."),
)

# (ours, transformers, its default), for the fields that both have in the same form. transformers leaves
# fields that have their default out of some config.json files.
_FIELD_TABLE: tuple[tuple[str, str, Any], ...] = (
    ("patch_size", "patch_size", 16),
    ("width", "hidden_size", 1024),
    ("depth", "num_hidden_layers", 24),
    ("heads", "num_attention_heads", 16),
    ("merge_layer", "merge_index", 2),
    ("tap_layers", "intermediate_hidden_state_indices", [5, 11, 17, 23]),
    ("decoder_width", "decoder_hidden_size", 64),
    ("relative_position", "use_relative_position_embeddings", True),
    ("layer_norm_eps", "layer_norm_eps", 1e-6),
    ("stochastic_depth", "drop_path_rate", 0.1),
    ("loss_beta", "beta", 0.01),
    # transformers keeps fields it does not know and does nothing with them.
    ("ids_per_pass", "incontext_ids_per_pass", 10),
    ("one_by_one", "incontext_one_by_one", False),
    ("refine", "incontext_refine", False),
)

# What transformers could vary and SegGPT does not.
_FIXED = {"model_type": "seggpt", "num_channels": 3, "hidden_act": "gelu", "qkv_bias": True}


def key_to_transformers(key: str) -> str:
    """Renames a weight of ours as transformers names it. Other names come back as they are."""
    return _rename(key, _compiled_table(0))


def key_from_transformers(key: str) -> str:
    """Inverse of `key_to_transformers`."""
    return _rename(key, _compiled_table(1))


@functools.cache
def _compiled_table(source: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    table = []
    for row in KEY_TABLE:
        pattern = re.escape(row[source]).replace(r"\{n\}", r"(?P<n>\d+)")
        rest = "(?P<rest>.+)" if row[source].endswith(".") else "(?P<rest>)"
        table.append((re.compile(pattern + rest), row[1 - source] + "{rest}"))
    return tuple(table)


def _rename(key: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, name in table:
        if match := pattern.fullmatch(key):
            return name.format(**match.groupdict())
    return key


def config_from_transformers(fields: Mapping[str, Any]) -> SegGPTConfig:
    """Reads the fields of a transformers `config.json`.

    Raises:
        ValueError: if it is not that of a SegGPT, or of a variant that this model is not.
    """
    for name, value in _FIXED.items():
        # Old files do not name the model type; every other field of a SegGPT has its default.
        if fields.get(name, value) != value:
            raise ValueError(f"config.json has {name} {fields[name]!r}, a SegGPT needs {value!r}")
    ours = {name: fields.get(theirs, default) for name, theirs, default in _FIELD_TABLE}
    ours["patch_size"] = _one_side("patch_size", ours["patch_size"])
    canvas = fields.get("image_size", [896, 448])
    if not isinstance(canvas, (list, tuple)) or len(canvas) != 2 or not all(isinstance(side, int) for side in canvas):
        raise ValueError(f"config.json has image_size {canvas!r}, expected [2 * height, width] of the canvas")
    if canvas[0] % 2:
        raise ValueError(f"config.json has a canvas of odd height {canvas[0]}; its two halves must be equal")
    ours["image_size"] = [canvas[0] // 2, canvas[1]]
    if not isinstance(ours["width"], int) or ours["width"] < 1 or ours["patch_size"] < 1:
        raise ValueError("config.json needs a hidden_size and a patch_size of 1 or more")
    hidden = fields.get("mlp_dim")
    if not isinstance(hidden, int | None):
        raise ValueError(f"config.json has mlp_dim {hidden!r}, expected a whole number")
    ours["mlp_ratio"] = 4.0 if hidden is None else mlp_ratio(hidden, ours["width"])
    side = _one_side("pretrain_image_size", fields.get("pretrain_image_size", 224)) // ours["patch_size"]
    ours["pretrain_grid"] = [side, side]
    return SegGPTConfig.from_dict(ours)


def config_to_transformers(config: SegGPTConfig) -> dict[str, Any]:
    """Writes a config as the fields of a transformers `config.json`.

    Raises:
        ValueError: if transformers' SegGPT cannot be such a model.
    """
    require_published_attention(config, "transformers")
    if config.pretrain_grid[0] != config.pretrain_grid[1]:
        raise ValueError(
            "transformers' SegGPT stores a square position embedding, this model has one of "
            f"{config.pretrain_grid}; keep it in this project's own format (OUT.safetensors)"
        )
    ours = config.to_dict()
    return {
        "architectures": ["SegGptForImageSegmentation"],
        **_FIXED,
        **{theirs: ours[name] for name, theirs, _ in _FIELD_TABLE},
        "image_size": [2 * config.image_size[0], config.image_size[1]],
        "pretrain_image_size": config.pretrain_grid[0] * config.patch_size,
        "mlp_dim": int(config.width * config.mlp_ratio),
    }


def _one_side(name: str, value: Any) -> int:
    sides = value if isinstance(value, (list, tuple)) else [value]
    if not sides or any(not isinstance(side, int) or side != sides[0] for side in sides):
        raise ValueError(f"config.json has {name} {value!r}, expected one whole number (squares only)")
    return sides[0]
