"""`incontext tune`: from a folder to a pack, with its card, curve and picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_models import blocks, scene
from packs import cached_model
from PIL import Image

from incontext.cli.main import main as command
from incontext.cli.tune import labelled
from incontext.labelled_folders import SetError
from incontext.pack import PromptPack


def main(*arguments) -> int:
    return command([str(each) for each in arguments])


def write_set(folder, count=6, names=("cell", "nucleus")):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        labels = blocks([1, 2], (40, 48), seed=number)
        Image.fromarray(scene(labels)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels.astype("uint8")).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("".join(f"{id} {name}\n" for id, name in enumerate(names, 1)))
    return folder


@pytest.fixture
def model(monkeypatch):
    model = cached_model()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda *args, **kwargs: model)
    return model


def test_a_pack_is_made_tested_and_shown(tmp_path, model, capsys):
    data, test = write_set(tmp_path / "train"), write_set(tmp_path / "val", 3)
    config = tmp_path / "quick.json"
    config.write_text(json.dumps({"steps": 4, "evaluate_every": 2, "candidates": 2, "batch_size": 2, "examples": 3}))
    out = tmp_path / "packs" / "cells.safetensors"
    assert (
        main(
            "tune",
            data,
            "-o",
            out,
            "--config",
            config,
            "--examples",
            2,
            "--test",
            test,
            "--test-limit",
            2,
            "--no-mirror",
        )
        == 0
    )
    pack = PromptPack.load(out)
    assert pack.name == "cells" and pack.names == {1: "cell", 2: "nucleus"} and len(pack.images) == 2
    assert pack.made["data"] == "train" and pack.made["mirror"] is False and pack.made["steps done"] == 4
    assert pack.evaluation["test images"] == 2 and pack.evaluation["test set"] == "val"
    told = [key for key in pack.evaluation if key.startswith("test mIoU")]
    assert len(told) == 3 and all(0 <= pack.evaluation[key] <= 100 for key in told)
    assert {path.name for path in (tmp_path / "packs" / "cells.tune").iterdir()} == {
        "curve.csv",
        "curve.png",
        "before-after.jpg",
        "state.pt",
    }
    card = out.with_suffix(".md").read_text()
    assert "How good it is" in card
    for picture in ("cells.tune/curve.png", "cells.tune/before-after.jpg"):
        assert f"](<{picture}>)" in card and (out.parent / picture).is_file()
    assert "held-out IoU, tuned" in capsys.readouterr().out
    assert main("packs", "verify", out, "--test", test, "--test-limit", 2, "--real", data) == 0
    printed = capsys.readouterr().out
    assert sum("6 real examples" in key for key in told) == 2  # there are no 8
    for key in told:  # scored again, it is as good as its card says
        assert f"{key}: {pack.evaluation[key]} (the card says {pack.evaluation[key]})" in printed


def test_a_folder_takes_every_kind_of_mask(tmp_path):
    folder = write_set(tmp_path / "data", 2)
    masks = [folder / "masks" / f"{k}.png" for k in range(2)]
    labels = [np.asarray(Image.open(path)) for path in masks]
    for path, each in zip(masks, labels, strict=True):
        Image.fromarray(np.where(each > 0, 255, 0).astype(np.uint8)).save(path)
    assert [example.ids for example in labelled(str(folder))] == [(1,), (1,)]
    Image.fromarray(labels[0]).save(masks[0])
    assert [example.ids for example in labelled(str(folder))] == [(1, 2), ()]  # 255 is unknown beside ids
    colours = np.array([(0, 0, 0), (250, 0, 0), (0, 0, 250)], np.uint8)
    Image.fromarray(colours[labels[0]]).save(masks[0])
    Image.fromarray(colours[np.where(labels[1] == 2, 2, 0)]).save(masks[1])  # one colour only: the same id still
    both, one = labelled(str(folder))
    assert both.ids == (1, 2) and len(one.ids) == 1
    blue = both.labels[labels[0] == 2][0]
    assert one.ids == (blue,)
    Image.fromarray(labels[0][:-1]).save(masks[0])
    with pytest.raises(SetError, match="expected the image's size"):
        labelled(str(folder))[0]


def test_wrong_arguments_are_named(tmp_path, model, capsys):
    data, config = write_set(tmp_path / "train", 2), tmp_path / "c.json"
    assert main("tune", data, "-o", tmp_path / "pack.bin") == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    config.write_text('{"stepz": 1}')
    assert main("tune", data, "-o", tmp_path / "p.safetensors", "--config", config) == 2
    assert "stepz" in capsys.readouterr().err
    assert main("tune", tmp_path / "gone", "-o", tmp_path / "p.safetensors") == 2
