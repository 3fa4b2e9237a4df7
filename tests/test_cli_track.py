"""`incontext track`: a video in, a folder out, whatever happens in between."""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher
from PIL import Image
from random_models import TINY_CACHED, random_model
from video_clips import moving, write_clip

from incontext.cli import track
from incontext.cli.main import main as command_line
from incontext.export import write_image, write_indexed
from incontext.image import open_labels
from incontext.video.frames import VideoError
from incontext.video.speed import measure_pace
from incontext.video.tracker import Tracker
from incontext.video.writers import WRITERS

COUNT = 10


def main(*arguments) -> int:
    parser = argparse.ArgumentParser(prog="incontext")
    track.add_parser(parser.add_subparsers())
    args = parser.parse_args(["track", *map(str, arguments), "--device", "cpu"])
    return args.run(args)


@pytest.fixture
def model(monkeypatch):
    model = ColourMatcher()
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: model)
    return model


@pytest.fixture
def clip(tmp_path):
    """A folder of frames, the masks of all, and the truth."""
    frames, truths = moving(COUNT)
    for k, (frame, truth) in enumerate(zip(frames, truths, strict=True)):
        write_image(tmp_path / "clip" / f"{k:05d}.png", frame)
        write_indexed(tmp_path / "truth" / f"{k}.png", truth)
    return tmp_path / "clip", tmp_path / "truth", truths


def test_a_video_becomes_masks_and_every_format(tmp_path, model, capsys):
    frames, truths = moving(COUNT)
    video = write_clip(tmp_path / "clip.mp4", frames, options={"crf": "1"})
    write_indexed(tmp_path / "first.png", truths[0])
    out = tmp_path / "out"
    assert main(video, "--mask", tmp_path / "first.png", "-o", out, "--names", "1=cell") == 0
    assert sorted(path.name for path in (out / "masks").iterdir()) == [f"{k:05d}.png" for k in range(COUNT)]
    for k, truth in enumerate(truths):
        assert (open_labels(out / "masks" / f"{k:05d}.png") == truth).mean() > 0.93
    assert Image.open(out / "masks" / "00003.png").mode == "P"
    assert {path.name for path in out.iterdir()} == {
        "masks",
        "frames.jsonl",
        "track.json",
        *(writer.file for writer in WRITERS.values()),
    }
    assert set(track.FORMATS) == set(WRITERS)
    report = json.loads((out / "track.json").read_text())
    assert (report["done"], report["failed"], report["names"]) == (COUNT, [], {"1": "cell"})
    stdout, stderr = capsys.readouterr()
    assert "10 of 10 frames tracked; results are in" in stdout and stderr == ""


def test_parts_of_a_video_go_both_ways(model, clip, tmp_path):
    frames, masks, truths = clip
    options = ["--start", 1, "--end", 9, "--every", 2, "--formats", "table"]
    assert main(frames, "--mask", f"5={masks / '5.png'}", "-o", tmp_path / "out", *options) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "masks").iterdir())
    assert names == ["00001.png", "00003.png", "00005.png", "00007.png"]
    for name in names:
        assert (open_labels(tmp_path / "out" / "masks" / name) == truths[int(name[:5])]).mean() > 0.93
    rows = (tmp_path / "out" / "tracks.csv").read_text().splitlines()
    assert (
        len(rows) == 1 + 4 * 2 and rows[1].startswith("1,0.0000,1,") and not (tmp_path / "out" / "overlay.mp4").exists()
    )


