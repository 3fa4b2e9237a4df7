"""Random scenes: which solids, where, how painted, under what light, all from one numpy Generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from incontext.scenes.render import Backdrop, Scene, Stage, render
from incontext.scenes.solids import KINDS, Paint, Solid
from incontext.scenes.surface import GROUNDS, linear, noise_table

# Display values 0..1; each scene shifts them a little. Their order fixes the ids of the task "colours".
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.97, 0.84, 0.18),
    "green": (0.14, 0.62, 0.24),
    "cyan": (0.16, 0.72, 0.76),
    "blue": (0.12, 0.30, 0.86),
    "purple": (0.50, 0.20, 0.74),
    "white": (0.93, 0.92, 0.90),
}
PATTERNS = ("stripes", "checker", "dots", "marble")

_REACH = 3.4  # solids stand within this radius of the middle
_LAYOUTS = 20
_GAP = 0.12  # least distance between two footprints


@dataclass(frozen=True)
class Wish:
    """A solid that a scene must hold; what is None is random. Radii are in world units, 0.45..1.1."""

    kind: str | None = None
    colour: str | None = None
    radius: float | None = None


def compose(
    generator: np.random.Generator,
    size: tuple[int, int] = (192, 192),
    wishes: tuple[Wish, ...] = (),
    count: tuple[int, int] = (4, 9),
    forbidden: tuple[tuple[str, str, float], ...] = (),
) -> Scene:
    """Draw a random scene.

    Args:
        generator: the only source of randomness.
        size: (H, W).
        wishes: solids that must be there.
        count: least and largest number of solids in all, wished ones among them.
        forbidden: (kind, colour, radius): no unwished solid of that kind and colour exceeds the radius.

    Returns:
        The rendered scene.
    """
    total = max(int(generator.integers(count[0], count[1] + 1)), len(wishes))
    for _ in range(_LAYOUTS):
        solids = _layout(generator, wishes, total, forbidden)
        if solids is not None:
            return render(solids, _stage(generator, solids), size)
    raise ValueError(f"no room for {len(wishes)} wished solids in {_LAYOUTS} tries; wish for fewer or smaller ones")


def _layout(generator: np.random.Generator, wishes, total: int, forbidden) -> list[Solid] | None:
    """Solids on their places, or None where a wished one found no room."""
    solids: list[Solid] = []
    for i in range(total):
        wish = wishes[i] if i < len(wishes) else Wish()
        solid = _solid(generator, wish)
        wished = i < len(wishes)
        if not wished and any((solid.kind, solid.colour) == f[:2] and solid.radius > f[2] for f in forbidden):
            continue
        place = _place(generator, solid, solids)
        if place is not None:
            solids.append(replace(solid, x=place[0], z=place[1]))
        elif wished:
            return None
    return solids


def _solid(generator: np.random.Generator, wish: Wish) -> Solid:
    kind = wish.kind or str(generator.choice(KINDS, p=(0.28, 0.28, 0.2, 0.12, 0.12)))
    colour = wish.colour or str(generator.choice(list(COLOURS)))
    radius = wish.radius or float(generator.uniform(0.42, 1.05))
    if kind in ("cube", "pyramid") and wish.radius is None:
        radius *= 0.85  # its footprint is wider than its radius says
    heights = {
        "sphere": (2, 2),
        "cube": (1.9, 2.1),
        "cylinder": (1.2, 2.8),
        "cone": (1.6, 2.6),
        "pyramid": (1.5, 2.2),
    }
    return Solid(
        kind=kind,
        colour=colour,
        x=0.0,
        z=0.0,
        radius=radius,
        height=radius * float(generator.uniform(*heights[kind])),
        angle=float(generator.uniform(0, np.pi / 2)),
        paint=_paint(generator, COLOURS[colour]),
    )


def _paint(generator: np.random.Generator, base: tuple[float, float, float]) -> Paint:
    shown = np.clip(np.array(base) * generator.uniform(0.85, 1.05) + generator.normal(0, 0.02, 3), 0.02, 0.98)
    pattern = str(generator.choice(PATTERNS)) if generator.random() < 0.3 else "plain"
    # the pattern's second colour is a paler or darker shade, so that the solid keeps its named colour
    paler = generator.random() < 0.5 and float(np.mean(base)) < 0.8
    second = shown + (1 - shown) * 0.6 if paler else shown * 0.55
    return Paint(
        albedo=tuple(linear(shown).tolist()),
        pattern=pattern,
        second=tuple(linear(second).tolist()),
        scale=float(generator.uniform(1.3, 3.2)),
        slant=float(generator.uniform(0, np.pi)),
        gloss=float(generator.choice([0.0, 0.25, 0.7])),
    )


def _place(generator: np.random.Generator, solid: Solid, others: list[Solid]) -> tuple[float, float] | None:
    for _ in range(60):
        angle, reach = generator.uniform(0, 2 * np.pi), _REACH * generator.random() ** 0.5
        x, z = float(reach * np.cos(angle)), float(reach * np.sin(angle))
        if all(np.hypot(x - o.x, z - o.z) > solid.footprint + o.footprint + _GAP for o in others):
            return x, z
    return None


def _backdrop(generator: np.random.Generator, plain: float) -> Backdrop:
    tint = generator.uniform(0, 1, 3)
    value, strength = generator.uniform(0.5, 1.0), generator.uniform(0.05, 0.35)
    first = value * (1 - strength + strength * tint)
    second = np.clip(first * generator.uniform(0.62, 0.88) + generator.normal(0, 0.03, 3), 0.03, 0.97)
    pattern = "plain" if generator.random() < plain else str(generator.choice(GROUNDS[1:]))
    scale = {"checker": 0.8, "planks": 0.9, "tiles": 0.7, "mottled": 0.8, "grain": 1.0}.get(pattern, 1.0)
    return Backdrop(
        pattern=pattern,
        first=tuple(linear(first).tolist()),
        second=tuple(linear(second).tolist()),
        scale=scale * float(generator.uniform(0.7, 1.4)),
        angle=float(generator.uniform(-0.8, 0.8)),
    )


def _stage(generator: np.random.Generator, solids: list[Solid]) -> Stage:
    azimuth = float(generator.uniform(-0.5, 0.5))
    # light from the upper left or right, never straight behind the camera: shadows stay in sight
    side = azimuth + generator.choice([-1.0, 1.0]) * generator.uniform(0.6, 2.1)
    height = generator.uniform(0.65, 1.1)
    light = np.array([np.sin(side) * np.cos(height), np.sin(height), -np.cos(side) * np.cos(height)])
    back = max([np.sin(azimuth) * s.x + np.cos(azimuth) * s.z + s.footprint for s in solids], default=0.0)
    wall = _backdrop(generator, plain=0.7)
    ground = _backdrop(generator, plain=0.35)
    sweep = generator.random() < 0.4
    return Stage(
        azimuth=azimuth,
        elevation=float(generator.uniform(0.36, 0.8)),
        zoom=float(generator.uniform(0.92, 1.08)),
        light=light.astype(np.float32),
        spread=float(generator.uniform(0.02, 0.1)),
        ambient=float(generator.uniform(0.26, 0.4)),
        ground=ground,
        wall=Backdrop(wall.pattern if not sweep else "plain", wall.first, wall.second, wall.scale * 0.6, 0.0),
        wall_z=float(back + generator.uniform(2.5, 5)),
        haze=1.0 if sweep else float(generator.uniform(0, 0.4)),
        noise=noise_table(generator),
    )
