"""The canvas: an example stacked above the query, a grid of examples, and which patches are hidden."""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor


def stitch(example: Tensor, query: Tensor) -> Tensor:
    """Stacks an example above a query: two (..., C, H, W) to one canvas (..., C, 2H, W)."""
    return torch.cat((example, query), dim=-2)


def split(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `stitch`: (..., C, 2H, W) to the example's half and the query's half.

    Raises:
        ValueError: if the canvas has an odd height.
    """
    if canvas.shape[-2] % 2:
        raise ValueError(f"a canvas has two halves of equal height, got a height of {canvas.shape[-2]}")
    half = canvas.shape[-2] // 2
    return canvas[..., :half, :], canvas[..., half:, :]


def spatial_grid(images: Tensor, mode: str = "bicubic") -> Tensor:
    """Spatial ensemble: lays N examples out in an n x n grid of one example's size (SegGPT paper, section 3.3).

    n is the smallest with n * n >= N. Cells beyond N repeat the examples from the first on. Where n does not divide H
    or W, some cells are a pixel larger than others.

    Args:
        images: (B, N, C, H, W) example images or targets.
        mode: "bicubic" for images, "nearest" for targets, whose colours must not blend.

    Returns:
        (B, 1, C, H, W). N = 1 comes back as it is.

    Raises:
        ValueError: for another mode, no examples, or more examples than pixels to show them.
    """
    if mode not in ("bicubic", "nearest"):
        raise ValueError(f"mode must be 'bicubic' or 'nearest', got {mode!r}")
    batch, count, _, height, width = images.shape
    if count == 0:
        raise ValueError("a spatial ensemble needs at least one example")
    if count == 1:
        return images
    n = math.ceil(math.sqrt(count))
    if n > min(height, width):
        raise ValueError(f"{count} examples do not fit into {height} x {width} pixels")
    row_edges = [round(i * height / n) for i in range(n + 1)]
    column_edges = [round(i * width / n) for i in range(n + 1)]
    grid = torch.empty_like(images[:, 0])
    for cell in range(n * n):
        top, bottom = row_edges[cell // n : cell // n + 2]
        left, right = column_edges[cell % n : cell % n + 2]
        grid[..., top:bottom, left:right] = _resize(images[:, cell % count], (bottom - top, right - left), mode)
    return grid[:, None]


def _resize(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "nearest":
        return torch.nn.functional.interpolate(images, size=size, mode="nearest-exact")
    return torch.nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)


def hidden_half(batch_size: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Returns the `hidden` map of a query of which nothing is painted yet: (B, h * w) bool, all True."""
    return torch.ones(batch_size, grid[0] * grid[1], dtype=torch.bool, device=device)


def patches_to_pixels(hidden: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Spreads a flag per patch, (B, h * w), to its pixels: (B, h * patch, w * patch)."""
    flags = rearrange(hidden, "b (h w) -> b h w", h=grid[0], w=grid[1])
    return repeat(flags, "b h w -> b (h p) (w q)", p=patch_size, q=patch_size)


def pixels_to_patches(painted: Tensor, patch_size: int) -> Tensor:
    """Returns `hidden` for a query on which some pixels are painted.

    Args:
        painted: (B, H, W) bool, True where the caller has painted the query's target (black is paint too).
        patch_size: side of a patch.

    Returns:
        (B, h * w) bool: True for the patches without any painted pixel.
    """
    touched = rearrange(painted, "b (h p) (w q) -> b (h w) (p q)", p=patch_size, q=patch_size).any(-1)
    return ~touched
