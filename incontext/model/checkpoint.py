"""Checkpoints: a config and its weights, read strictly from any of their formats, written atomically.

Formats: our own safetensors (the config is JSON in the metadata), the published `.pth`, and the folder that
transformers reads and writes. Weights can be stored in half precision; they are loaded as float32 unless
asked otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from incontext.device import pick_device
from incontext.model.config import SegGPTConfig
from incontext.model.published_format import infer_config, require_published
from incontext.model.seggpt import SegGPT
from incontext.model.transformers_format import (
    config_from_transformers,
    config_to_transformers,
    key_from_transformers,
    key_to_transformers,
)
from incontext.model.weight_files import (
    INDEX_SUFFIX,
    CheckpointError,
    parse_json,
    read_json,
    read_weights,
    write_json,
    write_pth,
    write_safetensors,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "fingerprint",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

FORMAT_VERSION = 1
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_VERSION, _CONFIG, _OURS = "incontext.format", "incontext.config", "incontext."
_FOLDER_WEIGHTS, _FOLDER_CONFIG = "model.safetensors", "config.json"
# Settings for training and prediction: two models that differ in them alone compute the same.
_NOT_ARCHITECTURE = ("stochastic_depth", "loss_beta", "ids_per_pass", "one_by_one")
_LISTED = 8  # of each kind of wrong key, in an error


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory, checked: the tensors are exactly those of a model of this config, and finite.

    Attributes:
        config: the architecture.
        tensors: published name to tensor, as stored on disk (dtype included); possibly views of the file.
        metadata: free text by name, such as "name", "licence" or "card".
    """

    config: SegGPTConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def build(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> SegGPT:
        """Returns the model, in evaluation mode. It owns its weights: the file may change or go.

        Raises:
            ValueError: if there is no such device.
        """
        device = pick_device(device)
        model = _empty_model(self.config)
        state = {key: tensor.to(device, dtype, copy=True) for key, tensor in self.tensors.items()}
        model.load_state_dict(state, assign=True)
        return model.eval()


def load_checkpoint(
    path: str | Path,
    *,
    config: SegGPTConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SegGPT:
    """Loads a model from a file or a transformers folder; see `read_checkpoint`.

    Args:
        path: the file or folder.
        config: the architecture, where the file does not tell it.
        device: where to, as in `pick_device`.
        dtype: of the weights in memory.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: if the file is no whole checkpoint of such a model.
        ValueError: if there is no such device.
    """
    return read_checkpoint(path, config=config).build(device, dtype)


def read_checkpoint(path: str | Path, *, config: SegGPTConfig | None = None) -> Checkpoint:
    """Reads and checks a checkpoint without building the model.

    The content decides on the format, not the name. The config comes from, in this order: `config`, the
    metadata, a `config.json` beside the file, the shapes of the weights (for what has the published model's
    head).

    Args:
        path: our safetensors, one or in shards; a `.pth` as published; a folder in transformers' layout, or
            the safetensors in it.
        config: the architecture, where the file does not tell it.

    Raises:
        CheckpointError: if anything is missing, damaged, foreign, not finite, or does not fit the config. The
            message lists the keys that are missing as "-" and those that are too many as "+".
    """
    path = Path(path).expanduser()
    if path.is_dir():
        folder, path = path, path / _FOLDER_WEIGHTS
        if not path.exists() and not path.with_name(path.name + INDEX_SUFFIX).exists():
            raise CheckpointError(f"{folder} holds no {_FOLDER_WEIGHTS}; expected a folder that transformers wrote")
    stored, described = read_weights(path)
    tensors = {key_from_transformers(key): tensor for key, tensor in stored.items()}
    if len(tensors) != len(stored):
        raise CheckpointError(f"{path} holds the same weights twice, under published and under transformers' names")
    if config is None:
        config = _find_config(path, described, tensors)
    _check(path, config, tensors)
    metadata = {name: text for name, text in described.items() if name != "format" and not name.startswith(_OURS)}
    return Checkpoint(config, tensors, metadata)


def save_checkpoint(
    model: SegGPT | Checkpoint,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes a model in the format that `path` asks for, atomically.

    Args:
        model: a model, or a checkpoint that was read.
        path: `NAME.safetensors` (ours), `NAME.pth` (published; has no room for metadata), or a folder
            (transformers).
        metadata: free text by name, in addition to the checkpoint's own.
        dtype: float32, float16 or bfloat16 storage; None keeps what the model has.
        shard_bytes: the most bytes in one safetensors file; None for a single file.

    Raises:
        CheckpointError: for another suffix, values that `dtype` cannot hold, a model that the format cannot
            express, or a place that cannot be written.
    """
    path = Path(path).expanduser()
    tensors = model.tensors if isinstance(model, Checkpoint) else model.state_dict()
    texts = {**(model.metadata if isinstance(model, Checkpoint) else {}), **(metadata or {})}
    reserved = sorted(name for name in texts if name == "format" or name.startswith(_OURS))
    if reserved or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"metadata must be text, under other names than {reserved or 'format, incontext.*'}")
    if dtype is not None:
        if dtype not in STORAGE_DTYPES.values():
            raise CheckpointError(f"cannot store weights as {dtype}; choose one of {sorted(STORAGE_DTYPES)}")
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    _check_finite(path, tensors)
    with _explained(f"cannot write {path}"):
        if path.suffix == ".safetensors":
            config = json.dumps(model.config.to_dict(), sort_keys=True)
            write_safetensors(tensors, path, {**texts, _VERSION: str(FORMAT_VERSION), _CONFIG: config}, shard_bytes)
        elif path.suffix == ".pth":
            require_published(model.config)
            write_pth(tensors, path)
        elif path.is_dir() or not path.suffix:
            fields = config_to_transformers(model.config)
            fields["dtype"] = str(tensors["pos_embed"].dtype).removeprefix("torch.")
            renamed = {key_to_transformers(key): tensor for key, tensor in tensors.items()}
            write_safetensors(renamed, path / _FOLDER_WEIGHTS, texts, shard_bytes)
            write_json(fields, path / _FOLDER_CONFIG)
        else:
            raise ValueError("expected NAME.safetensors, NAME.pth or a folder (no suffix)")


def fingerprint(model: SegGPT | Checkpoint) -> str:
    """Identifies what a model computes: a hash of architecture and weights, the same on every machine.

    Weights count at bfloat16 precision, so a model and the same one loaded as bfloat16 agree; one that was
    stored as float16 has been rounded twice and is another model. Settings for training and prediction (loss,
    stochastic depth, ids per pass, one by one) do not count, but `refine` does; fields that have their default do
    not, so that fields added later change nothing.

    Returns:
        64 hexadecimal digits.
    """
    defaults = SegGPTConfig().to_dict()
    architecture = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in _NOT_ARCHITECTURE and value != defaults[name]
    }
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    tensors = model.tensors if isinstance(model, Checkpoint) else model.state_dict()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)}".encode())
        values = tensors[key].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(values.view(torch.int16).numpy().astype("<i2", copy=False))
    return digest.hexdigest()


def _find_config(path: Path, described: Mapping[str, str], tensors: Mapping[str, Tensor]) -> SegGPTConfig:
    with _explained(f"{path} has no usable config"):
        if _CONFIG in described:
            version = described.get(_VERSION)
            if version != str(FORMAT_VERSION):
                raise ValueError(f"format version {version}, this release reads {FORMAT_VERSION}; upgrade incontext")
            return SegGPTConfig.from_dict(parse_json(described[_CONFIG], f"{path}, metadata {_CONFIG}"))
        neighbour = path.with_name(_FOLDER_CONFIG)
        if path.name == _FOLDER_WEIGHTS and neighbour.is_file():
            return config_from_transformers(read_json(neighbour))
        inferred = infer_config({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    if inferred is None:
        some = [f"  + {key} {tuple(tensor.shape)}" for key, tensor in tensors.items()]
        raise CheckpointError(
            f"{path} is not a SegGPT checkpoint. It holds {len(tensors)} tensors:\n"
            + "\n".join(_shorten(some))
            + "\nExpected seggpt_vit_large.pth, BAAI/seggpt-vit-large, or a file that this project saved"
        )
    return inferred


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns a ValueError into a CheckpointError that says what it means for the file."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{what}: {error}") from error


def _check(path: Path, config: SegGPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Compares tensors with what the config asks for.

    Raises:
        CheckpointError: on any difference.
    """
    got = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if config.depth > len(got):  # or a config from a hostile file could ask for a billion blocks
        raise CheckpointError(f"{path} holds {len(got)} tensors, too few for the {config.depth} blocks of its config")
    try:
        expected = {key: tuple(tensor.shape) for key, tensor in _empty_model(config).state_dict().items()}
    except (RuntimeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} has a config that no model can have ({error}): {config}") from error
    missing = [f"  - {key} {expected[key]}" for key in expected if got.get(key) != expected[key]]
    unexpected = [f"  + {key} {got[key]}" for key in got if expected.get(key) != got[key]]
    if missing or unexpected:
        lines = [*_shorten(missing), *_shorten(unexpected)]
        if len(missing) == len(expected):
            fix = "This is the file of another model; expected a SegGPT checkpoint"
        else:
            fix = "The file or its config is another model's; pass the right one with config=SegGPTConfig(...)"
        raise CheckpointError(
            f"the weights in {path} do not fit their config ({len(missing)} missing -, {len(unexpected)} "
            "unexpected +):\n" + "\n".join(lines) + f"\n{fix}"
        )
    whole = [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise CheckpointError(
            f"{path} holds {whole[0]} as {tensors[whole[0]].dtype}, expected floating point; quantised "
            "weights are not supported"
        )
    _check_finite(path, tensors)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    bad = [key for key, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} weights hold NaN or infinity, first {bad[:3]}; the training diverged, the "
            "file is damaged, or half precision cannot hold them"
        )


def _shorten(lines: list[str]) -> list[str]:
    rest = len(lines) - _LISTED
    return lines if rest <= 0 else [*lines[:_LISTED], f"  {lines[0].split()[0]} ... and {rest} more"]


def _empty_model(config: SegGPTConfig) -> SegGPT:
    """A model whose weights have shapes but no memory."""
    with torch.device("meta"):
        return SegGPT(config)
