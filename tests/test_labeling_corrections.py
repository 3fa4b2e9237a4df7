"""Corrected masks: they stand, they teach, and nobody guesses what they mean."""

import numpy as np
import pytest
from fake_models import ColourMatcher, example
from label_jobs import lines, mask, run, save, write_images

from incontext.palette import voc_colours


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
