"""The canvas: stitching, the grid of the spatial ensemble, maps of hidden patches."""

from __future__ import annotations

import pytest
import torch

from incontext.canvas import hidden_half, patches_to_pixels, pixels_to_patches, spatial_grid, split, stitch


def flat_examples(count: int, size: tuple[int, int] = (12, 12)) -> torch.Tensor:
    """(2, N, 3, H, W): example n of query b is of the one colour 10 * b + n + 1."""
    values = 10.0 * torch.arange(2)[:, None] + torch.arange(1, count + 1)
    return values[:, :, None, None, None].expand(-1, -1, 3, *size).clone()


def test_stitch_and_split_are_inverse():
    example, query = torch.randn(2, 5, 3, 8, 6), torch.randn(2, 5, 3, 8, 6)
    canvas = stitch(example, query)
    assert canvas.shape == (2, 5, 3, 16, 6)
    assert torch.equal(canvas[..., 0, :], example[..., 0, :])  # the example is on top
    upper, lower = split(canvas)
    assert torch.equal(upper, example)
    assert torch.equal(lower, query)


def test_split_refuses_an_odd_height():
    with pytest.raises(ValueError, match="equal height, got a height of 15"):
        split(torch.zeros(3, 15, 6))


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
@pytest.mark.parametrize(
    ("count", "cells"),
    [
        (2, [[1, 2], [1, 2]]),
        (3, [[1, 2], [3, 1]]),
        (4, [[1, 2], [3, 4]]),
        (5, [[1, 2, 3], [4, 5, 1], [2, 3, 4]]),
        (9, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_grid_shows_every_example_and_repeats_from_the_first(count, cells, mode):
    grid = spatial_grid(flat_examples(count), mode)
    assert grid.shape == (2, 1, 3, 12, 12)
    expected = torch.tensor(cells, dtype=torch.float32)
    side = 12 // len(cells)
    expected = expected.repeat_interleave(side, 0).repeat_interleave(side, 1)
    for b in range(2):
        torch.testing.assert_close(grid[b, 0], (expected + 10 * b).expand(3, -1, -1), atol=1e-5, rtol=0)


def test_grid_where_cells_do_not_divide_the_size():
    grid = spatial_grid(flat_examples(9, size=(10, 11)), "nearest")
    assert grid.shape == (2, 1, 3, 10, 11)
    assert grid[0].unique().tolist() == list(range(1, 10))
    for number in range(1, 10):
        inside = (grid[0, 0, 0] == number).nonzero()
        height, width = (inside.amax(0) - inside.amin(0) + 1).tolist()
        assert height in (3, 4) and width in (3, 4) and len(inside) == height * width


def test_grid_of_one_example_is_that_example():
    images = torch.randn(2, 1, 3, 12, 12)
    assert torch.equal(spatial_grid(images), images)


def test_grid_of_targets_blends_no_colours():
    colours = torch.randint(0, 2, (1, 4, 3, 31, 31), generator=torch.Generator().manual_seed(0)).float()
    assert set(spatial_grid(colours, "nearest").unique().tolist()) == {0.0, 1.0}


def test_grid_shrinks_images_and_targets_alike():
    """A shape must lie at the same place in both, or the mask slips off its object."""
    ramp = torch.linspace(0, 1, 64).expand(1, 4, 3, 64, 64)
    images, targets = spatial_grid(ramp, "bicubic"), spatial_grid(ramp, "nearest")
    assert (images - targets).abs().max() < 0.02  # about one source pixel, 1 / 63


def test_grid_errors():
    with pytest.raises(ValueError, match="mode must be"):
        spatial_grid(flat_examples(2), "bilinear")
    with pytest.raises(ValueError, match="at least one example"):
        spatial_grid(flat_examples(0))
    with pytest.raises(ValueError, match="do not fit"):
        spatial_grid(flat_examples(5, size=(2, 12)))


def test_hidden_half_hides_every_patch():
    hidden = hidden_half(3, (4, 5))
    assert hidden.shape == (3, 20) and hidden.dtype == torch.bool and hidden.all()


def test_patches_spread_to_their_pixels():
    hidden = torch.tensor([[True, False, False, False, False, True]])
    pixels = patches_to_pixels(hidden, (2, 3), 4)
    expected = torch.zeros(1, 8, 12, dtype=torch.bool)
    expected[:, :4, :4] = True
    expected[:, 4:, 8:] = True
    assert torch.equal(pixels, expected)


def test_pixels_and_patches_are_inverse():
    hidden = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(pixels_to_patches(~patches_to_pixels(hidden, (3, 4), 8), 8), hidden)


def test_one_painted_pixel_shows_its_patch():
    painted = torch.zeros(1, 8, 12, dtype=torch.bool)
    painted[0, 5, 11] = True
    assert pixels_to_patches(painted, 4).tolist() == [[True, True, True, True, True, False]]
