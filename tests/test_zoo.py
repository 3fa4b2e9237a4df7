"""Names of models, and the commands around them. The hub is a folder here; nothing connects."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors, file_download
from random_models import TINY, random_model

from incontext.cli import weights as commands
from incontext.model import zoo
from incontext.model.checkpoint import CheckpointError, fingerprint, read_checkpoint, save_checkpoint
from incontext.model.zoo import (
    ModelUnavailableError,
    describe,
    find_entry,
    load_model,
    locate,
    open_model,
    pull,
)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def bundled(model, tmp_path, monkeypatch):
    """A package with a model inside."""
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    path = tmp_path / "weights" / "incontext-small.safetensors"
    save_checkpoint(model, path, metadata={"licence": "Apache-2.0"}, dtype=torch.float16)
    return path


class Hub:
    """Stands in for the hub: files under remote/REPO/REVISION, a cache under cache/."""

    def __init__(self, folder) -> None:
        self.remote, self.cache = folder / "remote", folder / "cache"
        self.downloads: list[str] = []
        self.error: Exception | None = None

    def add(self, repo: str, model, name: str = "", revision: str = "main") -> None:
        folder = self.remote / repo / revision
        save_checkpoint(model, folder / name if name else folder)

    def try_to_load_from_cache(self, repo_id, filename, cache_dir=None, revision=None, repo_type=None):
        path = self.cache / repo_id / (revision or "main") / filename
        return str(path) if path.exists() else None

    def hf_hub_download(self, repo_id, filename, *, revision=None, **options):
        if self.error is not None:
            raise self.error
        path = self.cache / repo_id / (revision or "main") / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.remote / repo_id / (revision or "main") / filename, path)
        self.downloads.append(filename)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", hub.try_to_load_from_cache)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr(zoo, "is_reachable", lambda: True)
    return hub


def http_error(kind: type[Exception]) -> Exception:
    """An error of the hub without its response, whose type depends on the hub's version."""
    error = kind.__new__(kind)
    error.args = ("no",)
    return error


def test_the_default_is_the_bundled_model(model, bundled):
    loaded = load_model()
    assert loaded.config == TINY and not loaded.training
    assert loaded.mask_token.dtype == torch.float32
    assert fingerprint(loaded) == fingerprint(load_model("incontext-small")) == fingerprint(load_model(bundled))
    assert load_model("default", dtype=torch.bfloat16, device="auto").mask_token.dtype == torch.bfloat16


def test_a_bundled_model_in_shards(model, bundled):
    save_checkpoint(model, bundled, shard_bytes=200_000)
    assert not bundled.exists()
    assert fingerprint(load_model()) == fingerprint(model)
    assert describe(zoo.MODELS[zoo.DEFAULT]).size == sum(f.stat().st_size for f in bundled.parent.glob("*-of-*"))


def test_a_package_without_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(ModelUnavailableError, match="should ship inside the package"):
        load_model()


def test_paths(model, tmp_path):
    save_checkpoint(model, tmp_path / "a.safetensors")
    save_checkpoint(model, tmp_path / "folder")
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors"), tmp_path / "folder"):
        assert fingerprint(load_model(path)) == fingerprint(model)
    with pytest.raises(CheckpointError, match=r"no weights at .*b\.safetensors"):
        load_model(str(tmp_path / "b.safetensors"))
    with pytest.raises(ModelUnavailableError, match="only models there have a revision"):
        load_model(tmp_path / "a.safetensors", revision="main")
    with pytest.raises(ValueError, match="device"):
        load_model(tmp_path / "a.safetensors", device="tpu")


def test_unknown_names():
    with pytest.raises(ModelUnavailableError, match=r"no model 'seggpt': expected one of \['default', .*'seggpt-vit-l"):
        load_model("seggpt")


def test_entries_tell_what_users_need():
    entry = zoo.MODELS["seggpt-vit-large"]
    assert (entry.repo, entry.input_size, entry.licence) == (
        "BAAI/seggpt-vit-large",
        (448, 448),
        "Apache-2.0",
    )
    assert zoo.MODELS["seggpt-vit-large-pth"].files == ("seggpt_vit_large.pth",)
    assert all(name == entry.name for name, entry in zoo.MODELS.items())
    assert zoo.DEFAULT in zoo.MODELS


def test_hub_models_are_downloaded_once(model, hub):
    hub.add("BAAI/seggpt-vit-large", model)
    entry = find_entry("seggpt-vit-large")
    assert locate(entry) is None and describe(entry).place == "not downloaded"
    assert fingerprint(load_model("seggpt-vit-large")) == fingerprint(model)
    assert hub.downloads == ["config.json", "model.safetensors"]
    assert describe(entry).place == "cached"
    hub.error = http_error(errors.HfHubHTTPError)  # offline from here on
    assert fingerprint(load_model("seggpt-vit-large")) == fingerprint(model)


