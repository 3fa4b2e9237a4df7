"""`incontext label` from the shell's side: arguments, what it says, and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, example, scene
from PIL import Image
from random_models import random_model

from incontext.cli.class_ids import tell_renumbered
from incontext.cli.main import main
from incontext.image import open_labels
from incontext.pack.compiling import compile_pack


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def model(monkeypatch):
    model = ColourMatcher()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: model)
    return model


@pytest.fixture
def folder(tmp_path):
    """images/ and shown/ with two examples in each of two forms."""
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", scene(blocks([1, 2], seed=number)))
    for number in (10, 11):
        labels = blocks([1, 2], seed=number)
        save(tmp_path / "shown" / "images" / f"{number}.png", scene(labels))
        save(tmp_path / "shown" / "masks" / f"{number}.png", labels)
    (tmp_path / "shown" / "classes.txt").write_text("1 cell\n2 nucleus\n")
    return tmp_path


def run(folder, *arguments) -> int:
    shown = [] if "--examples" in arguments else ["--examples", folder / "shown"]
    return main([*map(str, ["label", folder / "images", *shown, "-o", folder / "out", "--device", "cpu", *arguments])])


def test_a_folder_becomes_a_dataset(folder, model, capsys):
    assert run(folder, "--format", "coco,yolo,png", "--min-area", 4, "--review", "--recolourings", 2) == 0
    assert "3 of 3 images have masks, 3 from this run" in capsys.readouterr().out
    for number in range(3):
        expected = blocks([1, 2], seed=number)
        np.testing.assert_array_equal(open_labels(folder / "out" / "masks" / f"{number}.png"), expected)
    coco = json.loads((folder / "out" / "coco" / "annotations.json").read_text())
    assert [each["name"] for each in coco["categories"]] == ["cell", "nucleus"]
    assert (folder / "out" / "yolo" / "data.yaml").is_file() and (folder / "out" / "review.html").is_file()
    assert run(folder, "--format", "coco,yolo,png", "--min-area", 4, "--recolourings", 2) == 0
    assert "3 of 3 images have masks, 0 from this run" in capsys.readouterr().out


def test_options_reach_the_job(folder, model, monkeypatch):
    seen = {}

    def label(images, examples, out, **options):
        seen.update(options, images=images, examples=examples)
        raise KeyboardInterrupt

    monkeypatch.setattr("incontext.labeling.label", label, raising=False)
    (folder / "fixed").mkdir()
    options = "--ensemble spatial --tile 16 --overlap 0.5 --flip --kind semantic --batch-size 3 --instances --select 4"
    options += " --engine ray --workers 2 --no-calibrate --max-pixels 99 --format none --refine"
    assert run(folder, *options.split(), "--corrections", folder / "fixed") == 130
    config = seen["config"]
    assert (config.ensemble, config.tile, config.overlap, config.flip) == ("spatial", 16, 0.5, True)
    assert (config.batch_size, config.instances, config.select, config.formats) == (3, True, 4, ())
    assert (config.engine, config.workers, config.calibrate, config.max_pixels) == ("ray", 2, False, 99)
    assert (config.kind, seen["predictor"].refine) == ("semantic", True)
    assert seen["corrections"] == folder / "fixed" and len(seen["examples"]) == 2
    assert {path.suffix for path in seen["skip"]} == {".png"} and len(seen["skip"]) == 2
    assert seen["examples"][0].names == {1: "cell", 2: "nucleus"}


def test_large_images_are_read_where_they_are_asked_for(folder, model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses what has twice as many
    assert run(folder, "--no-calibrate", "--max-pixels", 32 * 32) == 0 and Image.MAX_IMAGE_PIXELS == 32 * 32


def test_packs_alone_and_beside_examples(folder, model, capsys):
    """Files and names; and a line for whoever's ids changed."""
    shown = example([1], looks=[9, 1], names={1: "nucleus"})
    compile_pack(model, [shown], "more").save(folder / "more.safetensors")
    compile_pack(model, [example([1, 2], names={1: "cell", 2: "nucleus"})], "both").save(folder / "both.safetensors")
    more, both = (["--pack", folder / f"{name}.safetensors"] for name in ("more", "both"))
    assert run(folder, "--examples", folder / "shown", *more) == 0
    assert capsys.readouterr().err == f"{more[1]}: classes are joined by name, so ids changed: 1 -> 2 (nucleus)\n"
    settings = json.loads((folder / "out" / "job.json").read_text())["settings"]
    assert (settings["kind"], settings["ensemble"]) == ("semantic", "feature")  # the pack's
    images, out = folder / "images", folder / "alone"
    assert main([*map(str, ["label", images, *both, *more, "-o", out, "--device", "cpu", "--kind", "instance"])]) == 0
    for number in range(3):
        np.testing.assert_array_equal(open_labels(out / "masks" / f"{number}.png"), blocks([1, 2], seed=number))
    record = json.loads((out / "job.json").read_text())
    assert record["packs"] == ["both", "more"] and record["settings"]["kind"] == "instance"


