"""Several images at once on a CPU: the same results in the same order, and torch's threads given back."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, blocks, scene
from packs import cached_model, small_pack
from PIL import Image
from predictions import predictor

from incontext.labeling import LabelConfig, label
from incontext.labeling.side_by_side import count_side_by_side, side_by_side


@pytest.fixture
def four_threads(set_threads):
    set_threads(4)


def test_results_keep_their_order_and_the_first_is_made_alone(four_threads):
    running, most, alone, threads = 0, 0, [], set()
    lock = threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            alone.append((number, running))
            threads.add(torch.get_num_threads())
        time.sleep(0.02 / (1 + number % 3))
        with lock:
            running -= 1
        return number * number

    assert list(side_by_side(work, range(12), 2)) == [number * number for number in range(12)]
    assert most == 2 and alone[0] == (0, 1) and threads == {2}  # half of torch's for each
    assert torch.get_num_threads() == 4
    assert list(side_by_side(work, [], 2)) == []


@pytest.mark.parametrize("bad", [0, 3])
def test_an_error_comes_in_its_turn_and_threads_are_given_back(four_threads, bad):
    def work(number):
        if number == bad:
            raise KeyboardInterrupt
        return number

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for result in side_by_side(work, range(9), 4):
            seen.append(result)
    assert seen == list(range(bad)) and torch.get_num_threads() == 4


def test_only_where_it_helps(four_threads):
    ready = predictor(cached_model())
    assert count_side_by_side(ready, 1) == 4 and count_side_by_side(ready, 2) == 1
    torch.set_num_threads(32)
    assert count_side_by_side(ready, 1) == 8
    assert count_side_by_side(predictor(ColourMatcher().train()), 1) == 1


def test_a_job_gives_the_same_to_the_last_bit(four_threads, tmp_path):
    model = cached_model()
    (tmp_path / "in").mkdir()
    for number in range(9):
        Image.fromarray(scene(blocks([1, 2], (40, 56), seed=number))).save(tmp_path / "in" / f"{number}.png")
    config = LabelConfig(recolourings=2)
    made = []
    for threads in (4, 1):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        assert label(tmp_path / "in", small_pack(model), out, predictor=predictor(model), config=config).made == 9
        rows = {row["image"]: row for row in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}
        scores = {image: (row["scores"], row["score"], row["disagreement"]) for image, row in rows.items()}
        made.append((scores, [np.asarray(Image.open(out / "masks" / f"{number}.png")) for number in range(9)]))
    assert made[0][0] == made[1][0]
    np.testing.assert_array_equal(made[0][1], made[1][1])