def test_examples_from_elsewhere_take_the_place_of_a_mask(model, clip, tmp_path):
    frames, masks, truths = clip
    shown = ["--example", frames / "00004.png", masks / "4.png"]
    assert main(frames, *shown, "-o", tmp_path / "out", "--formats", "", "--memory", 2, "--policy", "fifo") == 0
    assert (open_labels(tmp_path / "out" / "masks" / "00000.png") == truths[0]).mean() > 0.93


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_a_killed_job_goes_on_and_ends_the_same(clip, tmp_path, monkeypatch, stop):
    """Weights are random, so every bit of memory matters."""
    frames, masks, _ = clip
    random = random_model(TINY_CACHED)
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: random)
    job = [
        frames,
        "--mask",
        f"6={masks / '6.png'}",
        "--mask",
        f"4={masks / '4.png'}",
        "--policy",
        "fifo",
        "--memory",
        3,
    ]
    assert main(*job, "-o", tmp_path / "whole", "--formats", "table,coco") == 0
    step, steps = Tracker.step, []

    def interrupt(tracker, *args, **options):
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(options)
        return step(tracker, *args, **options)

    monkeypatch.setattr(Tracker, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(*job, "-o", tmp_path / "out", "--formats", "table,coco")
    monkeypatch.setattr(Tracker, "step", step)
    rows = (tmp_path / "out" / "frames.jsonl").read_text()
    assert rows.count("\n") == stop == len(list((tmp_path / "out").glob("masks/*.png")))
    (tmp_path / "out" / "frames.jsonl").write_text(rows + '{"frame": 7, "le')  # a line that was cut off
    again = []
    monkeypatch.setattr(Tracker, "step", lambda *args, **options: again.append(1) or step(*args, **options))
    assert main(*job, "-o", tmp_path / "out", "--formats", "table,coco") == 0
    assert len(again) == COUNT - stop
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes(), (
                path.name
            )


def test_another_job_does_not_write_into_a_folder(model, clip, tmp_path):
    frames, masks, _ = clip
    first = [frames, "--mask", masks / "0.png", "-o", tmp_path / "out", "--formats", ""]
    assert main(*first) == 0
    calls = len(model.calls)
    assert main(*first) == 0 and len(model.calls) == calls  # all is done
    with pytest.raises(ValueError, match="holds another job: its memory is 8, not 2"):
        main(*first, "--memory", 2)
    with pytest.raises(ValueError, match="holds another job, with other masks"):
        main(frames, "--mask", masks / "1.png", "-o", tmp_path / "out", "--formats", "")
    write_indexed(tmp_path / "mine" / "masks" / "00000.png", np.zeros((4, 4), np.int32))
    with pytest.raises(ValueError, match="no track.json"):
        main(frames, "--mask", masks / "0.png", "-o", tmp_path / "mine")
    (tmp_path / "out" / "track.json").write_text("")  # the power went
    with pytest.raises(ValueError, match="track.json: expected the record of an earlier run, but it is damaged"):
        main(*first)


def test_another_model_of_the_same_name_is_another_job(clip, tmp_path, monkeypatch):
    frames, masks, _ = clip
    job = [frames, "--mask", masks / "0.png", "-o", tmp_path / "out", "--formats", "", "--end", 2]
    for seed in (0, 1):
        random = random_model(TINY_CACHED, seed=seed)
        monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", model=random, **_: model)
        if seed == 0:
            assert main(*job) == 0
    with pytest.raises(ValueError, match="holds another job, with other weights"):
        main(*job)
    head = json.loads((tmp_path / "out" / "track.json").read_text())
    del head["job"]["weights"]  # as records were once
    (tmp_path / "out" / "track.json").write_text(json.dumps(head))
    assert main(*job) == 0


@pytest.mark.parametrize("damage", ["mask gone", "mask cut off", "line of zeros"])
def test_what_is_damaged_and_all_that_came_after_is_done_again(clip, tmp_path, monkeypatch, damage):
    frames, masks, _ = clip
    random = random_model(TINY_CACHED)
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: random)
    out = tmp_path / "out"
    job = [frames, "--mask", masks / "0.png", "-o", out, "--formats", "table"]
    assert main(*job) == 0
    files = [*(out / "masks").iterdir(), out / "frames.jsonl", out / "track.json", out / "tracks.csv"]
    before = {path: path.read_bytes() for path in files}
    if damage == "mask gone":
        (out / "masks" / "00006.png").unlink()
    elif damage == "mask cut off":
        (out / "masks" / "00006.png").write_bytes(before[out / "masks" / "00006.png"][:50])
    else:
        lines = before[out / "frames.jsonl"].splitlines(keepends=True)
        (out / "frames.jsonl").write_bytes(b"".join(lines[:6]) + bytes(200) + b"\n" + b"".join(lines[7:]))
    again, step = [], Tracker.step
    monkeypatch.setattr(Tracker, "step", lambda *args, **options: again.append(options) or step(*args, **options))
    assert main(*job) == 0
    assert [each["index"] for each in again] == [6, 7, 8, 9]
    assert {path: path.read_bytes() for path in files} == before


