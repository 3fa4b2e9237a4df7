"""Prompt packs on disk: one safetensors file, with a card beside it.

Tensors are "images", "masks", where they are learned "tokens" and "pictures", where pixels of more images are kept
"swatches.FIELD", and where the prompt is kept encoded "cache.PASS.LAYER.key", ".value" and "cache.PASS.border". All
else is one JSON object in the metadata. Nothing in a file is ever executed, and nothing is believed before it was
checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from incontext.atomic import replacing
from incontext.model.layers import KeyValue
from incontext.model.seggpt import PromptCache
from incontext.model.weight_files import CheckpointError, parse_json, write_safetensors
from incontext.pack.card import card
from incontext.pack.prompt_pack import PackError, PromptPack
from incontext.pack.swatches import Swatches
from incontext.palette import Palette

FORMAT = 1
SUFFIX = ".safetensors"

PICTURES = ("curve.png", "before-after.jpg")
"""What a tuning run draws, in the folder NAME.tune beside the pack."""

_KEY = "incontext.pack"
_MOST_LAYERS = 1000
_NUMBER = (int, float)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "name": str,
    "passes": list,
    "names": dict,
    "fingerprint": str,
    "model": str,
    "ids_per_pass": int,
    "kind": str,
    "ensemble": str,
    "temperature": _NUMBER,
    "strength": _NUMBER,
    "favour": _NUMBER,
    "tile": (int, type(None)),
    "made": dict,
    "evaluation": dict,
    "cache_grid": (list, type(None)),
}


def write_pack(pack: PromptPack, path: str | Path) -> None:
    """Writes a pack, and its card beside it, each atomically.

    Args:
        pack: the pack.
        path: NAME.safetensors; the card is NAME.md. It shows what pictures there are in NAME.tune.

    Raises:
        PackError: the path has another suffix, or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise PackError(f"{path}: expected a name that ends in {SUFFIX}; rename it")
    fields = {
        "format": FORMAT,
        "name": pack.name,
        "passes": [{"ids": list(each.ids), "colours": each.colours.tolist()} for each in pack.palettes],
        "names": {str(id): name for id, name in pack.names.items()},
        "fingerprint": pack.fingerprint,
        "model": pack.model,
        "ids_per_pass": pack.ids_per_pass,
        "kind": pack.kind,
        "ensemble": pack.ensemble,
        "temperature": float(pack.temperature),
        "strength": float(pack.strength),
        "favour": float(pack.favour),
        "tile": pack.tile,
        "made": dict(pack.made),
        "evaluation": dict(pack.evaluation),
        "cache_grid": list(pack.caches[0].grid) if pack.caches else None,
    }
    try:
        write_safetensors(_tensors(pack), path, {_KEY: json.dumps(fields, ensure_ascii=False, allow_nan=False)})
        with replacing(path.with_suffix(".md")) as draft:
            pictures = [each.relative_to(path.parent).as_posix() for each in pictures_of(path)]
            draft.write_text(card(pack, path.name, pictures), encoding="utf-8")
    except CheckpointError as error:  # names the file already
        raise PackError(str(error)) from error
    except OSError as error:
        raise PackError(f"cannot write {path}: {error}") from error


def read_pack(path: str | Path) -> PromptPack:
    """Reads a pack and checks all of it.

    Raises:
        PackError: the file is missing, damaged, no pack, or holds what no pack can hold.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise PackError(f"no prompt pack at {path}; `incontext packs list` shows what there is")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise PackError(f"{path} is safetensors, but no prompt pack; make one with `incontext tune`")
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        return _build(_check_fields(parse_json(text, "its description")), tensors)
    except PackError as error:
        raise PackError(f"{path}: {error}") from error
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PackError(f"{path} is no whole prompt pack ({reason}); fetch it again, or make it anew") from error


def pictures_of(path: Path) -> list[Path]:
    """The pictures of the run that learned a pack, as far as they lie beside its file."""
    return [each for each in (run_folder(path) / name for name in PICTURES) if each.is_file()]


def run_folder(path: Path) -> Path:
    """NAME.tune beside a pack NAME.safetensors: where its tuning run keeps its state, curve and pictures."""
    return path.with_suffix(".tune")


def _tensors(pack: PromptPack) -> dict[str, Tensor]:
    tensors = {"images": pack.images, "masks": pack.masks}
    optional = {"tokens": pack.tokens, "pictures": pack.pictures}
    tensors.update({name: tensor for name, tensor in optional.items() if tensor is not None})
    if pack.swatches is not None:
        tensors.update({f"swatches.{name}": tensor for name, tensor in vars(pack.swatches).items()})
    for index, cache in enumerate(pack.caches or ()):
        tensors[f"cache.{index}.border"] = cache.border
        for layer, kept in enumerate(cache.layers):
            tensors[f"cache.{index}.{layer}.key"] = kept.key
            tensors[f"cache.{index}.{layer}.value"] = kept.value
    return tensors


def _check_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Makes sure that a description has the fields that it must have, of their types."""
    if fields.get("format") != FORMAT:
        raise PackError(f"expected pack format {FORMAT}, got {str(fields.get('format'))[:20]!r}; upgrade incontext")
    fields = {"strength": 1.0, "favour": 1.0, **fields}  # earlier files had none
    wrong = sorted(set(fields) ^ set(_FIELDS))
    if wrong:
        raise PackError(f"expected the fields {sorted(_FIELDS)}, got a difference in {wrong[:5]}")
    for name, types in _FIELDS.items():
        if not isinstance(fields[name], types) or isinstance(fields[name], bool):
            raise PackError(f"{name}: got a {type(fields[name]).__name__} of an unexpected type")
    return fields


