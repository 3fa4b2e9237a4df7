"""`incontext packs`: list, show, compile, merge, verify, push, pull; and packs in `incontext segment`."""

from __future__ import annotations

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fake_models import blocks, scene
from packs import cached_model, small_pack
from PIL import Image
from predictions import predictor
from test_cli_tune import main, write_set

from incontext.model.seggpt import SegGPT
from incontext.pack import PackError, PromptPack

QUERY = scene(blocks([1, 2], (48, 40), seed=3))


@pytest.fixture
def model(monkeypatch, tmp_path) -> SegGPT:
    model = cached_model()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda *args, **kwargs: model)
    monkeypatch.setattr("incontext.pack.library.SHIPPED", tmp_path / "prompts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_pack(model, ["cell"], "cells").save(tmp_path / "prompts" / "cells.safetensors")
    small_pack(model, ["leaf", "stem"], "plants").save(tmp_path / "prompts" / "plants.safetensors")
    return model


def test_list_and_show(tmp_path, model, capsys):
    assert main("packs", "list") == 0
    header, cells, plants = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "CLASSES", "EXAMPLES", "MODEL", "FILE"]
    assert "cells" in cells and "leaf, stem" in plants and str(tmp_path / "prompts") in plants
    (tmp_path / "prompts" / "bad.safetensors").write_bytes(b"\0" * 50)
    assert main("packs", "list", tmp_path / "prompts") == 1
    assert "damaged" in capsys.readouterr().out
    assert main("packs", "show", "cells") == 0
    assert capsys.readouterr().out.startswith("# cells\n")
    assert main("packs", "show", "gone") == 2
    assert "cells" in capsys.readouterr().err


@pytest.mark.parametrize("cache", [False, True])
def test_compile(tmp_path, model, cache):
    data, out = write_set(tmp_path / "data", 3), tmp_path / "c.safetensors"
    assert main("packs", "compile", "--examples", data, "-o", out, *(["--cache"] if cache else [])) == 0
    pack = PromptPack.load(out)
    assert pack.names == {1: "cell", 2: "nucleus"} and len(pack.images) == 3 and (pack.caches is not None) == cache
    pair = (data / "images" / "0.png", data / "masks" / "0.png")
    assert main("packs", "compile", "--example", *pair, "-o", out, "--names", "1=a,2=b", "--kind", "instance") == 0
    assert PromptPack.load(out).names == {1: "a", 2: "b"}
    assert main("packs", "compile", "-o", out) == 2
    (data / "classes.txt").unlink()
    assert main("packs", "compile", "--examples", data, "-o", out, "--names", "1=a,2=b") == 0
    assert PromptPack.load(out).names == {1: "a", 2: "b"}


def test_where_no_pack_can_be_written_is_told_before_any_work(tmp_path, model, capsys):
    data = write_set(tmp_path / "data", 1)
    pair = (data / "images" / "0.png", data / "masks" / "0.png")
    (tmp_path / "file").touch()
    for out, message in ((tmp_path / "file" / "x.safetensors", "file is a file"), (tmp_path, "got the folder")):
        with pytest.raises(SystemExit):
            main("packs", "compile", "--example", *pair, "-o", out)
        assert message in capsys.readouterr().err
    with pytest.raises(PackError, match=r"^cannot write [^\n]*x\.safetensors: (?!cannot write)"):
        PromptPack.load(tmp_path / "prompts" / "cells.safetensors").save(tmp_path / "file" / "x.safetensors")


def test_errors_of_the_system_name_their_file_first(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "model.pth")

    monkeypatch.setattr("incontext.model.zoo.load_model", refuse)
    assert (
        main("packs", "compile", "--examples", write_set(tmp_path / "data", 3), "-o", tmp_path / "c.safetensors") == 1
    )
    assert capsys.readouterr().err == "incontext: model.pth: cannot be read or written (Permission denied)\n"
    assert not logging.getLogger("huggingface_hub").propagate  # or all that it prints came twice


def test_merge_and_verify(tmp_path, model, capsys):
    out = tmp_path / "all.safetensors"
    assert main("packs", "merge", "cells", "plants", "-o", out) == 0
    assert "1 cell, 2 stem, 3 leaf" in capsys.readouterr().out or PromptPack.load(out).ids
    assert set(PromptPack.load(out).names.values()) == {"cell", "leaf", "stem"}
    assert main("packs", "verify", out, "cells") == 0
    model.mask_token.data += 1
    assert main("packs", "verify", out, "cells") == 1
    assert "made for another model" in capsys.readouterr().out


