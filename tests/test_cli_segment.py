import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, scene
from packs import cached_model, small_pack
from PIL import Image

from incontext.cli import segment
from incontext.cli.main import main as command_line
from incontext.image import open_image, open_labels
from incontext.labeling.inputs import find_images, result_names
from incontext.model.seggpt import SegGPT


def main(*arguments) -> int:
    parser = argparse.ArgumentParser(prog="incontext")
    segment.add_parser(parser.add_subparsers())
    args = parser.parse_args(["segment", *map(str, arguments)])
    return args.run(args)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def model(monkeypatch):
    model = ColourMatcher()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: model)
    return model


@pytest.fixture
def shown(tmp_path):
    """`--example IMAGE MASK`, with ids 1 and 2."""
    labels = blocks([1, 2], seed=9)
    image = save(tmp_path / "shown" / "e.png", scene(labels))
    return ["--example", image, save(tmp_path / "shown" / "e_mask.png", labels.astype(np.uint8))]


def test_a_folder_becomes_masks_overlays_results_and_a_sheet(tmp_path, model, shown, capsys):
    truths = {
        name: blocks([1, 2], size, seed) for seed, (name, size) in enumerate({"a": (32, 32), "b/c": (32, 64)}.items())
    }
    for name, truth in truths.items():
        save(tmp_path / "in" / f"{name}.png", scene(truth))
    out = tmp_path / "out"
    assert main(tmp_path / "in", *shown, "-o", out, "--names", "1=cell, 2=a nucleus", "--device", "cpu") == 0

    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (report["total"], report["segmented"], report["failed"]) == (2, 2, 0)
    assert report["names"] == {"1": "cell", "2": "a nucleus"}
    assert report["examples"][0]["ids"] == [1, 2] and report["settings"]["ensemble"] == "feature"
    for record, (name, truth) in zip(report["images"], truths.items(), strict=True):
        assert record["image"] == str(tmp_path / "in" / f"{name}.png")
        assert record["mask"] == f"masks/{name}.png" and record["overlay"] == f"overlays/{name}.jpg"
        assert record["size"] == list(truth.shape) and record["error"] is None
        found = open_labels(out / record["mask"])
        assert (found == truth).mean() > 0.9 and found.shape == truth.shape
        assert Image.open(out / record["mask"]).mode == "P"
        assert open_image(out / record["overlay"]).shape == (*truth.shape, 3)
        assert [each["name"] for each in record["objects"]] == ["cell", "a nucleus"]
        for each in record["objects"]:
            assert each["area"] == (found == each["id"]).sum() and 0.5 < each["score"] <= 1
        assert 0.5 < record["confidence"] <= 1 and record["seconds"] > 0
    assert open_image(out / "sheet.png").shape[1] > 300
    assert {path.name for path in out.iterdir()} == {"masks", "overlays", "results.json", "sheet.png"}
    stdout, stderr = capsys.readouterr()
    assert "2 of 2 images segmented" in stdout and stderr == ""  # no progress bar without a terminal


def test_objects_too_thin_to_be_seen_are_shown_in_tiles_and_told_of(tmp_path, model, capsys):
    """The model sees 32 x 32 pixels, of an image of 96: a line of 4 pixels is 1.3 wide there, one of 6 is 2."""
    said, tiles = [], []
    for width, options in ((4, []), (4, ["--tile", "auto"]), (4, ["--tile", "none"]), (6, [])):
        labels = np.zeros((96, 96), np.uint8)
        labels[:, 40 : 40 + width] = 1
        image, mask = save(tmp_path / "e.png", scene(labels)), save(tmp_path / "e_mask.png", labels)
        out = tmp_path / f"{width}{''.join(options)}"
        assert main(image, "--example", image, mask, "-o", out, "--device", "cpu", *options) == 0
        said.append(capsys.readouterr().err)
        tiles.append(json.loads((out / "results.json").read_text())["settings"]["tile"])
    assert "note: all objects of the examples are thinner than the model sees at 32 x 32 pixels, so images" in said[0]
    assert said[1:] == ["", "", ""] and tiles == ["thin", "auto", None, None]


