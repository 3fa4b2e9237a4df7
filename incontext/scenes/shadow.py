"""Soft shadows on the ground, drawn from above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from incontext.scenes.solids import Solid, hull
from incontext.scenes.stage import Stage


class ShadowMap:
    """What reaches the ground.

    The outlines of the solids are projected from several points of the light, so that shadows are sharp at a
    solid's foot and softer away from it. `sun` is the share of the light that arrives; `contact` darkens the
    surroundings of each footprint, where the solid hides part of the sky.

    Args:
        solids: what casts the shadows.
        stage: its light is used.
        detail: pixels along the picture's shorter side; the map grows with it.
    """

    def __init__(self, solids: Sequence[Solid], stage: Stage, detail: int) -> None:
        light = np.asarray(stage.light, float)
        u = np.cross(light, [0.0, 1.0, 0.0])
        u = u / max(np.linalg.norm(u), 1e-6)
        w = np.cross(light, u)
        turn = np.linspace(0, 2 * np.pi, 5, endpoint=False)
        lights = [light] + [light + np.tan(stage.spread) * (np.cos(t) * u + np.sin(t) * w) for t in turn]

        outlines = [s.outline(light) for s in solids]
        shadows = [[p[:, [0, 2]] - p[:, 1:2] * (d[[0, 2]] / d[1]) for p in outlines] for d in lights]
        everything = np.concatenate([np.zeros((1, 2))] + [p for group in shadows for p in group])
        self.low = everything.min(axis=0) - 1.5
        span = float((everything.max(axis=0) + 1.5 - self.low).max())
        self.side = int(np.clip(detail * 1.6, 96, 1024))
        self.scale = self.side / span

        total = np.zeros((self.side, self.side), np.float32)
        for group in shadows:
            total += np.asarray(self._fill([hull(p) for p in group]), np.float32)
        soft = Image.fromarray((total / len(lights)).astype(np.uint8)).filter(
            ImageFilter.BoxBlur(max(0.6, 0.004 * self.side))
        )
        self.sun = 1 - np.asarray(soft, np.float32).ravel() / 255
        low = [p[p[:, 1] < s.height / 2][:, [0, 2]] for p, s in zip(outlines, solids, strict=True)]
        blur = ImageFilter.BoxBlur(0.22 * self.scale)
        contact = self._fill([hull(p) for p in low]).filter(blur).filter(blur)
        self.contact = 1 - 0.75 * np.asarray(contact, np.float32).ravel() / 255

    def _fill(self, polygons: list[list[tuple[float, float]]]) -> Image.Image:
        canvas = Image.new("L", (self.side, self.side))
        draw = ImageDraw.Draw(canvas)
        for corners in polygons:
            if len(corners) > 2:
                draw.polygon([tuple((corner - self.low) * self.scale) for corner in np.array(corners)], 255)
        return canvas

    def at(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`sun` and `contact`, each (P,) in 0..1, at ground points (P,): bilinear, 1 outside the map."""
        u = np.clip((x - float(self.low[0])) * self.scale - 0.5, 0, self.side - 1.001)
        v = np.clip((z - float(self.low[1])) * self.scale - 0.5, 0, self.side - 1.001)
        column, row = u.astype(np.int32), v.astype(np.int32)
        fu, fv = u - column, v - row
        i = row * self.side + column
        weights = ((i, (1 - fu) * (1 - fv)), (i + 1, fu * (1 - fv)), (i + self.side, (1 - fu) * fv))
        last = i + self.side + 1, fu * fv
        sun, contact = (sum(m[k] * f for k, f in (*weights, last)) for m in (self.sun, self.contact))
        return sun.astype(np.float32), contact.astype(np.float32)
