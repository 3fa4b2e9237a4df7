"""Which files of folders and lists a label job takes for images."""

import os

import pytest
from fake_models import example
from label_jobs import QUICK, check_masks, lines, posix, run, save, write_images
from predictions import predictor

from incontext.labeling import label
from incontext.labeling.inputs import find_images


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
