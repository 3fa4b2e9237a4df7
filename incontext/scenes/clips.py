"""Moving pictures with exactly known truth: flat shapes that cross, hide behind pillars, leave and come back.

Shapes glide over a mottled ground; a shape of a higher id covers those of lower ones, and pillars cover all. They are
drawn with Pillow, since a clip has many frames and ten shapes in a frame of 192 x 192 take some 10 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from incontext.scenes.compose import COLOURS

EVENTS = ("crossing", "occlusion", "exit")
"""crossing: two objects pass over each other. occlusion: one is wholly hidden for a while. exit: one leaves the picture
and comes back."""

_FINE = 3  # pixels drawn per pixel of the picture, along either side
_TRIES = 200
_IN_SIGHT = 0.6  # least share of an object that is seen in the first frame
_MOST = 20


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered video.

    Attributes:
        frames: uint8 (T, H, W, 3).
        labels: int32 (T, H, W), the ids 1..N of what is seen.
        events: (event, its ids), in order.
    """

    frames: np.ndarray
    labels: np.ndarray
    events: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class _Shape:
    corners: np.ndarray  # (K, 2) x, y around its middle, in pixels
    fill: tuple[int, int, int]
    stripe: tuple[int, int, int]
    period: float  # of the stripes, in pixels
    path: np.ndarray  # (T, 2) x, y of its middle
    turn: np.ndarray  # (T,) radians


@dataclass(frozen=True)
class _Pillar:
    box: tuple[float, float, float, float]  # left, top, right, bottom
    fill: tuple[int, int, int]


