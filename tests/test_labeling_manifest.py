"""The manifest and the claims: what several processes, full disks and sudden deaths may do to them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from incontext.labeling.claims import Claims
from incontext.labeling.manifest import Manifest, Recipe, Row

RECIPE = Recipe("m", "p", "s")


def done(image="a/b.jpg", **changes) -> Row:
    values = dict(sha256="0" * 64, bytes=3, modified=4, mask="masks/a/b.png", formats="f", size=(2, 3), ids=(1, 7))
    values |= dict(scores={1: 0.5, 7: 1.0}, score=0.75, disagreement=0.25, seconds=0.5)
    return Row(image, "done", RECIPE, **{**values, **changes})


def start(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_rows_come_back_whole_and_the_newest_counts(tmp_path):
    path = tmp_path / "manifest.jsonl"
    rows = [done(), Row("ä\nb.jpg", "failed", RECIPE, error='no "picture"'), done(score=0.5)]
    with Manifest(path) as manifest:
        for row in rows:
            manifest.add(row)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    first = json.loads(lines[0])
    wanted = {"image", "sha256", "status", "error", "model", "prompt", "size", "ids", "scores", "score", "disagreement"}
    assert wanted | {"seconds", "settings"} <= first.keys() and first["scores"] == {"1": 0.5, "7": 1.0}
    with Manifest(path) as again:
        assert again.rows == {"a/b.jpg": rows[2], "ä\nb.jpg": rows[1]} and again.damaged == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_costs_its_own_image_only(tmp_path, cut):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as manifest:
        manifest.add(done("a"))
        manifest.add(done("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Manifest(path) as manifest:
        assert set(manifest.rows) == ({"a", "b"} if cut == 1 else {"a"})  # cut 1: only the line's end is missing
        manifest.add(done("c"))
    with Manifest(path) as manifest:
        assert {"a", "c"} <= set(manifest.rows) and manifest.damaged == (cut > 1)


@pytest.mark.parametrize(
    "line", ["[]", "1", "{}", '{"image": "x"}', "\x00\x00", '{"image":"x","status":"done","wrong":1}']
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    path = tmp_path / "manifest.jsonl"
    path.write_text(line + "\n\n")
    with Manifest(path) as manifest:
        assert manifest.rows == {} and manifest.damaged == 1
        manifest.add(done())
        assert list(manifest.rows) == ["a/b.jpg"]


def test_what_another_process_adds_is_seen(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as one, Manifest(path) as two:
        two.add(done("x"))
        assert one.rows == {}
        one.refresh()
        one.add(done("y"))
        two.refresh()
        assert set(one.rows) == set(two.rows) == {"x", "y"}


WRITER = """
import sys
from pathlib import Path
from incontext.labeling.manifest import Manifest, Recipe, Row
with Manifest(Path(sys.argv[1])) as manifest:
    for number in range(300):
        manifest.add(Row(f"{sys.argv[2]}-{number}", "done", Recipe("m", "p", "s"), error="x" * (number * 17 % 2000)))
"""


def test_processes_that_write_at_once_leave_whole_lines(tmp_path):
    path = tmp_path / "manifest.jsonl"
    writers = [start(WRITER, path, name) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with Manifest(path) as manifest:
        assert len(manifest.rows) == 600 and manifest.damaged == 0


FULL = """
import resource, sys
from pathlib import Path
from incontext.labeling.manifest import Manifest, Recipe, Row
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a file may not grow beyond: what a full disk does to it
with Manifest(Path(sys.argv[1])) as manifest:
    try:
        for number in range(100):
            manifest.add(Row(f"{number}", "done", Recipe("m", "p", "s")))
    except OSError as error:
        print(number)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_full_disk_is_an_error_and_keeps_the_rows_before(tmp_path):
    path = tmp_path / "manifest.jsonl"
    written = int(start(FULL, path).communicate(timeout=60)[0])
    assert 1 <= written < 10
    with Manifest(path) as manifest:
        assert list(manifest.rows) == [str(number) for number in range(written)]


HOLDER = """
import sys
from pathlib import Path
from incontext.labeling.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.take("a"), claims.take("b"), flush=True)
    sys.stdin.readline()
    claims.release("b")
    print("released", flush=True)
    sys.stdin.readline()
"""

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there are no POSIX locks")


@needs_locks
def test_a_claim_holds_until_it_is_released_or_its_process_is_killed(tmp_path):
    holder = start(HOLDER, tmp_path)
    assert holder.stdout.readline().split() == ["True", "True"]
    with Claims(tmp_path) as claims:
        assert [claims.take(image) for image in "abc"] == [False, False, True]
        assert not claims.take_all()
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline().strip() == "released"
        assert claims.take("b") and not claims.take("a")
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
        assert claims.take("a") and claims.take_all()


@needs_locks
def test_one_process_cannot_open_one_folder_twice(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.take("a")
        with pytest.raises(ValueError, match="a job of this process is at work on it"):
            Claims(tmp_path)
        other = start(HOLDER, tmp_path)
        assert other.stdout.readline().split() == ["False", "True"]  # the second try has cost no lock
        other.kill()
        other.communicate()
    with Claims(Path(tmp_path)) as claims:
        assert claims.take("a")
