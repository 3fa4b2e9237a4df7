"""Folders of images and masks to train on, in miniature: rendered scenes, and pictures with a left and a right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from incontext.scenes import render_scene, task_labels

SIZE = (48, 64)  # (H, W): not square, so that a swap shows
IGNORED = (slice(0, 8), slice(0, 10))  # a corner that no mask says anything about


def write_sets(root: Path, count: int = 5) -> Path:
    """Writes two sets whose images share classes, one with instances, one of segments without classes, and one bare.

    kinds: a class for each kind of solid, and instances. red: red things. bsds500_like: segments. bare: no masks.
    """
    for place, (name, task) in enumerate(
        {"kinds": "kinds", "red": "red things", "bsds500_like": "objects", "bare": "kinds"}.items()
    ):
        for number in range(count):
            scene = render_scene(np.random.default_rng([place, number]), SIZE, task=task)
            labels, instances = (ids.astype(np.uint8) for ids in (task_labels(scene, task), scene.objects))
            labels[IGNORED] = instances[IGNORED] = 255
            write(root / name / "images" / f"{number}.png", scene.image)
            if name != "bare":
                write(root / name / "masks" / f"{number}.png", labels)
            if name == "kinds":
                write(root / name / "masks_inst" / f"{number}.png", instances)
    return root


def write_sided(root: Path, name: str, count: int = 4) -> Path:
    """Writes a set whose class 1 is always left of its class 2."""
    generator = np.random.default_rng(7)
    for number in range(count):
        image = generator.integers(0, 256, (*SIZE, 3), np.uint8)
        labels = np.zeros(SIZE, np.uint8)
        labels[8:40, 4:28] = 1
        labels[8:40, 36:60] = 2
        image[labels == 1] = (200, 30, 30)
        image[labels == 2] = (30, 30, 200)
        write(root / name / "images" / f"{number}.png", image)
        write(root / name / "masks" / f"{number}.png", labels)
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture or a mask, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