def render_clip(
    rng: np.random.Generator,
    size: tuple[int, int] = (192, 192),
    frames: int = 32,
    objects: int = 4,
    events: Sequence[str] = EVENTS,
) -> Clip:
    """Draws a random clip.

    Args:
        rng: the only source of randomness: equal states give equal clips.
        size: (H, W), at least 32 x 32.
        frames: T, at least 8, so that events have room.
        objects: how many shapes, 1 to 20. Each is seen in the first frame, most of it at least.
        events: what happens, each to shapes of its own (a crossing takes two); the other shapes wander about. Events
            for which no shapes are left do not happen.

    Returns:
        The clip.

    Raises:
        ValueError: for a value outside of its range.
    """
    if not 1 <= objects <= _MOST:
        raise ValueError(f"objects: expected 1 to {_MOST}, got {objects}")
    if frames < 8 or min(size) < 32:
        raise ValueError(f"expected at least 8 frames of 32 x 32 pixels, got {frames} of {tuple(size)}")
    unknown = [event for event in events if event not in EVENTS]
    if unknown:
        raise ValueError(f"events: expected some of {', '.join(EVENTS)}; got {', '.join(unknown)}")
    cast = _cast(events, objects)
    ground = _ground(rng, size)
    for attempt in range(_TRIES):
        # Where there is no room, shapes become smaller bit by bit.
        radius = min(0.16, 0.3 / objects**0.5) * min(size) * 0.97 ** (attempt // 10)
        shapes, pillars = _stage(rng, size, frames, objects, cast, radius)
        if _in_sight(shapes, pillars, size):
            drawn = [_draw(ground, shapes, pillars, t) for t in range(frames)]
            return Clip(np.stack([image for image, _ in drawn]), np.stack([labels for _, labels in drawn]), cast)
    raise RuntimeError(f"no room for {objects} shapes at {size} in {_TRIES} tries")


def _cast(events: Sequence[str], objects: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Which ids take part in which event."""
    cast, free = [], 1
    for event in events:
        count = 2 if event == "crossing" else 1
        if free + count - 1 <= objects:
            cast.append((event, tuple(range(free, free + count))))
            free += count
    return tuple(cast)


def _stage(rng: np.random.Generator, size: tuple[int, int], frames: int, objects: int, cast, radius: float):
    """Random shapes of a radius on their ways, and the pillars that they pass."""
    height, width = size
    columns = int(np.ceil((objects * width / height) ** 0.5))
    rows = -(-objects // columns)
    cells = rng.permutation(rows * columns)[:objects]
    cell = np.array([width / columns, height / rows])
    jitter = np.maximum(cell / 2 - 1.1 * radius, 0)
    at = (np.stack([cells % columns, cells // columns], axis=1) + 0.5) * cell + rng.uniform(
        -1, 1, (objects, 2)
    ) * jitter
    time = np.linspace(0, 1, frames)
    paths = [_wander(rng, place, size, radius, time) for place in at]
    pillars = []
    for event, ids in cast:
        first = ids[0] - 1
        if event == "crossing":
            second = ids[1] - 1
            paths[first], paths[second] = _swap(at[first], at[second], time)
        elif event == "exit":
            paths[first] = _leave(at[first], size, radius, time)
        else:
            paths[first], pillar = _hide(rng, at[first], size, radius, time)
            pillars.append(pillar)
    return [_shape(rng, radius, path, time) for path in paths], pillars


def _wander(rng: np.random.Generator, start: np.ndarray, size: tuple[int, int], radius: float, time: np.ndarray):
    """(T, 2): a smooth round about the start that stays inside."""
    phase, turns = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.4, 1.1, 2)
    swing = np.sin(2 * np.pi * turns * time[:, None] + phase) - np.sin(phase)
    path = start + rng.uniform(0.6, 1.6) * radius * swing
    return np.clip(path, radius, np.array(size[::-1]) - radius)


def _swap(a: np.ndarray, b: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two ways, each (T, 2): each ends where the other starts, so that they meet half-way."""
    share = _ease(time)[:, None]
    return a + (b - a) * share, b + (a - b) * share


def _leave(start: np.ndarray, size: tuple[int, int], radius: float, time: np.ndarray) -> np.ndarray:
    """(T, 2): out over the nearest border, wholly out of sight in the middle third, and back."""
    height, width = size
    x, y = start
    gone = 1.6 * radius
    exits = [(x, (-gone, y)), (width - x, (width + gone, y)), (y, (x, -gone)), (height - y, (x, height + gone))]
    target = np.array(min(exits)[1])
    share = np.interp(time, [0, 0.33, 0.66, 1], [0, 1, 1, 0])
    return start + (target - start) * _ease(share)[:, None]


def _hide(rng: np.random.Generator, start: np.ndarray, size: tuple[int, int], radius: float, time: np.ndarray):
    """(T, 2) behind a pillar, where the shape rests a while, and out on its other side; and the pillar."""
    inwards = 1.0 if start[0] < size[1] / 2 else -1.0
    middle = start[0] + inwards * 2.6 * radius
    end = float(np.clip(middle + inwards * 2.6 * radius, radius, size[1] - radius))
    x = np.interp(time, [0, 0.35, 0.6, 1], [start[0], middle, middle, end])
    half, tall = 1.3 * radius, 1.5 * radius
    box = (middle - half, start[1] - tall, middle + half, start[1] + tall)
    return np.stack([x, np.full_like(x, start[1])], axis=1), _Pillar(box, _tint(rng))


def _shape(rng: np.random.Generator, radius: float, path: np.ndarray, time: np.ndarray) -> _Shape:
    corners = int(rng.choice([3, 4, 5, 6, 40]))  # 40 look round
    angle = 2 * np.pi * np.arange(corners) / corners
    reach = radius * np.where(np.arange(corners) % 2, rng.uniform(0.7, 1.0), 1.0) if corners < 40 else radius
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.reshape(reach, (-1, 1)) * stretch
    base = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))]) * rng.uniform(0.8, 1.0)
    second = base * 0.6 if base.mean() > 0.4 else base + (1 - base) * 0.5
    striped = rng.random() < 0.5
    return _Shape(
        corners=points,
        fill=_bytes(base),
        stripe=_bytes(second if striped else base),
        period=float(rng.uniform(0.4, 0.8) * radius),
        path=path,
        turn=rng.uniform(0, 2 * np.pi) + rng.uniform(-1.5, 1.5) * time,
    )


def _in_sight(shapes: Sequence[_Shape], pillars: Sequence[_Pillar], size: tuple[int, int]) -> bool:
    """Whether most of every shape is seen in the first frame."""
    areas = [np.count_nonzero(_stencil(shape, 0, size, 1)) for shape in shapes]
    seen = np.bincount(_labels(shapes, pillars, size, 0).ravel(), minlength=len(shapes) + 1)[1:]
    return all(count >= _IN_SIGHT * max(area, 1) for count, area in zip(seen, areas, strict=True))


