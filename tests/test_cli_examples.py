"""`incontext examples` and `incontext eval risk`: what they print and write."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, scene
from PIL import Image
from predictions import tiny
from small_sets import write

from incontext.cli.main import main


@pytest.fixture
def painted(tmp_path):
    """A folder of five examples, the last with a wrong mask."""
    for number in range(5):
        labels = blocks((1,), seed=number)
        write(tmp_path / "painted" / "images" / f"{number}.png", scene(labels))
        write(tmp_path / "painted" / "masks" / f"{number}.png", (labels if number < 4 else 1 - labels).astype(np.uint8))
    return tmp_path / "painted"


def use(monkeypatch, model):
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name: model)
    return model


def test_score(painted, tmp_path, monkeypatch, capsys):
    model = use(monkeypatch, ColourMatcher())
    assert main(["examples", "score", str(painted), "-o", str(tmp_path / "out"), "--size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "4.png" in printed and "unlike the others" in printed and "best subset" in printed
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [each["odd"] for each in stored["examples"]] == [False] * 4 + [True]
    assert all(not name.endswith("4.png") for name in stored["subset"])
    assert Image.open(tmp_path / "out" / "scores.png").width > 300
    model.calls.clear()
    assert main(["examples", "score", str(painted), "-o", str(tmp_path / "out"), "--size", "2"]) == 0
    assert len(model.calls) == 5  # the sheet's pictures; all numbers are known
    assert capsys.readouterr().out == printed


def test_score_needs_two(tmp_path, monkeypatch, capsys):
    use(monkeypatch, ColourMatcher())
    labels = blocks((1,))
    write(tmp_path / "one" / "images" / "a.png", scene(labels))
    write(tmp_path / "one" / "masks" / "a.png", labels.astype(np.uint8))
    assert main(["examples", "score", str(tmp_path / "one")]) == 2
    assert "expected 2 to" in capsys.readouterr().err


def test_score_says_whose_ids_changed(painted, tmp_path, monkeypatch, capsys):
    use(monkeypatch, ColourMatcher())
    for number in range(2):
        labels = 2 * blocks((1,), seed=number)
        write(tmp_path / "more" / "images" / f"{number}.png", scene(labels, [9, 2]))
        write(tmp_path / "more" / "masks" / f"{number}.png", labels.astype(np.uint8))
    (tmp_path / "more" / "classes.txt").write_text("2 cell\n")
    (painted / "classes.txt").write_text("1 cell\n")
    more = str(tmp_path / "more")
    assert main(["examples", "score", str(painted), more, "--size", "1", "--budget", "60"]) == 0
    line, *_ = capsys.readouterr().err.splitlines()
    assert line == f"{more}: classes are joined by name, so ids changed: 2 -> 1 (cell)"


def test_suggest(tmp_path, monkeypatch, capsys):
    use(monkeypatch, tiny())
    generator = np.random.default_rng(0)
    for number in range(12):
        colour = (200, 60, 60) if number < 8 else (50, 60, 210)
        image = (np.array(colour) + generator.normal(0, 15, (40, 40, 3))).clip(0, 255)
        write(tmp_path / "photos" / f"{number:02d}.png", image.astype(np.uint8))
    arguments = ["examples", "suggest", str(tmp_path / "photos"), "-k", "2", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    stored = json.loads((tmp_path / "out" / "suggestions.json").read_text())
    places = [int(each["image"][-6:-4]) < 8 for each in stored]
    assert places == [True, False]  # one of each kind, the larger kind first
    assert stored[0]["share"] == pytest.approx(8 / 12, abs=0.01)
    assert Image.open(tmp_path / "out" / "suggestions.png").width > 300
    assert list((tmp_path / "out").glob("embeddings-*.npz"))
    printed = capsys.readouterr().out
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err and captured.out == printed


def test_suggest_what_painted_images_lack(painted, tmp_path, monkeypatch, capsys):
    use(monkeypatch, tiny())
    assert main(["examples", "suggest", str(painted / "images"), "--examples", str(painted), "-k", "1"]) == 2
    assert "found none" in capsys.readouterr().err  # all of it is painted
    write(tmp_path / "more" / "new.png", scene(blocks((1,), seed=9)))
    more = str(tmp_path / "more")
    assert main(["examples", "suggest", str(painted / "images"), more, "--examples", str(painted), "-k", "1"]) == 0
    assert "new.png" in capsys.readouterr().out
    assert main(["examples", "suggest", more, "-k", "0"]) == 2
