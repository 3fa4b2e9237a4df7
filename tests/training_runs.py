"""Short training runs: a config, a pack, and what a run wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from small_sets import write_sets

from incontext.training.config import TrainConfig
from incontext.training.pack_writer import pack_folders

BASE = TrainConfig(
    preset="tiny",
    size=(32, 32),
    steps=6,
    batch_size=4,
    shots={0: 1.0, 1: 2.0, 2: 2.0},
    prompted=0.4,
    corrected=0.4,
    learning_rate=1e-3,
    warmup=2,
    evaluate_every=3,
    seed=3,
)

PLAIN = {"stochastic_depth": 0.0}  # its draws differ between parts of a batch


def write_pack(folder: Path) -> Path:
    """Packs the miniature sets, and returns the file."""
    return pack_folders(write_sets(folder / "sets"), folder / "all.pack").path


def rows(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(out):
    return torch.load(out / "state.pt", weights_only=True)
