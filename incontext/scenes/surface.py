"""Colours and procedural textures, as pure functions of world coordinates."""

from __future__ import annotations

import numpy as np

from incontext.scenes.solids import Paint

GROUNDS = ("plain", "checker", "planks", "tiles", "mottled", "grain")

_NOISE_SIZE = 64


def noise_table(generator: np.random.Generator) -> np.ndarray:
    """(64, 64) float32 random values 0..1, the lattice that `noise` interpolates; it wraps around."""
    return generator.random((_NOISE_SIZE, _NOISE_SIZE), dtype=np.float32)


def noise(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth value noise.

    Args:
        table: from `noise_table`.
        u, v: coordinates (P,); the lattice has unit spacing.

    Returns:
        (P,) float32 in 0..1.
    """
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i, j = u0.astype(np.int32), v0.astype(np.int32)
    flat, mask = table.ravel(), _NOISE_SIZE - 1
    i0, i1 = (i & mask) * _NOISE_SIZE, ((i + 1) & mask) * _NOISE_SIZE
    j0, j1 = j & mask, (j + 1) & mask
    near = flat[i0 + j0] * (1 - fv) + flat[i0 + j1] * fv
    far = flat[i1 + j0] * (1 - fv) + flat[i1 + j1] * fv
    return near * (1 - fu) + far * fu


def linear(rgb: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Display colours 0..1 to linear light; gamma 2 is near enough to sRGB, and a square root undoes it."""
    return np.square(np.asarray(rgb, np.float32))


def blend(first, second, weight: np.ndarray) -> np.ndarray:
    """(3, P) mix of two colours, each (3,) or (3, P); `weight` (P,) is the share of the second."""
    first, second = _planes(first), _planes(second)
    return first + weight * (second - first)


def _planes(colour) -> np.ndarray:
    """(3, 1) or (3, P): colours lie in planes; numpy is slow where the innermost axis has three elements."""
    colour = np.asarray(colour, np.float32)
    return colour[:, None] if colour.ndim == 1 else colour


def solid_albedo(paint: Paint, x: np.ndarray, y: np.ndarray, z: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Colour of a solid's surface.

    Args:
        paint: colours and pattern.
        x, y, z: points in the solid's own frame, each (P,).
        table: noise lattice.

    Returns:
        (3, P) or (3, 1) linear RGB reflectance.
    """
    if paint.pattern == "plain":
        return _planes(paint.albedo)
    s = paint.scale
    along = np.cos(paint.slant) * y + np.sin(paint.slant) * x
    if paint.pattern == "stripes":
        share = (along * s) % 1 < 0.4
    elif paint.pattern == "checker":
        # the offset keeps faces, which lie on round numbers, from flickering between two cells
        cells = [np.floor(a * s + 0.013).astype(np.int32) for a in (x, y, z)]
        share = (cells[0] + cells[1] + cells[2]) % 2 == 0
    elif paint.pattern == "dots":
        offsets = [(a * s + 0.5) % 1 - 0.5 for a in (x, y, z)]
        share = sum(o * o for o in offsets) < 0.1
    elif paint.pattern == "marble":
        wave = along * s + 1.5 * noise(table, x * 2 * s + 9, (y + z) * 2 * s)
        share = 0.5 + 0.5 * np.sin(2 * np.pi * wave)
    else:
        raise ValueError(f"expected plain, stripes, checker, dots or marble; got the pattern {paint.pattern!r}")
    return blend(paint.albedo, paint.second, share.astype(np.float32))


def ground_albedo(
    pattern: str, first, second, scale: float, x: np.ndarray, z: np.ndarray, table: np.ndarray
) -> np.ndarray:
    """Colour of the ground (or of a wall, with its own two coordinates).

    Args:
        pattern: one of GROUNDS.
        first, second: (3,) linear RGB of the two colours.
        scale: pattern periods per world unit.
        x, z: points on the plane, each (P,).
        table: noise lattice.

    Returns:
        (3, P) or (3, 1) linear RGB reflectance.
    """
    u, v = x * scale, z * scale
    if pattern == "plain":
        return _planes(first)
    if pattern == "checker":
        share = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    elif pattern == "tiles":
        joint = np.minimum(np.abs((u + 0.5) % 1 - 0.5), np.abs((v + 0.5) % 1 - 0.5))
        share = (joint < 0.035).astype(np.float32)
    elif pattern == "planks":
        row = np.floor(v)
        tone = table[row.astype(np.int32) % _NOISE_SIZE, 7]
        share = 0.6 * tone + 0.4 * noise(table, u * 0.8 + 11 * tone, v * 9)
        share = np.where((v - row < 0.03) | ((u * 0.25 + tone) % 1 < 0.006), 1.0, 0.8 * share)
    elif pattern == "mottled":
        share = 0.6 * noise(table, u, v) + 0.4 * noise(table, u * 2.3 + 5, v * 2.3)
    elif pattern == "grain":
        share = 0.5 * noise(table, u * 7, v * 7) + 0.5 * noise(table, u * 17 + 3, v * 17)
    else:
        raise ValueError(f"expected a ground among {', '.join(GROUNDS)}; got {pattern!r}")
    return blend(first, second, share.astype(np.float32))
