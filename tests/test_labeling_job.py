"""The label job: right masks, resumed without loss, and whatever can go wrong."""

import errno
import json
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, example, scene
from label_jobs import QUICK, check_masks, lines, run, save, write_images
from PIL import Image
from predictions import predictor
from random_models import random_model

import incontext as ic
from incontext.image import open_labels
from incontext.labeling import JobStopped, LabelConfig, label
from incontext.types import Example


def test_every_image_gets_its_mask_and_one_line(tmp_path):
    truths = write_images(tmp_path / "in", 5)
    summary = run(tmp_path)
    assert (summary.total, summary.done, summary.made, summary.failures) == (5, 5, 5, {})
    check_masks(tmp_path, truths)
    rows = {row["image"]: row for row in lines(tmp_path)}
    assert set(rows) == set(truths) and len(lines(tmp_path)) == 5
    for image, row in rows.items():
        assert row["status"] == "done" and row["size"] == [32, 32] and row["ids"] == [1, 2] and row["error"] is None
        assert row["mask"] == f"masks/{Path(image).with_suffix('.png').as_posix()}"
        assert 0 < row["score"] <= 1 and row["scores"].keys() == {"1", "2"} and row["seconds"] > 0
        assert len({row[part] for part in ("model", "prompt", "settings")}) == 3
    record = json.loads((tmp_path / "out" / "job.json").read_text())
    assert record["names"] == {"1": "cell", "2": "nucleus"} and record["recipe"]["model"] == rows["000.png"]["model"]


