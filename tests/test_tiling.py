import numpy as np
import pytest
import torch

from incontext.example_crops import crop_examples
from incontext.prompt import resize_hints
from incontext.tiling import (
    Layout,
    Tiling,
    auto_tile,
    object_width,
    object_widths,
    pad,
    resize_painting,
    thin_tile,
    tile_starts,
    too_thin,
)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 47, 64, 100, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_tiles_cover_a_side_and_overlap_enough(length, overlap):
    starts = tile_starts(length, 32, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, length - 32)
    assert all(0 < b - a <= 32 * (1 - overlap) + 1 for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("size", [(32, 32), (20, 90), (75, 41), (33, 100)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_cut_then_join_gives_the_image_back(size, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    layout = Layout.tiled(size, 32, overlap)
    crops = np.stack(layout.cut(image))
    assert crops.shape == (len(layout.corners), 32, 32, 3)
    joined = layout.join(torch.from_numpy(crops).float().permute(0, 3, 1, 2))
    np.testing.assert_allclose(joined.permute(1, 2, 0).numpy(), image, atol=2e-3)  # float32 sums of weights


def test_join_resizes_tiles_and_keeps_constants():
    layout = Layout.tiled((70, 50), 40, 0.25)
    paintings = torch.full((len(layout.corners), 3, 32, 32), 77.0)
    joined = layout.join(paintings)
    assert joined.shape == (3, 70, 50)
    torch.testing.assert_close(joined, torch.full_like(joined, 77.0))


def test_blending_is_smooth_where_tiles_disagree():
    layout = Layout.tiled((32, 56), 32, 0.25)
    assert len(layout.corners) == 2
    paintings = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 240.0)])
    row = layout.join(paintings)[0, 16]
    steps = row.diff()
    assert row[0] == 0 and row[-1] == pytest.approx(240, abs=1e-3)
    assert (steps >= -1e-3).all() and steps.max() < 120  # a ramp over the 8 shared columns, no seam


def test_resizing_a_painting_never_overshoots():
    painting = torch.zeros(1, 3, 8, 8)
    painting[..., 4:] = 255
    for size in [(64, 64), (5, 5), (8, 31)]:
        resized = resize_painting(painting, size)
        assert resized.min() >= -1e-3 and resized.max() <= 255 + 1e-3


def test_pad_mirrors_or_fills():
    labels = np.array([[1, 2], [3, 4]])
    assert pad(labels, 4).tolist() == [[1, 2, 2, 1], [3, 4, 4, 3], [3, 4, 4, 3], [1, 2, 2, 1]]
    assert pad(labels, 3, fill=-1).tolist() == [[1, 2, -1], [3, 4, -1], [-1, -1, -1]]
    assert pad(np.zeros((2, 9, 3), np.uint8), 5).shape == (5, 9, 3)
    assert pad(labels, 2) is labels


def test_layout_is_whole_until_query_or_example_exceed_a_tile():
    tiling = Tiling(64)
    assert tiling.layout((64, 60), [(64, 64)]).tile is None
    assert tiling.layout((65, 10), [(64, 64)]).tile == 64
    assert tiling.layout((30, 30), [(64, 64), (10, 65)]).tile == 64  # the query at the examples' scale
    assert Tiling(64, slack=1.5).layout((96, 20), [(10, 10)]).tile is None
    assert Tiling(None).layout((9999, 9999), [(10, 10)]).tile is None


def test_object_width_of_discs_lines_and_many():
    y, x = np.mgrid[:100, :200]
    disc = ((y - 50) ** 2 + (x - 50) ** 2 <= 20**2).astype(np.int32)
    assert object_width([disc]) == pytest.approx(np.pi * 20**2 / 41, rel=0.01)
    line = ((y > 40) & (y <= 44)).astype(np.int32)
    assert object_width([line]) == 4
    assert object_width([line.T]) == 4
    two_discs = disc + ((y - 50) ** 2 + (x - 150) ** 2 <= 20**2)
    assert object_width([two_discs]) == object_width([disc])
    assert object_width([disc, np.where(line, 2, -1)]) == 4  # the thinnest id decides, IGNORE does not count
    assert object_width([np.zeros((5, 5), np.int32)]) is None


def test_auto_tile_follows_the_objects():
    assert auto_tile(40.0, (448, 448), 16) == 560  # 40 px in 560 become 32, two patches
    assert auto_tile(1000.0, (448, 448), 16) == 14000  # large objects: larger than any photograph, so whole
    assert auto_tile(3.0, (448, 448), 16) == 448  # no magnification
    assert auto_tile(None, (448, 448), 16) is None


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_tiles_that_nobody_asked_for_are_few(overlap):
    for longest in (500, 3999, 4000, 65_537):
        tile = thin_tile(3.0, (128, 128), 8, [(300, 200), (longest // 2, longest)], overlap)
        assert tile >= 128 and len(tile_starts(longest, tile, overlap)) <= 8
    assert thin_tile(400.0, (128, 128), 8, [(900, 900)], overlap) == auto_tile(400.0, (128, 128), 8)
    assert thin_tile(None, (128, 128), 8, [], overlap) is None


def _field(size=(400, 400)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), np.zeros(size, np.int32)


def test_crops_show_the_mask_and_its_image():
    image, labels = _field()
    labels[300:330, 310:340] = 5
    crops = crop_examples([(image, labels)], (5,), 64)
    assert len(crops) == 1  # one shows it all; others would add nothing
    crop, mask = crops[0]
    assert crop.shape == (64, 64, 3) and mask.shape == (64, 64)
    assert (mask == 5).sum() == 900 and (mask == 0).any()
    y, x = np.argwhere(labels == 5)[0] - np.argwhere(mask == 5)[0]
    np.testing.assert_array_equal(crop, image[y : y + 64, x : x + 64])


@pytest.mark.parametrize("place", [(0, 0), (399, 399), (0, 399), (200, 399), (193, 7)])
def test_crops_find_even_one_pixel(place):
    image, labels = _field()
    labels[place] = 1
    assert [(mask == 1).sum() for _, mask in crop_examples([(image, labels)], (1,), 64)] == [1]


def test_crops_show_every_id_beyond_the_limit():
    image, labels = _field()
    for id in range(1, 9):
        labels[40 * id : 40 * id + 9, 380 - 40 * id : 389 - 40 * id] = id
    crops = crop_examples([(image, labels)], tuple(range(1, 9)), 48, limit=2)
    assert {int(id) for _, mask in crops for id in np.unique(mask)} == set(range(9))


def test_crops_are_limited_where_objects_are_everywhere():
    image, labels = _field()
    labels[::40, ::40] = 1
    assert len(crop_examples([(image, labels)], (1,), 64)) == 4
    assert len(crop_examples([(image, labels)] * 6, (1,), 64)) == 6


def test_small_and_negative_examples_give_one_crop_each():
    small = (np.full((20, 30, 3), 9, np.uint8), np.ones((20, 30), np.int32))
    image, labels = _field()
    crops = crop_examples([small, (image, labels)], (1,), 64)
    assert len(crops) == 2 and all(mask.shape == (64, 64) for _, mask in crops)
    assert (crops[0][1] == 1).all()  # mirrored, not stretched, not blackened
    np.testing.assert_array_equal(crops[1][0], image[168:232, 168:232])


def test_hints_survive_any_resize():
    labels = np.full((1000, 700), -1, np.int32)
    labels[501, 333] = 3
    labels[501, 334] = 0
    small = resize_hints(labels, (32, 32))
    assert (small == 3).sum() == 1 and small[501 * 32 // 1000, 333 * 32 // 700] == 3
    assert (
        resize_hints(np.array([[3, -1], [0, -1]]), (4, 4)) == np.array([[3, 3, -1, -1]] * 2 + [[0, 0, -1, -1]] * 2)
    ).all()


def test_widths_of_each_id():
    labels = np.zeros((40, 60), np.int32)
    labels[5:9], labels[20:, 10:12], labels[0, 0] = 1, 7, -1
    assert object_widths(labels) == [4, 2]
    assert object_widths(np.zeros((4, 4), np.int32)) == []


def test_too_thin():
    """By the widest object of all, in pixels of the model's input."""
    thin, wide = np.zeros((64, 256), np.int32), np.zeros((64, 256), np.int32)
    thin[10:12], thin[40:43] = 1, 2
    wide[10:14] = 1
    assert too_thin([thin], (32, 32))  # 3 pixels, of sides shrunk by 2 and by 8: 0.75
    assert not too_thin([thin], (64, 256)) and not too_thin([np.zeros_like(thin)], (32, 32))
    assert too_thin([thin, wide], (32, 32)) and not too_thin([thin, wide], (32, 128))