def test_a_job_that_never_began_is_in_no_ones_way(model, clip, tmp_path, monkeypatch):
    """Whoever mends the arguments of a job that failed at once gives the same folder again."""
    frames, masks, _ = clip
    out = ["-o", tmp_path / "out", "--formats", ""]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no memory left"):
        patch.setattr(Tracker, "show", lambda *_: (_ for _ in ()).throw(ValueError("no memory left")))
        main(frames, "--mask", masks / "0.png", *out)
    assert (tmp_path / "out" / "track.json").exists()
    assert main(frames, "--mask", f"1={masks / '1.png'}", *out) == 0
    assert json.loads((tmp_path / "out" / "track.json").read_text())["job"]["masks"].keys() == {"1"}


def test_the_precision_reaches_the_model_and_belongs_to_the_job(clip, tmp_path, monkeypatch):
    """A job that began in one precision does not go on in another: its masks would not be those of either."""
    frames, masks, _ = clip
    random = random_model(TINY_CACHED)
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: random)
    computed, init = [], Tracker.__init__

    def note(tracker, predictor, **options):
        computed.append(predictor.model.state_dict()["decoder_embed.weight"].dtype)
        init(tracker, predictor, **options)

    monkeypatch.setattr(Tracker, "__init__", note)
    job = [frames, "--mask", masks / "0.png", "-o", tmp_path / "out", "--formats", "", "--end", 2]
    assert main(*job, "--precision", "bf16") == 0 and computed == [torch.bfloat16]
    with pytest.raises(ValueError, match="its precision is 'bf16', not 'fp32'"):
        main(*job)
    monkeypatch.setattr("incontext.model.inference.computes_bfloat16", lambda: True)
    assert main(*job, "--precision", "auto") == 0  # here the same


def test_a_bad_frame_is_reported_and_the_rest_is_tracked(model, clip, tmp_path, capsys):
    frames, masks, truths = clip
    (frames / "00003.png").write_bytes(b"\x89PNG no more")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(frames / "00006.png")
    assert main(frames, "--mask", masks / "0.png", "-o", tmp_path / "out") == 1
    stdout, stderr = capsys.readouterr()
    assert "8 of 10 frames tracked, 2 failed" in stdout
    assert "00003.png" in stderr and "00006.png: expected 64 x 48 pixels as in the first frame" in stderr
    report = json.loads((tmp_path / "out" / "track.json").read_text())
    assert [each["frame"] for each in report["failed"]] == [3, 6]
    assert (open_labels(tmp_path / "out" / "masks" / "00009.png") == truths[9]).mean() > 0.93
    annotation = json.loads((tmp_path / "out" / "tracks.json").read_text())["annotations"][0]
    assert [k for k, each in enumerate(annotation["segmentations"]) if each is None] == [3, 6]


def test_frames_that_cannot_be_read_at_all_are_reported(model, clip, tmp_path, capsys):
    frames, masks, _ = clip
    shown = ["--example", frames / "00004.png", masks / "4.png"]
    for k in (6, 7):
        (frames / f"{k:05d}.png").write_bytes(b"\x89PNG no more")
    assert main(frames, *shown, "-o", tmp_path / "out", "--start", 6, "--end", 8) == 1
    stdout, stderr = capsys.readouterr()
    assert "0 of 2 frames tracked, 2 failed" in stdout and stderr.count("failed: ") == 2
    assert len(json.loads((tmp_path / "out" / "track.json").read_text())["failed"]) == 2
    assert not list((tmp_path / "out").rglob("*overlay*"))