def test_a_bad_image_is_reported_and_the_run_goes_on(tmp_path, model, shown, capsys):
    good = [save(tmp_path / f"{name}.png", scene(blocks([1, 2]))) for name in "ac"]
    bad = tmp_path / "b.png"
    bad.write_bytes(good[0].read_bytes()[:60])
    out = tmp_path / "out"
    assert main(good[0], bad, good[1], tmp_path / "gone.png", *shown, "-o", out, "--batch-size", 2) == 1
    stdout, stderr = capsys.readouterr()
    assert "2 of 4 images segmented, 2 failed" in stdout
    assert str(bad) in stderr and "gone.png" in stderr
    report = json.loads((out / "results.json").read_text())
    assert [record["error"] is None for record in report["images"]] == [True, False, True, False]
    assert report["failed"] == 2 and "b.png" in report["images"][1]["error"]
    assert report["images"][1]["mask"] is None
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["a.png", "c.png"]


def test_options_reach_the_predictor(tmp_path, model, shown):
    image = save(tmp_path / "q.png", scene(blocks([1, 2], (64, 64))))
    options = [
        "--ensemble",
        "spatial",
        "--tile",
        32,
        "--overlap",
        0,
        "--flip",
        "--kind",
        "semantic",
        "--batch-size",
        3,
    ]
    assert main(image, *shown, *shown, "-o", tmp_path / "out", *options) == 0
    assert {call["kind"] for call in model.calls} == {"semantic"}
    assert [len(call["query"]) for call in model.calls] == [3, 1, 3, 1]  # four tiles, twice
    assert model.calls[0]["images"].shape[1] == 1  # two examples in one grid
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["settings"]["tile"] == 32 and report["settings"]["flip"] is True
    assert main(image, *shown, "-o", tmp_path / "auto", "--tile", "auto") == 0


def test_a_model_file_does_the_whole_job(tmp_path, shown):
    from random_models import random_model

    from incontext.model.checkpoint import save_checkpoint

    random = random_model()
    assert isinstance(random, SegGPT)
    save_checkpoint(random, tmp_path / "tiny.safetensors")
    image = save(tmp_path / "q.png", scene(blocks([1, 2], (40, 56))))
    assert main(image, *shown, "-o", tmp_path / "out", "--model", tmp_path / "tiny.safetensors", "--device", "cpu") == 0
    assert open_labels(tmp_path / "out" / "masks" / "q.png").shape == (40, 56)


def test_colours_mean_the_same_in_all_examples(tmp_path, model):
    labels = blocks([1, 2])
    colours = np.uint8([[0, 0, 0], [255, 0, 0], [0, 0, 255]])
    pair = []
    for name, keep in (("x", 2), ("y", 1)):  # the first example shows blue only, the other red only
        one = np.where(labels == keep, labels, 0)
        pair += [
            "--example",
            save(tmp_path / f"{name}.png", scene(one)),
            save(tmp_path / f"{name}_m.png", colours[one]),
        ]
    image = save(tmp_path / "q.png", scene(labels))
    assert main(image, *pair, "-o", tmp_path / "out") == 0
    np.testing.assert_array_equal(open_labels(tmp_path / "out" / "masks" / "q.png"), labels)


def test_a_second_run_leaves_out_what_the_first_wrote(tmp_path, model, shown):
    folder = tmp_path / "in"
    for name in "ab":
        save(folder / f"{name}.png", scene(blocks([1, 2])))
    for _ in range(2):
        assert main(folder, *shown, "-o", folder) == 0
        assert json.loads((folder / "results.json").read_text())["total"] == 2


def test_nothing_of_the_user_is_written_over(tmp_path, model, shown):
    truth = save(tmp_path / "set" / "masks" / "a.png", blocks([1, 2]).astype(np.uint8))
    before = truth.read_bytes()
    image = save(tmp_path / "set" / "images" / "a.png", scene(blocks([1, 2])))
    with pytest.raises(ValueError, match="exists"):
        main(image, *shown, "-o", tmp_path / "set")
    with pytest.raises(ValueError, match="is an input"):
        main(truth, *shown, "-o", tmp_path / "set")
    example = save(tmp_path / "other" / "masks" / "a.png", blocks([1, 2]).astype(np.uint8))
    (tmp_path / "other" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="is an input"):
        main(image, "--example", image, example, "-o", tmp_path / "other")
    assert truth.read_bytes() == before and not model.calls


