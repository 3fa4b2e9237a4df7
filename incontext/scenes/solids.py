"""Simple solids that stand on a ground plane: where a ray meets them, and the outline of their shadow.

World axes: x to the right, y up, z away from the viewer; the ground is y = 0. A solid's own frame has
its origin on the ground under its middle and is turned by `angle` about y. Rays are three arrays per
vector rather than one (P, 3) array: at a few thousand rays numpy is about twice as fast that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

KINDS = ("sphere", "cube", "cylinder", "cone", "pyramid")

SIDE = 1  # face id of walls and of everything that is curved
TOP = 2  # face id of a flat top

_ROUND_STEPS = 16  # corners of a circle's outline in a shadow
_NEAR = 1e-4  # a ray that starts on a surface must not meet that surface again

Vector = Sequence[np.ndarray | float]  # x, y, z: arrays (P,) or plain numbers, mixed freely


@dataclass(frozen=True)
class Paint:
    """What a surface looks like.

    Attributes:
        albedo: linear RGB reflectance, 0..1.
        pattern: "plain", "stripes", "checker", "dots" or "marble".
        second: linear RGB of the pattern's other colour.
        scale: pattern periods per world unit.
        slant: direction of stripes and marble, radians.
        gloss: strength of the highlight, 0..1.
    """

    albedo: tuple[float, float, float]
    pattern: str = "plain"
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 2.0
    slant: float = 0.0
    gloss: float = 0.3


@dataclass(frozen=True)
class Solid:
    """One object of a scene.

    Attributes:
        kind: one of KINDS.
        colour: name of its colour, a key of `compose.COLOURS`.
        x, z: where it stands on the ground.
        radius: half of its width, in world units.
        height: from the ground to its top (2 * radius for a sphere).
        angle: turn about the vertical axis, radians.
        paint: its surface.
    """

    kind: str
    colour: str
    x: float
    z: float
    radius: float
    height: float
    angle: float
    paint: Paint

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a kind of solid among {', '.join(KINDS)}; got {self.kind!r}")

    @cached_property
    def footprint(self) -> float:
        """Radius of the smallest circle on the ground that holds the solid."""
        return self.radius * (2**0.5 if self.kind in ("cube", "pyramid") else 1.0)

    @cached_property
    def centre(self) -> np.ndarray:
        """(3,) middle of the bounding sphere."""
        return np.array([self.x, self.height / 2, self.z], np.float32)

    @cached_property
    def bound(self) -> float:
        """Radius of the bounding sphere around `centre`."""
        return self.radius if self.kind == "sphere" else float(np.hypot(self.footprint, self.height / 2))

    def into(self, v: Vector, *, direction: bool) -> Vector:
        """World vector(s) in the solid's own frame; a `direction` is turned, a point is moved too."""
        x, y, z = v
        if not direction:
            x, z = x - self.x, z - self.z
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return cos * x + sin * z, y, cos * z - sin * x

    def out_of(self, v: Vector) -> Vector:
        """Directions of the solid's own frame in the world's; undoes `into(direction=True)`."""
        x, y, z = v
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return cos * x - sin * z, y, cos * z + sin * x

    def meet(self, origin: Vector, ray: Vector) -> tuple[np.ndarray, Vector, np.ndarray]:
        """First meeting of each ray with the solid.

        Args:
            origin: where the rays start, world x, y, z (each a number or (P,)).
            ray: unit directions, each (P,).

        Returns:
            Distance (P,), inf where the ray misses; outward unit normals, world x, y, z; face ids (P,).
            Normals and faces mean nothing where the ray misses.
        """
        origin, ray = self.into(origin, direction=False), self.into(ray, direction=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "sphere":
                t, normal, face = _meet_sphere(self.radius, origin, ray)
            elif self.kind in ("cylinder", "cone"):
                top = self.radius if self.kind == "cylinder" else 0.0
                t, normal, face = _meet_frustum(self.radius, top, self.height, origin, ray)
            else:
                t, normal, face = _meet_convex(*self._planes, origin, ray)
        return t, self.out_of(normal), face

    @cached_property
    def _planes(self) -> tuple[np.ndarray, np.ndarray]:
        """Outward unit normals (K, 3) and offsets (K,) of the flat faces but the base, which no ray sees."""
        r, h = self.radius, self.height
        if self.kind == "cube":
            normals = np.array([[1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1], [0, 1, 0]], float)
            return normals, np.array([r, r, r, r, h])
        lean = np.hypot(h, r)
        a, b = h / lean, r / lean
        return np.array([[a, b, 0], [-a, b, 0], [0, b, a], [0, b, -a]]), np.full(4, a * r)

    def outline(self, light: np.ndarray) -> np.ndarray:
        """Points whose shadows span the solid's shadow on the ground.

        Args:
            light: (3,) unit vector towards the light.

        Returns:
            (M, 3) world points; the convex hull of their projections is the shadow.
        """
        turn = np.linspace(0, 2 * np.pi, _ROUND_STEPS, endpoint=False)
        r, h = self.radius, self.height
        if self.kind == "sphere":  # the great circle that faces the light
            u = np.cross(light, [0.0, 1.0, 0.0])
            u = u / np.linalg.norm(u) if np.linalg.norm(u) > 1e-6 else np.array([1.0, 0.0, 0.0])
            w = np.cross(light, u)
            return self.centre + r * (np.cos(turn)[:, None] * u + np.sin(turn)[:, None] * w)
        if self.kind in ("cylinder", "cone"):
            base = np.stack([r * np.cos(turn), 0 * turn, r * np.sin(turn)], axis=1)
        else:
            base = np.array([[r, 0, r], [r, 0, -r], [-r, 0, -r], [-r, 0, r]])
        top = base + [0, h, 0] if self.kind in ("cylinder", "cube") else np.array([[0, h, 0]])
        x, y, z = self.out_of(np.concatenate([base, top]).T)
        return np.stack([x + self.x, y, z + self.z], axis=1)


def hull(points: np.ndarray) -> list[tuple[float, float]]:
    """Corners of the convex hull of (M, 2) points, in order (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(sequence) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for p in sequence:
            while len(corners) > 1:
                (ax, ay), (bx, by) = corners[-2:]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                corners.pop()
            corners.append(p)
        return corners[:-1]

    return chain(ordered) + chain(reversed(ordered))


def _meet_sphere(r: float, o: Vector, d: Vector) -> tuple[np.ndarray, Vector, np.ndarray]:
    ox, oy, oz = o[0], o[1] - r, o[2]
    b = ox * d[0] + oy * d[1] + oz * d[2]
    disc = b * b - (ox * ox + oy * oy + oz * oz - r * r)
    t = -b - np.sqrt(np.maximum(disc, 0))
    t = np.where((disc > 0) & (t > _NEAR), t, np.inf)
    near = np.where(np.isfinite(t), t, 0)
    normal = tuple((a + near * c) / r for a, c in zip((ox, oy, oz), d, strict=True))
    return t, normal, np.full(t.shape, SIDE, np.uint8)


def _meet_frustum(base: float, top: float, h: float, o: Vector, d: Vector) -> tuple[np.ndarray, Vector, np.ndarray]:
    """An upright cone cut off at height `h`: radius `base` on the ground, `top` above (equal: a cylinder)."""
    k = (top - base) / h
    at = base + k * o[1]
    a = d[0] ** 2 + d[2] ** 2 - (k * d[1]) ** 2
    b = o[0] * d[0] + o[2] * d[2] - k * d[1] * at
    c = o[0] ** 2 + o[2] ** 2 - at**2
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    t = np.full(np.shape(disc), np.inf, np.float32)
    for sign in (-1, 1):
        hit = (-b + sign * root) / a
        y = o[1] + hit * d[1]
        t = np.where((disc > 0) & (hit > _NEAR) & (y >= 0) & (y <= h) & (hit < t), hit, t)
    near = np.where(np.isfinite(t), t, 0)
    lean = (1 + k * k) ** 0.5
    nx, nz = o[0] + near * d[0], o[2] + near * d[2]
    wide = np.maximum(np.sqrt(nx * nx + nz * nz), 1e-6) * lean
    nx, nz = nx / wide, nz / wide
    ny = np.full(t.shape, -k / lean, np.float32)
    face = np.full(t.shape, SIDE, np.uint8)
    if top > 0:
        cap = (h - o[1]) / d[1]
        x, z = o[0] + cap * d[0], o[2] + cap * d[2]
        capped = (x * x + z * z <= top * top) & (cap > _NEAR) & (cap < t)
        t = np.where(capped, cap, t)
        nx, ny, nz = np.where(capped, 0, nx), np.where(capped, 1, ny), np.where(capped, 0, nz)
        face[capped] = TOP
    return t, (nx, ny, nz), face


def _meet_convex(
    normals: np.ndarray, offsets: np.ndarray, o: Vector, d: Vector
) -> tuple[np.ndarray, Vector, np.ndarray]:
    enter = np.full(np.shape(d[0]), -np.inf, np.float32)
    leave = np.full(np.shape(d[0]), np.inf, np.float32)
    index = np.zeros(np.shape(d[0]), np.intp)
    for i, (n, c) in enumerate(zip(normals.tolist(), offsets.tolist(), strict=True)):
        towards = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
        room = c - (n[0] * o[0] + n[1] * o[1] + n[2] * o[2])
        t = room / towards
        inward = towards < 0
        later = inward & (t > enter)
        enter, index = np.where(later, t, enter), np.where(later, i, index)
        leave = np.where(~inward & (t < leave), t, leave)
        enter = np.where((towards == 0) & (room < 0), np.inf, enter)
    t = np.where((enter <= leave) & (enter > _NEAR), enter, np.inf)
    with np.errstate(over="ignore"):  # misses may be infinitely high; only hits count
        above = o[1] + np.where(np.isfinite(t), t, 0) * d[1]
    t = np.where(above >= -_NEAR, t, np.inf)
    n = normals.astype(np.float32)
    flat_top = n[:, 1] > 0.999
    return t, (n[index, 0], n[index, 1], n[index, 2]), np.where(flat_top[index], TOP, SIDE).astype(np.uint8)
