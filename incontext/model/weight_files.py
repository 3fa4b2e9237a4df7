"""Weight files on disk: named tensors and text metadata, safely read and atomically written.

What the names mean is none of this file's business; see `checkpoint.py`.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from incontext.atomic import replacing

INDEX_SUFFIX = ".index.json"  # "model.safetensors.index.json" lists the shards of "model.safetensors"


class CheckpointError(ValueError):
    """A file or folder cannot be used as weights, or a model cannot be written in a format."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file of weights: safetensors (in one file or in shards) or a torch `.pth`.

    The content decides which. Nothing but tensors and plain containers is ever unpickled.

    Args:
        path: the file, or the name that its shards share ("model.safetensors" beside
            "model.safetensors.index.json").

    Returns:
        The tensors, as they are stored (they may be views of the file), and the metadata (none in a `.pth`).

    Raises:
        CheckpointError: if the file is missing, damaged, of another format, or holds more than tensors.
    """
    if path.name.endswith(INDEX_SUFFIX):
        path = path.with_name(path.name.removesuffix(INDEX_SUFFIX))
    index = path.with_name(path.name + INDEX_SUFFIX)
    if not path.exists() and index.exists():
        return _read_shards(index)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: expected a .safetensors or .pth file, or a transformers folder")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`"
        )
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pth(path), {}
    raise CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is neither safetensors nor a torch .pth; was the download cut "
        "off, or is it a web page? Fetch the file again"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({_one_line(error)}); fetch or convert it again"
        ) from error


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    places = _read_index(index)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(places.values())):
        shard = index.with_name(name)
        if not shard.is_file():
            raise CheckpointError(f"{index} names the shard {name}, which is missing; fetch all shards")
        part, described = _read_safetensors(shard)
        tensors.update(part)
        metadata.update(described)
    if set(tensors) != set(places):
        raise CheckpointError(f"{index} and its shards do not list the same tensors; fetch them all again")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of safetensors, in one file or in shards, without the weights; of a `.pth`, none.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    files = weight_paths(path)
    if files[0].suffix == ".pth":
        return {}
    try:
        with safe_open(files[0], framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {files[0]}: {_one_line(error)}") from error


def weight_paths(path: Path) -> list[Path]:
    """Returns the files that hold the weights named `path`: it alone, or its shards, or none.

    Raises:
        CheckpointError: if there is an index of shards that makes no sense.
    """
    index = path.with_name(path.name + INDEX_SUFFIX)
    if path.exists() or not index.exists():
        return [path] if path.exists() else []
    return [index.with_name(name) for name in sorted(set(_read_index(index).values()))]


def _read_index(index: Path) -> dict[str, str]:
    """Reads which shard holds which tensor."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; fetch it again")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:  # never read outside the index's own folder
            raise CheckpointError(f"{index} names the shard {name!r}, expected a plain file name")
    return places


def _read_pth(path: Path) -> dict[str, Tensor]:
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                # torch stores its records as they are; a packed one can only be meant to fill the memory.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise CheckpointError(f"{path} is a compressed archive, not a torch .pth; unpack it first")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "GLOBAL" not in str(error):
            raise CheckpointError(f"{path} is a damaged torch .pth ({_one_line(error)}); fetch it again") from error
        raise CheckpointError(
            f"{path} holds Python objects beside tensors ({_one_line(error)}). Opening them could run any "
            "code, so it is refused; get the weights as safetensors, or re-save the state dict alone"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises a dozen types here, down to bare struct and attribute errors
        raise CheckpointError(f"{path} is a damaged torch .pth ({_one_line(error)}); fetch it again") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f'{path} holds a {type(state).__name__}, expected {{"model": state dict}}')
    odd = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f'{path} holds other things than tensors under {odd[:5]}, expected {{"model": state dict}}; pick '
            "the state "
            "dict out of it and save that alone"
        )
    for key, value in state.items():
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(f"{path}: the tensor {key} stores less than its shape {tuple(value.shape)} claims")
    return state


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Parses a JSON object found at `where`.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {_one_line(error)}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where} holds a JSON {type(fields).__name__}, expected an object")
    return fields


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as draft:
            yield draft
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {_one_line(error)}") from error


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], shard_bytes: int | None = None
) -> None:
    """Writes tensors and metadata as safetensors, each file whole or not at all, and shards when all are there.

    Args:
        tensors: to store, on any device.
        path: the file; where shards are needed, the name that they share.
        metadata: text by name, repeated in every shard.
        shard_bytes: the most bytes of tensors in one file (a larger tensor gets a file of its own), None for
            one file.

    Raises:
        CheckpointError: if it cannot be written.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        bytes_of_tensor = tensor.numel() * tensor.element_size()
        if shard_bytes is not None and shards[-1] and size + bytes_of_tensor > shard_bytes:
            shards.append({})
            size = 0
        # A copy of its own for every tensor: safetensors refuses those that share memory.
        shards[-1][key] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        size += bytes_of_tensor
    index = path.with_name(path.name + INDEX_SUFFIX)
    if len(shards) == 1:
        with _draft(path) as draft:
            _write_one(shards[0], draft, metadata)
        index.unlink(missing_ok=True)
        return
    places = {}
    with contextlib.ExitStack() as drafts:  # no shard takes the place of an older one before all are written
        for number, shard in enumerate(shards, start=1):
            name = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
            _write_one(shard, drafts.enter_context(_draft(path.with_name(name))), metadata)
            places.update(dict.fromkeys(shard, name))
        index.unlink(missing_ok=True)  # and nobody reads while some have
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json({"metadata": {"total_size": total}, "weight_map": places}, index)
    path.unlink(missing_ok=True)  # or the old single file would hide the shards


def _write_one(tensors: dict[str, Tensor], draft: Path, metadata: Mapping[str, str]) -> None:
    draft.touch()
    mode = draft.stat().st_mode
    save_file(tensors, draft, metadata={"format": "pt", **metadata})
    draft.chmod(mode)  # safetensors makes files that their owner alone can read


def write_pth(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as the published checkpoint is: `{"model": state dict}`, atomically.

    Raises:
        CheckpointError: if it cannot be written.
    """
    state = {key: tensor.detach().to("cpu").clone() for key, tensor in tensors.items()}
    with _draft(path) as draft:
        torch.save({"model": state}, draft)


def write_json(fields: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON object, atomically.

    Raises:
        CheckpointError: if it cannot be written.
    """
    with _draft(path) as draft:
        draft.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
