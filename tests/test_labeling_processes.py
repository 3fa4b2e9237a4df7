"""Label jobs that are killed, or share their folder with other processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_models import example
from label_jobs import check_masks, lines, mask, posix, run, write_images

from incontext.labeling import LabelConfig
from incontext.labeling.claims import Claims
from incontext.labeling.manifest import Manifest, Row

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


def test_the_review_leaves_out_what_another_process_is_replacing(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 2)
    config = LabelConfig(calibrate=False, review=True)
    run(tmp_path, config=config)
    with Manifest(tmp_path / "out" / "manifest.jsonl") as manifest:  # as another process does before it writes a mask
        manifest.add(Row("000.png", "begun", manifest.rows["000.png"].recipe))
    take = Claims.take
    monkeypatch.setattr(Claims, "take", lambda self, image: image != "000.png" and take(self, image))
    assert run(tmp_path, config=config).elsewhere == 1
    table = (tmp_path / "out" / "review.csv").read_text()
    assert "001.png" in table and "000.png" not in table