def test_wrong_arguments_are_named_before_the_model_is_loaded(tmp_path, monkeypatch, shown, capsys):
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda *_: pytest.fail("loaded"))
    image, out = save(tmp_path / "q.png", scene(blocks([1, 2]))), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "*.jpg", tmp_path / "gone.png"):
        with pytest.raises(ValueError, match="at least one image"):
            main(nothing, *shown, "-o", out)
    with pytest.raises(ValueError, match="--names"):
        main(image, *shown, "-o", out, "--names", "7=x")
    with pytest.raises(ValueError, match=r"gone\.png"):
        main(image, "--example", tmp_path / "gone.png", shown[2], "-o", out)
    with pytest.raises(ValueError, match="--example, --click or --pack"):
        main(image, "-o", out)
    for file in (image, image / "below"):
        with pytest.raises(SystemExit):
            main(image, *shown, "-o", file)
        assert "q.png is a file" in capsys.readouterr().err
    clicks = (["--click", image], ["--click", image, "a,b"], ["--click", image, "1,2,3,4"])
    for wrong in (["--tile", "big"], ["--names", "cell"], ["--names", "0=x"], ["--ensemble", "mean"], *clicks):
        with pytest.raises(SystemExit):
            main(image, *shown, "-o", out, *wrong)
    assert not out.exists()


def test_what_is_clicked_on_becomes_an_example(tmp_path, model, capsys):
    """The halves of a picture differ; a click on each makes a mask of it, and that finds them in another picture."""
    model.config = dataclasses.replace(model.config, refine=True)
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32], halves[:, 32:] = (220, 60, 60), (60, 60, 220)
    clicked, query = save(tmp_path / "a" / "halves.png", halves), save(tmp_path / "in" / "q.png", halves[:, ::-1])
    out = tmp_path / "out"
    points = ["--click", clicked, "5,16,3", "--click", clicked, "60,16,0"]
    assert main(tmp_path / "in", *points, "-o", out, "--names", "3=red") == 0
    mask = open_labels(out / "clicked" / "halves.png")
    assert (mask[:, :30] == 3).all() and (mask[:, 34:] == 0).all()
    found = open_labels(out / "masks" / "q.png")
    assert (found[:, 34:] == 3).all() and (found[:, :30] == 0).all()
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert report["examples"] == [
        {
            "image": str(clicked),
            "mask": str(out / "clicked" / "halves.png"),
            "ids": [3],
            "clicks": [[5, 16, 3], [60, 16, 0]],
        }
    ]
    with pytest.raises(ValueError, match=r"halves\.png: clicks: expected points inside of 64 x 32 pixels, got 64,1"):
        main(tmp_path / "in", "--click", clicked, "64,1", "-o", tmp_path / "other")
    save(tmp_path / "b" / "halves.png", halves)
    with pytest.raises(SystemExit):
        main(query, *points, "--click", tmp_path / "b" / "halves.png", "5,5", "-o", tmp_path / "other")
    assert "different names" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_clicks_on_nothing_correct_what_is_shown(tmp_path, model):
    """Two red squares in one picture: the example means both, a click says that the right one is not meant."""
    model.config = dataclasses.replace(model.config, refine=True)
    picture = np.full((32, 64, 3), 40, np.uint8)
    picture[8:24, 8:24] = picture[8:24, 40:56] = (220, 60, 60)
    labels = np.zeros((32, 64), np.uint8)
    labels[8:24, 8:24] = labels[8:24, 40:56] = 2
    image, mask = save(tmp_path / "e.png", picture), save(tmp_path / "e_mask.png", labels)
    clicked, out = save(tmp_path / "c.png", picture), tmp_path / "out"
    shown, points = ["--example", image, mask, "--names", "2=red"], ["--click", clicked, "48,16,0"]
    assert main(image, *points, *shown, "-o", out) == 0
    found = open_labels(out / "clicked" / "c.png")
    assert (found[8:24, 8:24] == 2).all() and found[16, 48] == 0
    report = json.loads((out / "results.json").read_text())
    assert report["examples"][1]["ids"] == [2] and report["names"] == {"2": "red"}
    first = ["--click", image, "16,16,3", "2,2,0"]  # what another click shows counts too, in any order
    assert main(image, *points, *first, "-o", tmp_path / "clicks") == 0
    assert open_labels(tmp_path / "clicks" / "clicked" / "c.png")[16, 16] == 3
    with pytest.raises(ValueError, match="--example, --click or --pack of an object"):
        main(image, *points, "-o", tmp_path / "nothing")