def test_a_colour_means_one_id_in_masks_and_examples(model, clip, tmp_path):
    frames, _, truths = clip
    colours = np.uint8([[0, 0, 0], [255, 0, 0], [0, 255, 0]])
    write_image(tmp_path / "first.png", colours[truths[0]])
    write_image(tmp_path / "other.png", colours[np.where(truths[4] == 2, 2, 0)])  # green alone
    shown = ["--mask", tmp_path / "first.png", "--example", frames / "00004.png", tmp_path / "other.png"]
    seen, init = [], Tracker.__init__

    def note(tracker, predictor, **options):
        seen.extend(each.ids for each in options["examples"])
        init(tracker, predictor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "__init__", note)
        assert main(frames, *shown, "-o", tmp_path / "out", "--formats", "") == 0
    assert seen == [(2,)]
    assert (open_labels(tmp_path / "out" / "masks" / "00000.png") == truths[0]).all()


def test_names_that_are_no_utf8_stop_nothing(model, tmp_path, capsys):
    pictures, truths = moving(3)
    try:
        folder = tmp_path / os.fsdecode(b"caf\xe9")
        folder.mkdir()
    except OSError:
        pytest.skip("this disk has UTF-8 names only")
    for k, picture in enumerate(pictures):
        write_image(folder / os.fsdecode(b"\xe9%d.png" % k), picture)
    write_indexed(tmp_path / "first.png", truths[0])
    job = [folder, "--mask", tmp_path / "first.png", "-o", folder / "out"]
    assert command_line(["track", *map(str, job), "--device", "cpu"]) == 0
    capsys.readouterr().out.encode()
    assert main(*job) == 0  # nor is it another job now
    assert json.loads((folder / "out" / "track.json").read_text())["job"]["video"]["name"] == str(folder)


def test_wrong_arguments_are_named_before_the_model_is_loaded(monkeypatch, clip, tmp_path):
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda *_: pytest.fail("loaded"))
    frames, masks, _ = clip
    mask, out = ["--mask", masks / "0.png"], ["-o", tmp_path / "out"]
    small = tmp_path / "small.png"
    write_indexed(small, np.ones((4, 5), np.int32))
    for wrong, message in {
        (): "expected --mask, --example",
        (*mask, "--start", 50): "expected a part of frames 0 to 9, got 50 to the end",
        (*mask, "--every", 0): "--every",
        (*mask, *mask): "two for frame 0",
        (*mask, "--formats", "avi"): "formats",
        ("--mask", tmp_path / "gone.png"): r"gone\.png",
        ("--mask", small): r"small\.png: expected a mask of 64 x 48 pixels.* got 5 x 4",
    }.items():
        with pytest.raises(ValueError, match=message):
            main(frames, *wrong, *out)
    with pytest.raises(VideoError, match="nothing there"):
        main(tmp_path / "gone.mp4", *mask, *out)
    assert not Path(tmp_path / "out").exists()


def test_a_mask_of_a_frame_that_is_not_tracked_is_named(model, clip, tmp_path):
    frames, masks, _ = clip
    with pytest.raises(ValueError, match=r"masks: expected frames that are tracked \(0 to 8 by 2\), got \[3\]"):
        main(frames, "--mask", f"3={masks / '3.png'}", "-o", tmp_path / "out", "--every", 2)
    assert not (tmp_path / "out").exists()


def test_the_pace_is_measured(clip, tmp_path, monkeypatch, capsys):
    frames, masks, _ = clip
    random = random_model(TINY_CACHED)
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name="default", **_: random)
    quick = functools.partial(measure_pace, per_round=2, rounds=1)
    monkeypatch.setattr("incontext.video.speed.measure_pace", quick)
    assert main(frames, "--mask", masks / "0.png", "-o", tmp_path / "out", "--profile") == 0
    report = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert [each["examples"] for each in report["paces"]] == [1, 9]
    for each in report["paces"]:
        assert each["tracker_fps"] > 0 < each["naive_fps"] and 0 < each["not_model"] < 1
        assert each["times_as_quick"] == pytest.approx(each["tracker_fps"] / each["naive_fps"], rel=0.05)
    assert "N = 9:" in capsys.readouterr().out and "forward" not in vars(random)