def _build(fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> PromptPack:
    caches = None if fields["cache_grid"] is None else _read_caches(fields, tensors)
    if {"images", "masks"} - set(tensors):
        raise PackError(f"expected the tensors images and masks, got {sorted(tensors)[:5]}")
    images, masks = tensors.pop("images"), tensors.pop("masks")
    tokens, pictures = tensors.pop("tokens", None), tensors.pop("pictures", None)
    kept = {f.name: tensors.pop(f"swatches.{f.name}", None) for f in dataclasses.fields(Swatches)}
    lacking = sorted(name for name, tensor in kept.items() if tensor is None)
    if 0 < len(lacking) < len(kept):
        raise PackError(f"expected whole swatches, got none of their {lacking}")
    if tensors:
        raise PackError(f"holds tensors that no pack has: {sorted(tensors)[:5]}")
    return PromptPack(
        name=fields["name"],
        images=images,
        masks=masks,
        palettes=tuple(_read_palette(each) for each in fields["passes"]),
        names={int(id): name for id, name in fields["names"].items()},
        fingerprint=fields["fingerprint"],
        model=fields["model"],
        ids_per_pass=fields["ids_per_pass"],
        kind=fields["kind"],
        ensemble=fields["ensemble"],
        temperature=float(fields["temperature"]),
        strength=float(fields["strength"]),
        favour=float(fields["favour"]),
        tile=fields["tile"],
        made=fields["made"],
        evaluation=fields["evaluation"],
        tokens=tokens,
        pictures=pictures,
        swatches=None if lacking else Swatches(**kept),
        caches=caches,
    )


def _read_palette(fields: Any) -> Palette:
    if not isinstance(fields, dict) or set(fields) != {"ids", "colours"}:
        raise PackError("passes: expected ids and colours for each")
    ids, colours = fields["ids"], np.array(fields["colours"])
    if not all(type(id) is int and 1 <= id < 1 << 31 for id in ids) or not ids:
        raise PackError(f"passes: expected ids from 1 to 2^31 - 1, got {str(ids)[:100]}")
    if colours.shape != (len(ids), 3) or colours.dtype.kind not in "iu" or colours.min() < 0 or colours.max() > 255:
        raise PackError(
            f"passes: expected {len(ids)} colours of three values 0..255, got {str(fields['colours'])[:100]}"
        )
    return Palette(ids, colours.astype(np.uint8))


def _read_caches(fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> tuple[PromptCache, ...]:
    """Takes the tensors of the encoded prompts out of `tensors`."""
    grid = tuple(fields["cache_grid"])
    if len(grid) != 2 or not all(type(side) is int and side > 0 for side in grid):
        raise PackError(f"cache_grid: expected two numbers, got {str(grid)[:100]}")
    caches = []
    for index in range(len(fields["passes"])):
        border, layers = _cached(tensors, f"cache.{index}.border", 3), []
        while f"cache.{index}.{len(layers)}.key" in tensors and len(layers) < _MOST_LAYERS:
            kept = [_cached(tensors, f"cache.{index}.{len(layers)}.{part}", 5) for part in ("key", "value")]
            if kept[0].shape != kept[1].shape or kept[0].shape[3] != math.prod(grid):
                raise PackError(f"the encoded prompt of pass {index} has layers that don't fit each other")
            layers.append(KeyValue(*kept))
        caches.append(PromptCache(tuple(layers), border, grid, fields["kind"]))
    return tuple(caches)


def _cached(tensors: dict[str, Tensor], name: str, axes: int) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.ndim != axes or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise PackError(f"{name}: expected finite numbers on {axes} axes")
    return tensor