def test_what_clicks_correct_keeps_the_id_of_its_pack(tmp_path, monkeypatch):
    model = cached_model()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: model)
    small_pack(model, ["leaf", "stem"], "plants").save(tmp_path / "plants.safetensors")
    image = save(tmp_path / "q.png", scene(blocks([1, 2])))
    for point in ("5,5,0", "5,5,2"):
        out = tmp_path / point
        assert main(image, "--pack", tmp_path / "plants.safetensors", "--click", image, point, "-o", out) == 0
        assert json.loads((out / "results.json").read_text())["names"] == {"1": "leaf", "2": "stem"}


def test_names_that_are_no_utf8_stop_nothing(tmp_path, model, shown, capsys):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        odd.write_bytes(shown[1].read_bytes())
    except OSError:
        pytest.skip("this disk has UTF-8 names only")
    image, out = save(tmp_path / "ü.png", scene(blocks([1, 2]))), tmp_path / os.fsdecode(b"\xe9")
    assert command_line(["segment", str(image), "--example", str(odd), str(shown[2]), "-o", str(out)]) == 0
    assert "1 of 1 images segmented" in capsys.readouterr().out.encode().decode()
    text = (out / "results.json").read_text(encoding="utf-8")
    assert json.loads(text)["examples"][0]["image"] == str(odd) and "ü.png" in text
    assert (out / "sheet.png").exists()


def test_wrong_values_leave_nothing_behind(tmp_path, model, shown):
    image = save(tmp_path / "q.png", scene(blocks([1, 2])))
    for wrong in (["--tile", 1], ["--overlap", 2], ["--batch-size", 0], ["--device", "gpu"]):
        with pytest.raises(ValueError, match=wrong[0].strip("-").replace("-", "_")):
            main(image, *shown, "-o", tmp_path / "out", *wrong)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_keeps_what_it_has(tmp_path, model, shown, monkeypatch):
    images = [save(tmp_path / f"{k}.png", scene(blocks([1, 2], seed=k))) for k in range(4)]
    paint = model.paint

    def interrupt(*tensors):
        if len(model.calls) > 2:
            raise KeyboardInterrupt
        return paint(*tensors)

    monkeypatch.setattr(model, "paint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(*images, *shown, "-o", tmp_path / "out", "--batch-size", 1)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["total"] == 4 and report["segmented"] == 2 == len(report["images"])


KILLED = """
import os, sys
from fake_models import ColourMatcher
from incontext import export
from incontext.cli.main import main
from incontext.model import zoo

def write_and_die(*arguments, write=export.write_indexed):
    write(*arguments)
    os.kill(os.getpid(), 9)

export.write_indexed, zoo.load_model = write_and_die, lambda *_, **__: ColourMatcher()
main(["segment", *sys.argv[1:]])
"""


def test_a_killed_run_can_be_started_again(tmp_path, model, shown):
    images = [save(tmp_path / f"{k}.png", scene(blocks([1, 2], seed=k))) for k in range(3)]
    out = tmp_path / "out"
    words = [str(word) for word in (*images, *shown, "-o", out, "--device", "cpu")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=Path(__file__).parent)
    assert killed.returncode == -9 and list((out / "masks").glob("[0-2].png")) and not (out / "sheet.png").exists()
    assert json.loads((out / "results.json").read_text())["images"] == []
    assert main(*words) == 0
    assert json.loads((out / "results.json").read_text())["segmented"] == 3


def test_many_results_make_a_bounded_sheet(tmp_path, model, shown, monkeypatch):
    monkeypatch.setattr(segment, "SHEET_RESULTS", 3)
    drawn = []
    from incontext.export import sheet

    monkeypatch.setattr(
        "incontext.export.contact_sheet", lambda *a, **k: drawn.append(k) or sheet.contact_sheet(*a, **k)
    )
    images = [save(tmp_path / f"{k}.png", scene(blocks([1, 2], (8, 8), k, 2))) for k in range(7)]
    assert main(*images, *shown, "-o", tmp_path / "out") == 0
    assert drawn[0]["result_titles"] == ["0", "2", "4"] and drawn[0]["title"] == "3 of 7 images"


# Which images, and what their results are called


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *arguments, **options) -> list[tuple[str, str]]:
    inputs = find_images([str(root / argument) for argument in arguments], **options)
    return [(each.path.relative_to(root).as_posix(), each.name.as_posix()) for each in inputs]