def test_the_package_offers_it(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    shown = example([1, 2])
    save(tmp_path / "painted" / "a.png", shown.image)
    save(tmp_path / "painted" / "a_mask.png", shown.labels)
    examples = ic.open_examples(tmp_path / "painted", names={1: "cell"})
    assert len(examples) == 1 and list(examples) == list(examples.examples)
    config = ic.LabelConfig(calibrate=False)
    summary = ic.label(tmp_path / "in", examples, tmp_path / "out", predictor=predictor(), config=config)
    assert summary.done == 2
    check_masks(tmp_path, truths)
    assert {"LabelConfig", "label", "open_examples"} <= set(dir(ic))


def test_a_second_run_does_nothing_and_a_changed_image_is_done_again(tmp_path):
    truths = write_images(tmp_path / "in", 4)
    run(tmp_path)
    model = ColourMatcher()
    assert run(tmp_path, model=model).made == 0 and not model.calls and len(lines(tmp_path)) == 4

    truths["002.png"] = blocks([1], (32, 32), seed=99)
    save(tmp_path / "in" / "002.png", scene(truths["002.png"]))
    os.utime(tmp_path / "in" / "000.png")  # touched, but the same
    (tmp_path / "out" / "masks" / "sub" / "003.png").unlink()
    assert run(tmp_path, model=model).made == 3 and len(model.calls) == 2
    check_masks(tmp_path, truths)
    truths |= write_images(tmp_path / "in", 1, first=8)
    assert run(tmp_path).made == 1
    check_masks(tmp_path, truths)


@pytest.mark.parametrize("change", ["prompt", "settings", "model", "kind"])
def test_what_masks_are_made_with_decides_whether_they_stand(tmp_path, change):
    write_images(tmp_path / "in", 3)
    shown = [example([1, 2])]
    run(tmp_path, shown)
    if change == "prompt":
        summary = run(tmp_path, [*shown, example([1, 2], seed=5)])
    elif change == "settings":
        summary = run(tmp_path, shown, config=LabelConfig(calibrate=False, flip=True))
    elif change == "model":
        summary = run(tmp_path, shown, model=ColourMatcher(width=64))
    else:
        chosen = predictor(kind="semantic")
        summary = label(tmp_path / "in", shown, tmp_path / "out", predictor=chosen, config=QUICK)
    statuses = Counter(row["status"] for row in lines(tmp_path))
    assert summary.made == 3 and statuses == {"done": 6, "begun": 3}


def test_a_mask_that_the_disk_lost_is_made_again(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    run(tmp_path, config=LabelConfig(calibrate=False, formats=("coco",)))
    (tmp_path / "out" / "masks" / "000.png").write_bytes(b"")
    assert run(tmp_path, config=LabelConfig(calibrate=False, formats=("coco",))).made == 1
    check_masks(tmp_path, truths)


def test_names_and_formats_need_no_model(tmp_path):
    truths = write_images(tmp_path / "in", 3)
    shown = example([1, 2])
    run(tmp_path, [shown])
    renamed = Example(shown.image, shown.labels, {1: "cell"})
    model, config = ColourMatcher(), LabelConfig(("coco", "png", "labelme"), calibrate=False, instances=True)
    assert run(tmp_path, [renamed], model=model, config=config).made == 3 and not model.calls
    for image, truth in truths.items():
        np.testing.assert_array_equal(open_labels(tmp_path / "out" / "png" / "masks" / image), truth)
        assert (tmp_path / "out" / "labelme" / image).with_suffix(".json").is_file()
    coco = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())
    assert sorted(each["file_name"] for each in coco["images"]) == sorted(truths)
    assert {each["name"] for each in coco["categories"]} == {"cell", "class 2"}
    assert len(coco["annotations"]) > 2 * len(truths) and all(0 < each["score"] <= 1 for each in coco["annotations"])
    assert run(tmp_path, [renamed], config=config).made == 0


def test_a_review_tells_of_every_image(tmp_path):
    write_images(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    run(tmp_path, config=LabelConfig(calibrate=False, review=True))
    table = (tmp_path / "out" / "review.csv").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "review.html").is_file()
    assert all(name in table for name in ("000.png", "sub/001.png", "002.png", "bad.png"))


def test_bad_files_are_recorded_and_passed_over_and_tried_again(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    folder = tmp_path / "in"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("I am no picture")
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "script.gif").write_bytes(b"#!/bin/sh\nrm -rf /\n")
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    save(folder / "large.png", np.zeros((41, 100, 3)))
    summary = run(tmp_path, config=LabelConfig(calibrate=False, max_pixels=4000))
    check_masks(tmp_path, truths)
    bad = {"empty.jpg", "text.png", "cut.png", "script.gif", "bomb.png", "gone.png", "large.png"}
    assert set(summary.failures) == bad and summary.done == 2
    rows = {row["image"]: row for row in lines(tmp_path)}
    for name, reason in (("empty.jpg", "0 bytes"), ("gone.png", "no such file"), ("large.png", "at most 4000 pixels")):
        assert reason in rows[name]["error"]
    assert all(rows[name]["status"] == "failed" and name in rows[name]["error"] for name in bad)
    assert not list((tmp_path / "out").rglob("large*"))

    save(folder / "text.png", scene(blocks([1, 2], seed=3)))
    again = run(tmp_path, config=LabelConfig(calibrate=False, max_pixels=4000))
    assert set(again.failures) == bad - {"text.png"} and again.made == 1 and again.done == 3


def test_results_do_not_depend_on_threads_or_on_recolourings(tmp_path):
    truths = write_images(tmp_path / "in", 6)
    run(tmp_path, config=LabelConfig(calibrate=True, recolourings=2, threads=1, batch_size=3))
    check_masks(tmp_path, truths)
    assert {row["disagreement"] for row in lines(tmp_path)} == {0.0}  # colours do not matter to it


def test_selected_examples_are_few(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 3)
    model, shown = random_model(), []
    forward = type(model).forward

    def note(self, *args, **options):  # on the class: the predictor may make a copy of the model ready
        shown.append(args)
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", note)
    pool = [example([1, 2], seed=seed) for seed in range(5)]
    assert run(tmp_path, pool, model=model, config=LabelConfig(calibrate=False, select=2)).done == 3
    assert [args[1].shape[1] for args in shown if len(args) == 3] == [2, 2, 2]  # the rest are embeddings
    assert list((tmp_path / "out" / ".embeddings").iterdir())
    assert run(tmp_path, pool, model=model, config=LabelConfig(calibrate=False, select=9)).made == 3
    assert shown[-1][1].shape[1] == 5  # all there are


def test_a_temperature_is_fitted_once(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 2)
    shown = [example([1, 2], seed=seed) for seed in (1, 2)]
    run(tmp_path, shown, config=LabelConfig())
    fitted = json.loads((tmp_path / "out" / "job.json").read_text())["temperature"]
    monkeypatch.setattr("incontext.labeling.job.fit_temperature", lambda *_: pytest.fail("fitted again"))
    write_images(tmp_path / "in", 1, first=2)
    assert run(tmp_path, shown, config=LabelConfig()).made == 1
    assert json.loads((tmp_path / "out" / "job.json").read_text())["temperature"] == fitted


def test_what_is_not_a_jobs_folder_is_left_alone(tmp_path):
    write_images(tmp_path / "in", 2)
    save(tmp_path / "out" / "masks" / "mine.png", np.ones((3, 3)))
    with pytest.raises(ValueError, match="no manifest.jsonl of a label job"):
        run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["masks", "mine.png"]
    (tmp_path / "out" / "manifest.jsonl").touch()
    with pytest.raises(ValueError, match="lies among the masks"):
        label(tmp_path / "out/masks/mine.png", [example([1])], tmp_path / "out", predictor=predictor(), config=QUICK)


# ---------------------------------------------------------------------------------------------- when things go wrong


def test_a_full_disk_stops_the_job_with_one_error_and_it_goes_on(tmp_path, monkeypatch):
    from incontext.labeling import image_writer

    truths = write_images(tmp_path / "in", 12)
    write, written = image_writer.write_indexed, []

    def fill(path, labels):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write(path, labels)

    with monkeypatch.context() as patch:
        patch.setattr(image_writer, "write_indexed", fill)
        with pytest.raises(JobStopped, match="No space left on device.*goes on where it stopped"):
            run(tmp_path, config=LabelConfig(calibrate=False, threads=1))
    kept = {row["image"] for row in lines(tmp_path)}
    assert 1 <= len(kept) <= 5 and all(row["status"] == "done" for row in lines(tmp_path))
    assert run(tmp_path).made == 12 - len(kept)
    check_masks(tmp_path, truths)


def test_an_output_folder_that_cannot_be_made_is_one_error(tmp_path):
    write_images(tmp_path / "in", 1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(JobStopped, match="expected a folder that can be written to"):
        run(tmp_path)


def test_images_that_vanish_stop_the_job_and_it_goes_on(tmp_path):
    truths = write_images(tmp_path / "in", 20)

    class Unplugged(ColourMatcher):
        def paint(self, *inputs):
            if len(self.calls) == 3:
                (tmp_path / "in").rename(tmp_path / "away")
            return super().paint(*inputs)

    with pytest.raises(JobStopped, match="the folder of images, but it is gone"):
        run(tmp_path, model=Unplugged(), config=LabelConfig(calibrate=False, threads=1))
    assert all(row["status"] == "done" for row in lines(tmp_path))
    (tmp_path / "away").rename(tmp_path / "in")
    summary = run(tmp_path)
    assert summary.done == 20 and 0 < summary.made < 20
    check_masks(tmp_path, truths)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    write_images(tmp_path / "in", 20)

    class Interrupted(ColourMatcher):
        def paint(self, *inputs):
            if len(self.calls) == 6:
                raise KeyboardInterrupt
            return super().paint(*inputs)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=Interrupted())
    rows = lines(tmp_path)
    masks = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "masks").rglob("*.png")}
    assert masks == {row["mask"] for row in rows} and len(rows) == 5
    assert not list((tmp_path / "out").rglob(".*.png"))
    assert threading.active_count() < 10
    assert run(tmp_path).made == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "mean"}, "ensemble"),
        ({"kind": "panoptic"}, "kind"),
        ({"engine": "spark"}, "engine"),
        ({"threads": 0}, "threads"),
        ({"select": 0}, "select"),
        ({"recolourings": -1}, "recolourings"),
        ({"min_area": 5}, "min_area: expected instances"),
        ({"workers": 2}, "workers"),
        ({"batch_size": 2.5}, "batch_size"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LabelConfig(**changes)