def test_revisions(model, hub):
    other = random_model(seed=3)
    hub.add("someone/theirs", model)
    hub.add("someone/theirs", other, revision="v2")
    assert fingerprint(load_model("someone/theirs")) == fingerprint(model)
    assert fingerprint(load_model("someone/theirs", revision="v2")) == fingerprint(other)
    with pytest.raises(ModelUnavailableError, match="only models there have a revision"):
        load_model("default", revision="v2")


def test_pull_fetches_again(model, hub):
    hub.add("BAAI/seggpt-vit-large", model)
    entry = find_entry("seggpt-vit-large")
    first = pull(entry)
    hub.add("BAAI/seggpt-vit-large", random_model(seed=3))
    assert pull(entry) == first
    assert fingerprint(open_model("seggpt-vit-large")) == fingerprint(random_model(seed=3))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(errors.RepositoryNotFoundError), "no public a/b"),
        (http_error(errors.GatedRepoError), "asks for a log-in"),
        (http_error(errors.RevisionNotFoundError), "no a/b at revision 'v9'"),
        (http_error(errors.RemoteEntryNotFoundError), "lacks one of"),
        (errors.LocalEntryNotFoundError("no"), "not in the cache and the hub cannot be reached"),
        (http_error(errors.HfHubHTTPError), "goes on where it stopped"),
        (OSError(28, "No space left on device"), "No space left.*goes on where it stopped"),
        (RuntimeError("slow"), "slow.*goes on where it stopped"),
    ],
)
def test_hub_errors(hub, error, expected):
    hub.error = error
    with pytest.raises(ModelUnavailableError, match=expected):
        load_model("a/b", revision="v9")


def test_offline_for_real(tmp_path, monkeypatch):
    """huggingface_hub itself, told that there is no connection."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert describe(zoo.MODELS["seggpt-vit-large"]).place == "not downloaded"
    with pytest.raises(ModelUnavailableError, match="incontext pull seggpt-vit-large"):
        load_model("seggpt-vit-large")


def test_without_a_connection_nothing_is_asked_of_the_hub(tmp_path, monkeypatch):
    """Its client would try for half a minute."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "is_reachable", lambda: False)
    monkeypatch.setattr(file_download, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ModelUnavailableError, match="not in the cache and the hub cannot be reached"):
        pull(find_entry("seggpt-vit-large"))


# The commands


def run(*words) -> int:
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


def test_convert_there_and_back(model, tmp_path, capsys):
    source, folder, back = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "back.safetensors"
    save_checkpoint(model, source, metadata={"licence": "MIT"})
    assert run("convert", source, folder) == 0
    assert (folder / "config.json").exists() and (folder / "model.safetensors").exists()
    assert run("convert", folder, back) == 0
    assert fingerprint(read_checkpoint(back)) == fingerprint(model)
    assert read_checkpoint(back).metadata == {"licence": "MIT"}
    assert "0.2 M parameters, input 32 x 32" in capsys.readouterr().out


def test_convert_stores_half(model, tmp_path):
    save_checkpoint(model, tmp_path / "a.safetensors")
    assert run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--dtype", "float16") == 0
    assert read_checkpoint(tmp_path / "b.safetensors").tensors["mask_token"].dtype == torch.float16


def test_convert_does_not_overwrite_unasked(model, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_checkpoint(model, source)
    target.write_text("precious")
    with pytest.raises(CheckpointError, match="exists; choose another OUT, or pass --overwrite"):
        run("convert", source, target)
    assert target.read_text() == "precious"
    assert run("convert", source, target, "--overwrite") == 0
    assert fingerprint(read_checkpoint(target)) == fingerprint(model)


def test_pull_prints_where(model, hub, capsys):
    hub.add("BAAI/SegGPT", random_model(TINY), name="unused.safetensors")
    (hub.remote / "BAAI/SegGPT/main/unused.safetensors").rename(hub.remote / "BAAI/SegGPT/main/seggpt_vit_large.pth")
    assert run("pull", "seggpt-vit-large-pth") == 0
    assert capsys.readouterr().out.strip() == str(hub.cache / "BAAI/SegGPT/main/seggpt_vit_large.pth")


def test_pull_of_a_path(tmp_path):
    with pytest.raises(ModelUnavailableError, match="nothing to pull"):
        run("pull", tmp_path)


def test_models_lists_them_all(bundled, model, hub, capsys):
    hub.add("BAAI/seggpt-vit-large", model)
    pull(find_entry("seggpt-vit-large"))
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "INPUT", "SIZE", "LICENCE", "WHERE"]
    assert [line.split()[0] for line in lines[1:]] == list(zoo.MODELS)
    assert "(default)" in lines[1] and "Apache-2.0" in lines[1] and "bundled" in lines[1]
    assert "448 x 448" in lines[2] and "cached" in lines[2]
    assert "1483 MB" in lines[3] and "not downloaded" in lines[3]


def test_parsing_does_not_import_torch():
    code = (
        "import argparse, sys; from incontext.cli.weights import add_parser; "
        "add_parser(argparse.ArgumentParser().add_subparsers()); "
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