def test_folders_are_searched_in_order(tmp_path):
    touch(
        tmp_path,
        "d/b.PNG",
        "d/a.jpg",
        "d/sub/a.tiff",
        "d/note.txt",
        "d/note.raw",
        "d/.hidden.png",
        "d/.git/x.png",
        "d/out/m.png",
    )
    touch(tmp_path, "d/e_mask.png")
    skipped = {"skip": [tmp_path / "d/e_mask.png"], "skip_folders": [tmp_path / "d/out"]}
    assert found(tmp_path, "d", **skipped) == [("d/a.jpg", "a"), ("d/b.PNG", "b"), ("d/sub/a.tiff", "sub/a")]
    named = found(tmp_path, "d/e_mask.png", "d/note.raw", **skipped)  # what is named is wanted
    assert named == [("d/e_mask.png", "e_mask"), ("d/note.raw", "note")]


def test_patterns(tmp_path, monkeypatch):
    touch(tmp_path, "p/1/a.jpg", "p/1/b.jpg", "p/2/a.jpg", "p/2/c.txt", "p/odd[1].jpg")
    assert found(tmp_path, "p/*/*.jpg") == [("p/1/a.jpg", "1/a"), ("p/1/b.jpg", "1/b"), ("p/2/a.jpg", "2/a")]
    assert found(tmp_path, "p/1/?.jpg") == [("p/1/a.jpg", "a"), ("p/1/b.jpg", "b")]
    assert len(found(tmp_path, "p/**/*")) == 4
    assert found(tmp_path, "p/odd[1].jpg") == [("p/odd[1].jpg", "odd[1]")]
    monkeypatch.chdir(tmp_path / "p")
    assert [str(each.path) for each in find_images(["*/a.jpg"])] == [
        str(Path("1/a.jpg")),
        str(Path("2/a.jpg")),
    ]


def test_an_image_counts_once(tmp_path):
    touch(tmp_path, "d/a.jpg", "d/b.jpg")
    assert found(tmp_path, "d/b.jpg", "d", "d/*.jpg") == [("d/b.jpg", "b"), ("d/a.jpg", "a")]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a/x", "b/x", "y"]),
        (["x.jpg", "x.png", "z.v2.png"], ["x-jpg", "x-png", "z.v2"]),
        (["a/x.jpg", "a/x.png", "b/x.png"], ["a/x-jpg", "a/x-png", "b/x"]),
        (["x.jpg", "X.JPG"], ["x-jpg", "X-jpg-2"]),
        (["x.jpg", "x.png", "x-jpg.bmp"], ["x-jpg", "x-png", "x-jpg-2"]),
    ],
)
def test_names_never_clash(tmp_path, paths, names):
    paths = [tmp_path / path for path in paths]
    got = [name.as_posix() for name in result_names(paths, [path.parent for path in paths])]
    assert got == names and len({name.casefold() for name in got}) == len(names)
