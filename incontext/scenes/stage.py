"""Where the solids stand: light, ground, wall, and the camera that looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from incontext.scenes.solids import Solid


@dataclass(frozen=True)
class Backdrop:
    """Look of the ground or the wall: `ground_albedo`'s arguments, and the turn of the pattern in radians."""

    pattern: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    scale: float
    angle: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Everything of a scene but its solids.

    Attributes:
        azimuth, elevation: of the camera around the solids, radians; elevation 0 looks along the ground.
        zoom: 1 just holds all solids, more is nearer.
        light: (3,) unit vector towards the light.
        spread: half-width of the light, radians; wider is softer.
        ambient: share of light that comes from everywhere, 0..1.
        ground, wall: their looks.
        wall_z: where the wall stands, on the z axis turned with the camera.
        haze: 0..1, how far the ground melts into the wall's colour (1: a seamless studio sweep).
        noise: (64, 64) lattice for textures.
    """

    azimuth: float
    elevation: float
    zoom: float
    light: np.ndarray
    spread: float
    ambient: float
    ground: Backdrop
    wall: Backdrop
    wall_z: float
    haze: float
    noise: np.ndarray


@dataclass(frozen=True, eq=False)
class Camera:
    eye: np.ndarray  # (3,)
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    focal: float  # in pixels
    middle: tuple[float, float]  # row, column of the optical axis

    @classmethod
    def around(cls, solids: Sequence[Solid], stage: Stage, size: tuple[int, int]) -> Camera:
        """A camera 14 units away that holds all solids, with room at the rim."""
        a, e = stage.azimuth, stage.elevation
        forward = np.array([np.sin(a) * np.cos(e), -np.sin(e), np.cos(a) * np.cos(e)])
        right = np.array([np.cos(a), 0.0, -np.sin(a)])
        up = np.cross(forward, right)
        centres = np.array([s.centre for s in solids], float).reshape(-1, 3)
        bounds = np.array([s.bound for s in solids])
        target = centres.mean(axis=0) if len(centres) else np.array([0.0, 0.5, 0.0])
        eye = target - 14 * forward
        if not len(centres):
            return cls(eye, right, up, forward, min(size) * 2.0, ((size[0] - 1) / 2, (size[1] - 1) / 2))
        depth = (centres - eye) @ forward
        across, along = ((centres - eye) @ axis / depth for axis in (right, up))
        rim = bounds / depth
        left, rightmost = (across - rim).min(), (across + rim).max()
        low, high = (along - rim).min(), (along + rim).max()
        focal = stage.zoom * 0.9 * min(size[1] / (rightmost - left), size[0] / (high - low))
        row = (size[0] - 1) / 2 + focal * (low + high) / 2
        column = (size[1] - 1) / 2 - focal * (left + rightmost) / 2
        return cls(eye, right, up, forward, float(focal), (float(row), float(column)))

    def rays(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit directions x, y, z, each (P,), through pixel positions (P,)."""
        u = (columns - self.middle[1]) / self.focal
        v = (self.middle[0] - rows) / self.focal
        norm = 1 / np.sqrt(u * u + v * v + 1)
        u, v = u * norm, v * norm
        return tuple(
            u * float(r) + v * float(p) + norm * float(f)
            for r, p, f in zip(self.right, self.up, self.forward, strict=True)
        )
