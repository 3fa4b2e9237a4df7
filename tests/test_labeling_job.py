"""The label job: right masks, resumed and shared without loss, and whatever can go wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, example, scene
from PIL import Image
from predictions import predictor
from random_models import random_model

import incontext as ic
from incontext.image import open_labels
from incontext.labeling import JobStopped, LabelConfig, label
from incontext.labeling.claims import Claims
from incontext.labeling.inputs import find_images
from incontext.labeling.manifest import Manifest
from incontext.palette import voc_colours
from incontext.types import Example

QUICK = LabelConfig(calibrate=False)
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and locks")


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_images(folder: Path, count: int, first: int = 0) -> dict[str, np.ndarray]:
    """Images that `ColourMatcher` segments perfectly; returns their truths."""
    truths = {}
    for number in range(first, first + count):
        name = f"{'sub/' if number % 2 else ''}{number:03}.png"
        truths[name] = blocks([1, 2], (32, 32), seed=number)
        save(folder / name, scene(truths[name]))
    return truths


def run(tmp_path, examples=None, *, model=None, config=QUICK, **options):
    examples = [example([1, 2], names={1: "cell", 2: "nucleus"})] if examples is None else examples
    return label(tmp_path / "in", examples, tmp_path / "out", predictor=predictor(model), config=config, **options)


def lines(tmp_path) -> list[dict]:
    text = (tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def mask(tmp_path, image) -> np.ndarray:
    return open_labels(tmp_path / "out" / "masks" / Path(image).with_suffix(".png"))


def check_masks(tmp_path, truths):
    for image, truth in truths.items():
        np.testing.assert_array_equal(mask(tmp_path, image), truth)


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


def test_a_mask_that_a_killed_run_replaced_does_not_pass_for_the_old_one(tmp_path, monkeypatch):
    truths = write_images(tmp_path / "in", 2)
    run(tmp_path)

    def die(self, row):
        raise KeyboardInterrupt  # after the mask, before its row

    with monkeypatch.context() as patch:
        patch.setattr("incontext.labeling.job._Job._take_in", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [example([1], names={1: "cell"})])
    assert not (mask(tmp_path, "000.png") == truths["000.png"]).all()
    assert run(tmp_path).done == 2
    check_masks(tmp_path, truths)


def test_a_mask_that_the_disk_lost_is_made_again(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    run(tmp_path, config=LabelConfig(calibrate=False, formats=("coco",)))
    (tmp_path / "out" / "masks" / "000.png").write_bytes(b"")
    assert run(tmp_path, config=LabelConfig(calibrate=False, formats=("coco",))).made == 1
    check_masks(tmp_path, truths)


def test_corrections_whose_ids_have_become_other_classes_are_refused(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    run(tmp_path)
    save(tmp_path / "out" / "corrections" / "000.png", truths["000.png"])
    with pytest.raises(ValueError, match="000.png: expected id 1 to be 'cell', as in the last run, got 'nucleus'"):
        run(tmp_path, [example([1, 2], names={1: "nucleus", 2: "cell"})])
    assert run(tmp_path, [example([1, 2], names={1: "cell", 2: "nucleus", 3: "vessel"})]).done == 2


def test_colours_of_corrections_are_those_of_the_masks(tmp_path):
    truths = write_images(tmp_path / "in", 1)
    run(tmp_path)
    place = tmp_path / "out" / "corrections" / "000.png"
    green = np.where(truths["000.png"][..., None] == 2, np.array([0, 255, 0]), 0)
    save(place, green)  # of two classes, which?
    with pytest.raises(ValueError, match="expected corrected masks with the colours of those in masks/"):
        run(tmp_path)
    save(place, np.where(truths["000.png"][..., None] == 2, voc_colours()[2], 0))
    run(tmp_path)
    np.testing.assert_array_equal(mask(tmp_path, "000.png"), np.where(truths["000.png"] == 2, 2, 0))


def test_masks_among_the_images_are_not_labelled(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    painted = save(tmp_path / "in" / "painted" / "a_mask.png", truths["000.png"])
    save(tmp_path / "in" / "mended" / "000.png", truths["000.png"])
    summary = run(tmp_path, skip=[painted], corrections=tmp_path / "in" / "mended")
    assert summary.total == 2 and sorted({row["image"] for row in lines(tmp_path)}) == sorted(truths)


@posix
def test_names_that_are_not_utf8_are_left_out(tmp_path, caplog):
    truths = write_images(tmp_path / "in", 1)
    try:
        (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "in" / "000.png").read_bytes())
    except OSError:
        pytest.skip("this disk holds no such names")
    assert run(tmp_path).total == 1 and "is not UTF-8" in caplog.text
    check_masks(tmp_path, truths)


@posix
def test_nobody_tidies_up_while_another_process_finishes(tmp_path):
    code = "import pathlib\nfrom incontext.labeling.claims import Claims\n"
    code += f"print(Claims(pathlib.Path({str(tmp_path)!r})).take_all())"

    def other() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    with Claims(tmp_path) as claims:
        with claims.finishing():
            assert other() == "False\n"
        assert other() == "True\n"


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


def test_corrected_masks_are_results_and_become_examples(tmp_path):
    truths = write_images(tmp_path / "in", 4)
    run(tmp_path)
    corrected = np.roll(truths["sub/001.png"], 3, axis=1)
    save(tmp_path / "out" / "corrections" / "sub" / "001.png", corrected)
    save(tmp_path / "out" / "corrections" / "002.png", np.zeros((32, 32)))  # there is nothing in it
    model = ColourMatcher()
    summary = run(tmp_path, model=model)
    assert summary.made == 4 and {call["images"].shape[1] for call in model.calls} == {3}
    np.testing.assert_array_equal(mask(tmp_path, "sub/001.png"), corrected)
    assert not mask(tmp_path, "002.png").any()
    rows = {row["image"]: row for row in lines(tmp_path)}
    assert rows["sub/001.png"]["corrected"] and rows["sub/001.png"]["score"] == 1 and not rows["000.png"]["corrected"]
    assert run(tmp_path).made == 0
    save(tmp_path / "out" / "corrections" / "002.png", np.zeros((9, 9)))
    with pytest.raises(ValueError, match="002.png.*expected a mask of size"):
        run(tmp_path)


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


def test_output_inside_the_images_is_not_labelled(tmp_path):
    truths = write_images(tmp_path / "in", 2)
    for _ in range(2):
        summary = label(tmp_path / "in", [example([1, 2])], tmp_path / "in/out", predictor=predictor(), config=QUICK)
        assert summary.total == len(truths)


def test_a_list_names_images(tmp_path):
    write_images(tmp_path / "in", 4)
    (tmp_path / "in" / "list.txt").write_text("# some\n000.png\n\nsub/001.png\n../other.png\n", encoding="utf-8-sig")
    found = find_images([str(tmp_path / "in" / "list.txt")])
    assert [each.file_name for each in found] == ["000.png", "sub/001.png", "other.png"]


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


# A job in a process of its own, slow enough to be met at work.
SLOW = """
import sys, time
sys.path[:0] = sys.argv[4:]
from fake_models import ColourMatcher, example
from incontext.labeling import LabelConfig, label
from incontext.predictor import Predictor

