"""Names of models, and where their weights are: inside the package, in the hub's cache, or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from incontext.model.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.hub_access import REPO_ID, is_reachable
from incontext.model.seggpt import SegGPT
from incontext.model.weight_files import read_metadata, weight_paths

DEFAULT = "incontext-small"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # what ships inside the package

_SUFFIXES = (".safetensors", ".pth", ".json")


class ModelUnavailableError(CheckpointError):
    """There is no model of this name, or its weights cannot be had now."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that has a name.

    Attributes:
        name: what `load_model` calls it.
        config: its architecture.
        size: bytes of the weights to download; of a bundled model its file tells.
        licence: of the weights.
        files: file names: all that is needed, the weights first.
        repo: the hub's repository, None for a model inside the package.
        summary: one line.
    """

    name: str
    config: SegGPTConfig
    size: int | None
    licence: str
    files: tuple[str, ...]
    repo: str | None
    summary: str

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that a query is resized to."""
        return self.config.image_size


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name=DEFAULT,
            config=PRESETS["small"],
            size=None,
            licence="see its card",
            files=("incontext-small.safetensors",),
            repo=None,
            summary="ships with the package; for a CPU",
        ),
        ModelEntry(
            name="seggpt-vit-large",
            config=PRESETS["seggpt-vit-large"],
            size=1_483_000_000,
            licence="Apache-2.0",
            files=("model.safetensors", "config.json"),
            repo="BAAI/seggpt-vit-large",
            summary="the published SegGPT, in transformers' format",
        ),
        ModelEntry(
            name="seggpt-vit-large-pth",
            config=PRESETS["seggpt-vit-large"],
            size=1_483_000_000,
            licence="Apache-2.0",
            files=("seggpt_vit_large.pth",),
            repo="BAAI/SegGPT",
            summary="the published SegGPT, as its authors saved it",
        ),
    )
}


def load_model(
    name_or_path: str | Path = "default",
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SegGPT:
    """Loads a model by name, from the hub or from disk.

    What is in the hub's cache is used without a connection.

    Args:
        name_or_path: "default" (the model inside the package), a name in `MODELS`, a file or folder as
            `read_checkpoint` takes it, or a hub id "owner/name" of a repository in transformers' layout.
        revision: branch, tag or commit, for models on the hub.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto".
        dtype: of the weights in memory.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelUnavailableError: if there is no such model, or it cannot be fetched.
        CheckpointError: if its file is damaged or another model's.
        ValueError: if there is no such device.
    """
    return open_model(name_or_path, revision=revision).build(device, dtype)


def open_model(name_or_path: str | Path = "default", *, revision: str | None = None) -> Checkpoint:
    """Finds, or else downloads, a model and reads it: config, weights and metadata.

    Args:
        name_or_path, revision: as in `load_model`.

    Raises:
        ModelUnavailableError, CheckpointError: as in `load_model`.
    """
    entry = find_entry(name_or_path)
    if revision is not None and (entry is None or entry.repo is None):
        raise ModelUnavailableError(f"{name_or_path} is not on the hub; only models there have a revision")
    if entry is None:
        return read_checkpoint(name_or_path)
    path = locate(entry, revision)
    return read_checkpoint(path if path is not None else pull(entry, revision))


def find_entry(name_or_path: str | Path) -> ModelEntry | None:
    """Returns what a name stands for, or None where it is a path.

    Raises:
        ModelUnavailableError: if it is neither.
    """
    name = DEFAULT if name_or_path == "default" else str(name_or_path)
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser()
    if isinstance(name_or_path, Path) or path.exists() or path.suffix in _SUFFIXES:
        return None
    if REPO_ID.fullmatch(name):
        files = ("model.safetensors", "config.json")
        return ModelEntry(name, SegGPTConfig(), None, "see its page", files, name, "from the hub")
    raise ModelUnavailableError(
        f"no model {name!r}: expected one of {['default', *sorted(MODELS)]}, an existing file or folder, or a hub id "
        "'owner/name'"
    )


def locate(entry: ModelEntry, revision: str | None = None) -> Path | None:
    """Returns the weights of a model on this machine, or None where they must be pulled first.

    Args:
        entry: the model.
        revision: branch, tag or commit on the hub; None is the main branch as last pulled.
    """
    if entry.repo is None:
        path = WEIGHTS / entry.files[0]
        return path if weight_paths(path) else None
    from huggingface_hub import try_to_load_from_cache

    with _hub_errors(entry, revision):
        found = [try_to_load_from_cache(entry.repo, file, revision=revision) for file in entry.files]
    return Path(found[0]) if all(isinstance(path, str) for path in found) else None


def pull(entry: ModelEntry, revision: str | None = None) -> Path:
    """Downloads a model into the hub's cache, with progress; goes on where an earlier attempt stopped.

    Without a connection it takes what is in the cache.

    Args:
        entry: the model.
        revision: branch, tag or commit; None is the main branch.

    Returns:
        The weights.

    Raises:
        ModelUnavailableError: if it cannot be had.
    """
    if entry.repo is None:
        path = locate(entry)
        if path is None:
            raise ModelUnavailableError(
                f"{entry.name} should ship inside the package, but {WEIGHTS / entry.files[0]} is missing; "
                "install incontext again, or name another model"
            )
        return path
    from huggingface_hub import hf_hub_download

    with _hub_errors(entry, revision):
        # The small files first: a wrong repository shows before the long download.
        options = {"revision": revision, "local_files_only": not is_reachable()}
        paths = [hf_hub_download(entry.repo, file, **options) for file in reversed(entry.files)]
    return Path(paths[-1])


@dataclass(frozen=True)
class ModelStatus:
    """What is known of a model's main revision on this machine.

    Attributes:
        place: "bundled", "cached", "not downloaded", or "missing" for what should be bundled and is not.
        size: bytes on disk, or to download; None where neither is known.
        licence: of the weights; their metadata has the last word.
    """

    place: str
    size: int | None
    licence: str


def describe(entry: ModelEntry) -> ModelStatus:
    """Looks up where a model is. Never connects to the hub.

    Raises:
        CheckpointError: if its file is damaged.
    """
    path = locate(entry)
    if path is None:
        return ModelStatus("missing" if entry.repo is None else "not downloaded", entry.size, entry.licence)
    size = sum(file.stat().st_size for file in weight_paths(path))
    licence = read_metadata(path).get("licence", entry.licence)
    return ModelStatus("bundled" if entry.repo is None else "cached", size, licence)


@contextmanager
def _hub_errors(entry: ModelEntry, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    at = f"{entry.repo}" + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailableError(f"the hub has no {at}; see the branches and tags on its page") from error
    except errors.GatedRepoError as error:
        raise ModelUnavailableError(
            f"{at} asks for a log-in: accept its terms on its page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailableError(f"the hub has no public {at}; check the name, or run `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelUnavailableError(
            f"{at} is not in the cache and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set); "
            f"run `incontext pull {entry.name}` where there is a connection, or use the bundled model "
            f"{DEFAULT!r}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelUnavailableError(f"{at} lacks one of {list(entry.files)}; it is no SegGPT in that format") from error
    except errors.HFValidationError as error:
        raise ModelUnavailableError(f"{entry.repo!r} is not a valid hub id: {error}") from error
    except Exception as error:  # dropped connections and full disks come as errors of several packages
        raise ModelUnavailableError(
            f"fetching {at} failed: {error}; run `incontext pull {entry.name}` again, it goes on where it stopped"
        ) from error
