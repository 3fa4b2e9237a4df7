"""The commands of `incontext eval` from end to end, on a model of a few weights."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from random_models import TINY, random_model

from incontext.cli.main import main
from incontext.model.checkpoint import save_checkpoint


@pytest.fixture
def model(tmp_path):
    save_checkpoint(random_model(TINY), tmp_path / "tiny.safetensors")
    return ["--model", str(tmp_path / "tiny.safetensors"), "--device", "cpu"]


@pytest.fixture
def data(tmp_path):
    """A set of images, and a set with a video."""
    rng = np.random.default_rng(0)
    for folder, mask_folder in (("set/images", "set/masks"), ("clip/walk/frames", "clip/walk/masks")):
        for t in range(4):
            mask = np.zeros((24, 32), np.uint8)
            mask[4:16, 4 + 2 * t : 16 + 2 * t] = 1
            for place, pixels in ((folder, rng.integers(0, 256, (24, 32, 3), np.uint8)), (mask_folder, mask)):
                path = tmp_path / "data" / place / f"{t:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_davis_compares_memories_and_policies(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["eval", "davis", str(data / "clip"), "--memory", "0,2", "--policy", "selective,fifo", *model]
    assert main([*command, "-o", str(out)]) == 0
    runs = read(out)["runs"]
    assert [run["name"] for run in runs] == ["memory 0", "selective 2", "fifo 2"]  # without memory, policies are one
    assert all(0 <= run["jf"] <= 1 and run["frames"] == 4 and not run["failures"] for run in runs)
    with zipfile.ZipFile(out / "fifo-2.zip") as archive:
        assert archive.namelist() == [f"walk/{t:05}.png" for t in range(4)]
    first = out / "fifo-2/walk/00000.png"
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(data / "clip/walk/masks/00000.png")))

    written = first.stat().st_mtime_ns
    assert main([*command, "-o", str(out)]) == 0  # done before: scored again, not tracked again
    assert first.stat().st_mtime_ns == written and [run["jf"] for run in read(out)["runs"]] == [r["jf"] for r in runs]
    assert "fifo 2" in capsys.readouterr().out


def test_masks_are_not_used_again_for_other_data(data, model, tmp_path, capsys):
    command = ["eval", "davis", str(data / "clip"), "--memory", "0", *model, "-o", str(tmp_path / "out")]
    assert main([*command, "--year", "2016"]) == 0
    assert main([*command, "--year", "2017"]) == 2
    assert "same settings" in capsys.readouterr().err
    assert read(tmp_path / "out")["settings"]["year"] == 2016


def test_folders_are_shown_as_asked_for(data, model, tmp_path):
    scores = []
    for number, options in enumerate(([], ["--tile", "16", "--overlap", "0"], ["--flip", "--batch-size", "2"])):
        command = ["eval", "folders", str(data), *model, *options, "--no-baselines", "--refine"]
        assert main([*command, "-o", str(tmp_path / str(number))]) == 0
        scores.append([row["miou"] for row in read(tmp_path / str(number))["scores"]])
    assert len(scores[0]) == 2 and scores[0] != scores[1] and scores[0] != scores[2]


def test_examples_are_chosen_out_of_a_pool(data, model, tmp_path):
    command = ["eval", "folders", str(data), "--sets", "set", *model, "--pool", "3", "--no-baselines"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out")["scores"]
    assert [row["method"] for row in rows] == ["tiny", "tiny of 3"] and all(row["queries"] == 4 for row in rows)


def test_clips_clicks_and_semantic_write_their_numbers(data, model, tmp_path):
    clips = ["clips", "--objects", "2", "--clips", "1", "--frames", "8", "--size", "48", "--memory", "1"]
    semantic = ["semantic", str(data / "set"), "--examples", str(data / "set"), "--limit", "2"]
    clicks = ["clicks", str(data), "--clicks", "1,2", "--sets", "set"]
    for name, command in (("clips", clips), ("semantic", semantic), ("clicks", clicks)):
        assert main(["eval", *command, *model, "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name / "results.md").read_text().startswith("| ")
    assert read(tmp_path / "clips")["selective 1"][0]["counts"]["visible"] > 0
    assert set(read(tmp_path / "semantic")["ious"]) == {"0", "1"}
    assert read(tmp_path / "clicks")["set"]["objects"] == 4


@pytest.mark.parametrize(
    "command, message",
    [
        (["davis", "{}", "--policy", "lifo"], "expected some of selective, fifo; got lifo"),
        (["davis", "{}", "--videos", "swim"], "no video named swim"),
        (["clicks", "{}", "--sets", "other"], "no set named other"),
        (["semantic", "{}"], "a model needs a prompt"),
        (["clips", "--objects", "30"], "at most 20 objects"),
    ],
)
def test_errors_are_one_line(data, model, capsys, command, message):
    folder = data / ("set" if command[0] == "semantic" else "clip")
    assert main(["eval", *(word.format(folder) for word in command), *model]) == 2
    assert message in capsys.readouterr().err