def test_segment_takes_packs(tmp_path, model, capsys):
    Image.fromarray(QUERY).save(tmp_path / "q.png")
    out = tmp_path / "out"
    assert main("segment", tmp_path / "q.png", "--pack", "cells", "--pack", "plants", "-o", out, "--device", "cpu") == 0
    report = json.loads((out / "results.json").read_text())
    assert report["packs"] == ["cells", "plants"] and report["settings"]["kind"] == "semantic"
    assert sorted(report["names"].values()) == ["cell", "leaf", "stem"]
    packs = [PromptPack.load(tmp_path / "prompts" / f"{name}.safetensors") for name in ("cells", "plants")]
    expected = predictor(model).predict(QUERY, packs)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "masks" / "q.png")), expected.labels)
    assert main("segment", tmp_path / "q.png", "--pack", "cells", "-o", out, "--names", "1=a") == 2
    assert "--names: expected examples" in capsys.readouterr().err


class FakeHub:
    """A hub in a folder, for the calls that packs need."""

    def __init__(self, root):
        self.root = root

    def api(self):
        return SimpleNamespace(
            create_repo=lambda repo, private, exist_ok: (self.root / repo).mkdir(parents=True, exist_ok=exist_ok),
            create_commit=self.commit,
            list_repo_files=self.files,
        )

    def commit(self, repo, operations, commit_message):
        for each in operations:
            place = self.root / repo / each.path_in_repo
            place.parent.mkdir(exist_ok=True)
            shutil.copy(each.path_or_fileobj, place)
        return SimpleNamespace(commit_url=f"hub://{repo}/1")

    def files(self, repo, revision=None):
        from huggingface_hub.errors import RepositoryNotFoundError

        if not (self.root / repo).is_dir():
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        files = [path for path in (self.root / repo).rglob("*") if path.is_file()]
        return [path.relative_to(self.root / repo).as_posix() for path in files]

    def download(self, repo, name, revision=None):
        return str(self.root / repo / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub.api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr("incontext.pack.hub.is_reachable", lambda: True)
    return hub


def test_push_and_pull(tmp_path, model, hub, capsys):
    curve = tmp_path / "prompts" / "cells.tune" / "curve.png"
    curve.parent.mkdir()
    curve.write_bytes(b"a picture")
    for name in ("cells", "plants"):
        assert main("packs", "push", name, "me/packs") == 0
    assert capsys.readouterr().out.splitlines()[0] == "hub://me/packs/1"
    pushed = {path.relative_to(hub.root / "me/packs").as_posix() for path in (hub.root / "me/packs").rglob("*.*")}
    packs = {f"{name}.{suffix}" for name in ("cells", "plants") for suffix in ("md", "safetensors")}
    assert pushed - {"cells.tune"} == {*packs, "cells.tune/curve.png"}  # the card shows it
    assert main("packs", "pull", "me/packs", "--name", "cells", "-o", tmp_path / "got") == 0
    assert {path.name for path in (tmp_path / "got").iterdir()} == {"cells.safetensors", "cells.md"}
    shutil.rmtree(tmp_path / "prompts")
    assert main("packs", "pull", "me/packs") == 0
    assert main("packs", "show", "plants") == 0  # what was pulled has its name
    assert main("packs", "pull", "me/nothing") == 2
    assert "hub shows no me/nothing" in capsys.readouterr().err
    assert main("packs", "pull", "me/packs", "--name", "other") == 2


def test_a_hub_that_is_away_and_a_name_that_is_none(tmp_path, model, hub, monkeypatch, capsys):
    monkeypatch.setattr("incontext.pack.hub.is_reachable", lambda: False)
    monkeypatch.setattr(hub, "files", lambda *_, **__: pytest.fail("asked"))
    for command in (["pull"], ["push", "cells"]):
        assert main("packs", *command, "me/packs") == 2
        assert "the hub cannot be reached for me/packs" in capsys.readouterr().err
        assert main("packs", *command, "nosuch") == 2
        assert "expected a repository on the hub as OWNER/NAME, got 'nosuch'" in capsys.readouterr().err


def test_what_is_hostile_on_the_hub_stays_there(tmp_path, model, hub):
    (hub.root / "evil/packs").mkdir(parents=True)
    (hub.root / "evil/packs/x.safetensors").write_bytes(b"\x80\x04cos\nsystem\n." * 10)
    assert main("packs", "pull", "evil/packs", "-o", tmp_path / "got") == 2
    assert not (tmp_path / "got").exists()