def test_a_line_for_each_source_whose_ids_changed(folder, model, capsys):
    labels = blocks([1], seed=12)
    save(folder / "other" / "images" / "12.png", scene(labels, [9, 1]))
    save(folder / "other" / "masks" / "12.png", labels)
    (folder / "other" / "classes.txt").write_text("1 nucleus\n")
    assert run(folder, "--examples", folder / "shown", folder / "other") == 0
    assert f"{folder / 'other'}: classes are joined by name, so ids changed: 1 -> 2 (nucleus)\n" in (
        capsys.readouterr().err
    )


def test_many_changed_ids_are_one_short_line(capsys):
    tell_renumbered({"a": {id: id + 1 for id in range(1, 31)}}, {id: f"c{id}" for id in range(40)})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a: ") and "8 -> 9 (c9), and 22 more" in line and "c10" not in line


def test_a_bad_file_makes_the_status_one(folder, model, capsys, caplog):
    (folder / "images" / "bad.jpg").write_bytes(b"")
    assert run(folder) == 1
    assert "3 of 4 images have masks, 3 from this run, 1 failed" in capsys.readouterr().out
    assert any("bad.jpg" in message and "0 bytes" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tfrecord"], "formats: expected some of"),
        (["--corrections", "nowhere"], "--corrections: expected a folder"),
        (["--examples", "nowhere"], "nowhere: expected a folder of examples"),
        (["--recolourings", "-1"], "recolourings: expected"),
        (["--pack", "nowhere"], "no prompt pack 'nowhere'"),
        (["--device", "tpu"], "device: expected"),
    ],
)
def test_wrong_arguments_are_one_error_and_leave_nothing(folder, model, capsys, arguments, message):
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err and not (folder / "out").exists()


def test_something_has_to_be_shown(folder, model, capsys):
    command = ["label", folder / "images", "-o", folder / "out", "--device", "cpu"]
    assert main([*map(str, command)]) == 2
    assert "expected --examples or --pack, got neither" in capsys.readouterr().err
    compile_pack(model, [example([1])], "p").save(folder / "p.safetensors")
    pack = ["--pack", folder / "p.safetensors"]
    for options, message in (
        (["--names", "1=cell"], "--names: expected --examples"),
        (["--select", 2], "select: expected examples to choose from, got packs alone"),
    ):
        assert main([*map(str, [*command, *pack, *options])]) == 2
        assert message in capsys.readouterr().err
    other = compile_pack(random_model(), [example([1])], "other")
    other.save(folder / "other.safetensors")
    assert main([*map(str, [*command, *pack, "--pack", folder / "other.safetensors"])]) == 2
    assert "made for another model" in capsys.readouterr().err and not (folder / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_with_130_and_a_whole_manifest(folder):
    """The real command, with the bundled model, and no terminal: it says little."""
    for number in range(400):
        save(folder / "images" / f"more{number:03}.png", scene(blocks([1, 2], seed=3)))
    arguments = ["label", folder / "images", "--examples", folder / "shown", "-o", folder / "out"]
    command = [sys.executable, "-m", "incontext", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    job = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    manifest = folder / "out" / "manifest.jsonl"
    while job.poll() is None and not (manifest.exists() and manifest.stat().st_size):
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and out == ""
    assert err.splitlines() == ["stopped; the same command goes on from here", "interrupted"]
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert 1 <= len(rows) < 403 and all((folder / "out" / row["mask"]).is_file() for row in rows)
    assert len(list((folder / "out" / "masks").rglob("*.png"))) == len(rows)
