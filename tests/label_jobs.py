"""Small label jobs for tests: images that a colour matcher segments perfectly, and what a job makes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_models import blocks, example, scene
from PIL import Image
from predictions import predictor

from incontext.image import open_labels
from incontext.labeling import LabelConfig, label

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