def _labels(shapes: Sequence[_Shape], pillars: Sequence[_Pillar], size: tuple[int, int], t: int, fine: int = 1):
    """What covers what: int32 (H * fine, W * fine)."""
    canvas = Image.new("L", (size[1] * fine, size[0] * fine))
    draw = ImageDraw.Draw(canvas)
    for id, shape in enumerate(shapes, start=1):
        draw.polygon(_outline(shape, t, fine), fill=id)
    for pillar in pillars:
        draw.rectangle([fine * v for v in pillar.box], fill=0)
    return np.asarray(canvas).astype(np.int32)


def _stencil(shape: _Shape, t: int, size: tuple[int, int], fine: int) -> np.ndarray:
    canvas = Image.new("1", (size[1] * fine, size[0] * fine))
    ImageDraw.Draw(canvas).polygon(_outline(shape, t, fine), fill=1)
    return np.asarray(canvas)


def _outline(shape: _Shape, t: int, fine: int) -> list[tuple[float, float]]:
    return [tuple(point) for point in (_rotated(shape.corners, shape.turn[t]) + shape.path[t]) * fine]


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _draw(ground: np.ndarray, shapes: Sequence[_Shape], pillars: Sequence[_Pillar], t: int):
    """One frame, uint8 (H, W, 3), and its labels, int32 (H, W)."""
    size = ground.shape[:2]
    picture = Image.fromarray(ground).resize((size[1] * _FINE, size[0] * _FINE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for shape in shapes:
        draw.polygon(_outline(shape, t, _FINE), fill=shape.fill)
        if shape.stripe != shape.fill:
            for stripe in _stripes(shape, t):
                draw.polygon(stripe, fill=shape.stripe)
    for pillar in pillars:
        draw.rectangle([_FINE * v for v in pillar.box], fill=pillar.fill)
    image = np.asarray(picture.reduce(_FINE))
    # The label of a pixel is what its middle shows.
    labels = _labels(shapes, pillars, size, t, _FINE)[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]
    return image, labels


def _stripes(shape: _Shape, t: int) -> list[list[tuple[float, float]]]:
    """Bands across the shape, in its own frame: each clipped to the (convex or nearly convex) outline."""
    reach = float(np.abs(shape.corners).max())
    bands = []
    for low in np.arange(-reach, reach, 2 * shape.period):
        inside = _between(shape.corners, low, low + shape.period)
        if len(inside) > 2:
            points = (_rotated(np.array(inside), shape.turn[t]) + shape.path[t]) * _FINE
            bands.append([tuple(point) for point in points])
    return bands


def _between(corners: np.ndarray, low: float, high: float) -> list[tuple[float, float]]:
    """The part of a polygon with x in low..high (Sutherland and Hodgman, 1974)."""
    points = [tuple(corner) for corner in corners]
    for limit, sign in ((low, 1.0), (high, -1.0)):
        kept: list[tuple[float, float]] = []
        for a, b in zip(points, [*points[1:], *points[:1]], strict=True):
            inside_a, inside_b = sign * (a[0] - limit) >= 0, sign * (b[0] - limit) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                share = (limit - a[0]) / (b[0] - a[0])
                kept.append((limit, a[1] + share * (b[1] - a[1])))
        points = kept
    return points


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Mottled in two scales of one tint: uint8 (H, W, 3)."""
    tint = np.array(_tint(rng), np.float32)
    mottle = np.zeros(size, np.float32)
    for cells, strength in ((5, 26.0), (24, 12.0)):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        mottle += strength * (np.asarray(noise.resize((size[1], size[0]), Image.Resampling.BICUBIC)) - 0.5)
    return np.clip(tint + mottle[..., None], 0, 255).astype(np.uint8)


def _tint(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that is nearly grey, so that shapes stand out."""
    return _bytes(rng.uniform(0.35, 0.75) + rng.uniform(-0.08, 0.08, 3))


def _bytes(colour: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(255 * colour, 0, 255).round())


def _ease(share: np.ndarray) -> np.ndarray:
    """0..1 -> 0..1, slow at either end."""
    return share * share * (3 - 2 * share)