class Slow(ColourMatcher):
    def paint(self, *inputs):
        time.sleep(float(sys.argv[3]))
        print("painting", flush=True)
        return super().paint(*inputs)

print(label(sys.argv[1], [example([1, 2], names={1: "cell", 2: "nucleus"})], sys.argv[2],
            predictor=Predictor(Slow(), device="cpu"), config=LabelConfig(calibrate=False, threads=2)))
"""


def start(tmp_path, pause=0.02) -> subprocess.Popen:
    arguments = [tmp_path / "in", tmp_path / "out", pause, Path(__file__).parent]
    return subprocess.Popen([sys.executable, "-c", SLOW, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@posix
def test_killed_at_any_moment_a_job_loses_the_images_in_flight_at_most(tmp_path):
    truths = write_images(tmp_path / "in", 60)
    for kill_after in (3, 11):
        job = start(tmp_path)
        for _ in range(kill_after):
            assert job.stdout.readline() == "painting\n"
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
        with Manifest(tmp_path / "out" / "manifest.jsonl") as manifest:
            rows = dict(manifest.rows)
        masks = [path for path in (tmp_path / "out" / "masks").rglob("*.png") if not path.name.startswith(".")]
        assert {tmp_path / "out" / row.mask for row in rows.values()} <= set(masks)
        check_masks(tmp_path, {image: truths[image] for image in rows})  # what is recorded is whole
        assert 0 <= len(masks) - len(rows) <= 5  # written, not yet recorded: threads at work
    drafts = tmp_path / "out" / "masks" / ".000.0123456789ab.png"
    drafts.write_bytes(b"half a")
    before = len(rows)
    assert 8 <= before <= 14  # of 14 that were painted
    summary = run(tmp_path)
    assert (summary.made, summary.done) == (60 - before, 60) and not drafts.exists()
    check_masks(tmp_path, truths)
    assert Counter(row["image"] for row in lines(tmp_path)).most_common(1)[0][1] == 1


@posix
def test_two_processes_share_one_folder(tmp_path):
    truths = write_images(tmp_path / "in", 40)
    jobs = [start(tmp_path), start(tmp_path)]
    said = [job.communicate(timeout=60)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs)
    check_masks(tmp_path, truths)
    assert sorted(row["image"] for row in lines(tmp_path)) == sorted(truths)  # each once
    shares = [text.count("painting") for text in said]
    assert sum(shares) == 40 and min(shares) >= 5
    assert any("40 of 40" in text for text in said)


@posix
def test_what_a_dead_process_had_claimed_is_done_by_the_living(tmp_path):
    write_images(tmp_path / "in", 30)
    dying, living = start(tmp_path, pause=5), start(tmp_path)
    assert living.stdout.readline() == "painting\n"
    while len(lines(tmp_path)) < 5:
        time.sleep(0.01)
    os.kill(dying.pid, signal.SIGKILL)
    dying.communicate()
    assert "30 of 30 images have masks" in living.communicate(timeout=60)[0]


def test_what_another_process_holds_is_left_to_it(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 3)
    take = Claims.take
    monkeypatch.setattr(Claims, "take", lambda self, image: image != "002.png" and take(self, image))
    summary = run(tmp_path)
    assert (summary.elsewhere, summary.done, summary.failures) == (1, 2, {}) and "another process" in str(summary)


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
