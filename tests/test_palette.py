"""Palettes: colours far apart, painting and decoding as a round trip, confidences that mean something."""

import numpy as np
import pytest
import torch

from incontext.palette import MAX_IDS, Palette, far_colours, random_colours, split_ids, voc_colours
from incontext.types import IGNORE


def as_painting(image):
    return torch.from_numpy(image).movedim(-1, -3).float()


# What exact packings or lattices of the cube reach, black included, less what rounding costs.
@pytest.mark.parametrize(
    ("count", "apart"),
    [(1, 441), (2, 360), (3, 360), (4, 284), (7, 254), (8, 219), (12, 179), (64, 72), (255, 50)],
)
def test_colours_are_far_apart(count, apart):
    palette = Palette.for_ids(range(1, count + 1))
    assert palette.separation > apart
    np.testing.assert_array_equal(palette.colours, far_colours.__wrapped__(count))  # the same every time


def test_separation_counts_black():
    assert Palette((1, 2), np.array([[255, 0, 0], [40, 0, 0]], np.uint8)).separation == 40


@pytest.mark.parametrize("count", [1, 5, 16, MAX_IDS])
def test_random_colours_keep_their_distance(count):
    for seed in range(5):
        palette = Palette.random(range(1, count + 1), torch.Generator().manual_seed(seed))
        assert palette.separation > 0.4 * 255 / (count + 1) ** (1 / 3)


def test_random_colours_follow_their_generator():
    first, second = (random_colours(4, torch.Generator().manual_seed(3), batch=2) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2, 4, 3)
    assert (first[0] != first[1]).any()
    assert (random_colours(4, torch.Generator().manual_seed(4), batch=2) != first).any()


def test_random_colours_spread_over_the_cube():
    colours = random_colours(1, torch.Generator().manual_seed(0), batch=2000)[:, 0].astype(float)
    assert np.all(colours.min(axis=0) < 10) and np.all(colours.max(axis=0) > 245)
    assert np.all(np.abs(colours.mean(axis=0) - 128) < 25)


@pytest.mark.parametrize("ids", [(1,), (3, 1, 2), (7, 300, 70000), tuple(range(1, 256))])
def test_paint_then_decode_is_a_round_trip(ids):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, *ids], (2, 40, 50)).astype(np.int32)
    palette = Palette.for_ids(ids)
    painting = palette.paint(labels)
    assert painting.dtype == np.uint8 and painting.shape == (2, 40, 50, 3)
    decoded, confidence = palette.decode(as_painting(painting))
    assert decoded.dtype == torch.int32 and confidence.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy(), labels)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16])
def test_unknown_ids_and_ignore_are_black(dtype):
    labels = np.array([[0, 1, 2, IGNORE, 3, 30000]], dtype)
    painted = Palette.for_ids((2, 3)).paint(labels)[0]
    np.testing.assert_array_equal(painted.any(axis=-1), [False, False, True, False, True, False])


def test_unsigned_and_bool_labels_are_painted():
    palette = Palette.for_ids((1,))
    for dtype in (bool, np.uint8):
        np.testing.assert_array_equal(palette.paint(np.array([[0, 1]], dtype))[0, 1], [255, 255, 255])


def test_an_empty_palette_knows_only_background():
    palette = Palette.for_ids(())
    assert not palette.paint(np.ones((2, 3), np.int32)).any()
    labels, confidence = palette.decode(torch.rand(3, 2, 3) * 255)
    assert (labels == 0).all() and (confidence == 1).all()


def test_probabilities_are_a_softmax_over_squared_distances():
    palette = Palette.for_ids((4, 9))
    painting = torch.rand(2, 3, 5, 6) * 255
    probabilities = palette.probabilities(painting, temperature=5000)
    points = torch.from_numpy(np.vstack([np.zeros((1, 3)), palette.colours])).float()
    distances = (painting[:, None] - points[:, :, None, None]).square().sum(dim=2)
    torch.testing.assert_close(probabilities, torch.softmax(-distances / 5000, dim=1))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 5, 6))


def test_decode_in_strips_equals_decode_at_once(monkeypatch):
    palette = Palette.for_ids((1, 2, 3))
    painting = torch.rand(2, 3, 11, 7) * 255
    whole = palette.decode(painting)
    monkeypatch.setattr("incontext.palette._DECODE_VALUES", 120)
    strips = palette.decode(painting)
    torch.testing.assert_close(strips, whole)


def test_confidence_falls_between_colours_and_temperature_never_moves_labels():
    palette = Palette.for_ids((1,))
    ramp = torch.linspace(0, 255, 52).expand(3, 1, 52)
    labels, confidence = palette.decode(ramp)
    assert labels[0].tolist() == [0] * 26 + [1] * 26
    left = confidence[0, :26]
    assert (left.diff() <= 0).all() and left[0] > 0.999 and left[-1] < 0.7
    for temperature in (10.0, 1e6):
        assert (palette.decode(ramp, temperature)[0] == labels).all()


@pytest.mark.parametrize(
    ("ids", "colours", "match"),
    [
        ((0,), [[255, 0, 0]], "from 1 on"),
        ((1, 1), [[255, 0, 0], [0, 255, 0]], "distinct ids"),
        ((1, 2), [[255, 0, 0]], r"uint8 \(2, 3\)"),
        ((1,), [[0, 0, 0]], "none of them black"),
        ((1, 2), [[9, 9, 9], [9, 9, 9]], "distinct colours"),
    ],
)
def test_palette_refuses(ids, colours, match):
    with pytest.raises(ValueError, match=match):
        Palette(ids, np.array(colours, np.uint8))


def test_too_many_ids_point_to_several_passes():
    with pytest.raises(ValueError, match="split_ids"):
        Palette.for_ids(range(1, 258))
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, H, W\)"):
        Palette.for_ids((1,)).decode(torch.zeros(4, 4, 3))


@pytest.mark.parametrize(
    ("count", "per_pass", "sizes"), [(0, 4, []), (4, 4, [4]), (9, 4, [3, 3, 3]), (10, 4, [3, 3, 4])]
)
def test_split_ids_is_balanced_and_keeps_order(count, per_pass, sizes):
    ids = list(range(count, 0, -1))
    passes = split_ids(ids, per_pass)
    assert [len(group) for group in passes] == sizes
    assert [i for group in passes for i in group] == ids


def test_split_ids_refuses():
    with pytest.raises(ValueError, match="per_pass"):
        split_ids([1], 0)


def test_voc_colours():
    colours = voc_colours()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        15: (192, 128, 128),
    }
    for index, colour in {**known, 20: (0, 64, 128), 255: (224, 224, 192)}.items():
        assert tuple(colours[index]) == colour
    assert len(np.unique(colours, axis=0)) == 256
