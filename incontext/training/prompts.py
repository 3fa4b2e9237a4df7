"""Prompts on the query itself, drawn from its labels as a user would give them: what the query's target shows.

A prompt is said in ids, uint8 (H, W): 1..K "this is it", 0 "not this", `UNSAID` elsewhere. Patches in which something
is said are shown to the model, the others stay hidden. Nothing here knows of colours or tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
    label,
)

UNSAID = 255
_LEAST_HIDDEN = 0.1  # share of the patches that a prompt must leave to be painted
_BALL = generate_binary_structure(2, 1)


def random_prompt(
    rng: np.random.Generator, labels: np.ndarray, ids: Sequence[int], patch: int, *, all_ids: bool
) -> np.ndarray:
    """Draws a prompt: points, a box, a scribble or an earlier mask of some things, and what is not meant.

    Args:
        rng: source of randomness.
        labels: uint8 (H, W) of the query: 0, 1..K, 255 ignored.
        ids: the things that may be pointed at; those that the query does not show are skipped.
        patch: side of a patch in pixels.
        all_ids: point at every one of them, as must be where no example shows them.

    Returns:
        What is said. It leaves a tenth of the patches hidden, or more.
    """
    seen = [id for id in ids if (labels == id).any()]
    if not all_ids and seen:
        seen = [int(id) for id in rng.choice(seen, rng.integers(1, len(seen) + 1), replace=False)]
    said = np.full(labels.shape, UNSAID, np.uint8)
    manners = rng.choice(4, 1 if rng.random() < 0.6 else 2, replace=False)  # in equal shares, and together
    if 3 in manners and seen:  # a mask says "not this" of all that it leaves out, so it shows everything
        shown = np.unique(labels[(labels != 0) & (labels != UNSAID)]).tolist()
        said = show_part(rng, earlier_mask(rng, labels, shown, patch), patch)
    if 2 in manners and seen:
        say_boxes(rng, said, labels, seen, patch)
    for id in seen:
        if 1 in manners:
            said[scribble(rng, labels == id, _width(rng, patch))] = id
        if 0 in manners or not (said == id).any():
            for _ in range(rng.integers(1, 4)):
                said[disk(labels.shape, interior_point(rng, labels == id), _width(rng, patch))] = id
    if rng.random() < 0.5:
        say_not(rng, said, labels, ids, patch)
    if hidden_share(said, patch) < _LEAST_HIDDEN:
        said = np.full(labels.shape, UNSAID, np.uint8)
        for id in seen:
            said[disk(labels.shape, interior_point(rng, labels == id), patch / 2)] = id
    return said


def correct(
    rng: np.random.Generator, labels: np.ndarray, painted: np.ndarray, said: np.ndarray, patch: int
) -> np.ndarray:
    """Goes on from what a model has painted: its mask may be shown to it, and some of its mistakes are pointed out.

    Args:
        rng: source of randomness.
        labels: uint8 (H, W) of the query: 0, 1..K, 255 ignored.
        painted: uint8 (H, W): 0, 1..K, the model's own answer to `said`.
        said: the prompt so far. It still stands.
        patch: side of a patch in pixels.

    Returns:
        What is said now.
    """
    now = show_part(rng, painted, patch) if rng.random() < 0.5 else np.full(labels.shape, UNSAID, np.uint8)
    now = np.where(said != UNSAID, said, now)
    wrong = (painted != labels) & (labels != UNSAID)
    for _ in range(rng.integers(1, 5)):
        if not wrong.any():
            break
        point = interior_point(rng, wrong)
        spot = disk(labels.shape, point, _width(rng, patch))
        now[spot] = labels[point]
        wrong &= ~spot
    return now if hidden_share(now, patch) >= _LEAST_HIDDEN else said


def hidden_share(said: np.ndarray, patch: int) -> float:
    """Returns the share of the patches in which nothing is said, 0..1."""
    height, width = said.shape
    blocks = (said == UNSAID).reshape(height // patch, patch, width // patch, patch)
    return float(blocks.all((1, 3)).mean())


def interior_point(rng: np.random.Generator, region: np.ndarray) -> tuple[int, int]:
    """Draws a point of a region (bool (H, W), not empty) that keeps half of the possible distance from its edge.

    The region's parts are equally likely, so that small ones are not forgotten. Returns (row, column).
    """
    parts, count = label(region)
    number = int(rng.integers(1, count + 1))
    box = find_objects(parts, number)[number - 1]
    depth = distance_transform_edt(np.pad(parts[box] == number, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    place = rng.integers(len(rows))
    return int(box[0].start + rows[place]), int(box[1].start + columns[place])


def disk(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """Returns a disk, bool (H, W), with its centre (row, column) always in it."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= max(radius, 0.5) ** 2


def scribble(rng: np.random.Generator, region: np.ndarray, radius: float) -> np.ndarray:
    """Draws a stroke that wanders inside a region and turns where it would leave it.

    Args:
        rng: source of randomness.
        region: bool (H, W), not empty.
        radius: half the stroke's width, in pixels; only its middle line stays inside for certain.

    Returns:
        bool (H, W).
    """
    row, column = map(float, interior_point(rng, region))
    heading = rng.uniform(0, 2 * np.pi)
    path = [(column, row)]
    length = rng.uniform(0.3, 1.2) * np.sqrt(region.sum())
    for _ in range(int(length) + 1):
        for turn in (0.3, 1.0, 2.5):
            angle = heading + rng.normal(0, turn)
            down, right = row + 1.5 * np.sin(angle), column + 1.5 * np.cos(angle)
            near = round(down), round(right)
            if 0 <= near[0] < region.shape[0] and 0 <= near[1] < region.shape[1] and region[near]:
                row, column, heading = down, right, angle
                path.append((column, row))
                break
    return _draw(region.shape, lambda pen: pen.line(path, 1, width=max(1, round(2 * radius)))) | disk(
        region.shape, path[0][::-1], radius
    )


def bounds(rng: np.random.Generator, region: np.ndarray, slack: float = 0.1) -> tuple[int, int, int, int]:
    """Returns the box around a region as a user would draw it: each side off by up to `slack` of the box's length.

    Returns:
        (top, left, bottom, right), the last two exclusive, within the image.
    """
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    height, width = region.shape
    edges = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    lengths = np.array([edges[2] - edges[0], edges[3] - edges[1]] * 2)
    top, left, bottom, right = np.round(edges + rng.uniform(-slack, slack, 4) * lengths).astype(int)
    top, left = max(0, min(top, height - 1)), max(0, min(left, width - 1))
    return top, left, min(height, max(bottom, top + 1)), min(width, max(right, left + 1))


def say_boxes(rng: np.random.Generator, said: np.ndarray, labels: np.ndarray, ids: Sequence[int], patch: int) -> None:
    """Draws boxes around things, into `said`: as outlines in their colours, or as black all around them.

    A box that was filled with colour would claim the background in it, and hide what is to be painted.
    """
    boxes = {id: bounds(rng, labels == id) for id in ids}
    if rng.random() < 0.5:
        outside = np.ones(labels.shape, bool)
        for top, left, bottom, right in boxes.values():
            outside[top:bottom, left:right] = False
        others = (labels != 0) & (labels != UNSAID) & ~np.isin(labels, ids)
        if not (outside & others).any():  # black over what examples ask for would be wrong
            said[outside] = 0
            return
    width = max(1, patch // 4)
    for id, (top, left, bottom, right) in boxes.items():
        edge = np.zeros(labels.shape, bool)
        edge[top:bottom, left:right] = True
        edge[top + width : bottom - width, left + width : right - width] = False
        said[edge] = id


def say_not(rng: np.random.Generator, said: np.ndarray, labels: np.ndarray, ids: Sequence[int], patch: int) -> None:
    """Marks up to three places as background, into `said`, most of them close to a thing."""
    background = labels == 0
    if not background.any():
        return
    near = background & binary_dilation(np.isin(labels, ids), _BALL, iterations=2 * patch)
    for _ in range(rng.integers(1, 4)):
        region = near if near.any() and rng.random() < 0.7 else background
        said[disk(labels.shape, interior_point(rng, region), _width(rng, patch))] = 0


def earlier_mask(rng: np.random.Generator, labels: np.ndarray, ids: Sequence[int], patch: int) -> np.ndarray:
    """Returns a mask as it might come from elsewhere: eroded, dilated, shifted, or a coarse polygon.

    Args:
        rng: source of randomness.
        labels: uint8 (H, W) of the query.
        ids: the things that it shows.
        patch: side of a patch, which scales how wrong it is.

    Returns:
        uint8 (H, W): 0 and those of the ids that are left.
    """
    mask = np.zeros(labels.shape, np.uint8)
    for id in ids:
        region = labels == id
        manner, reach = rng.integers(4), int(rng.integers(1, max(2, patch // 2) + 1))
        if manner == 0:
            region = binary_erosion(region, _BALL, iterations=reach)
        elif manner == 1:
            region = binary_dilation(region, _BALL, iterations=reach)
        elif manner == 2:
            region = shift(region, *rng.integers(-reach, reach + 1, 2))
        else:
            region = polygon(rng, region, corners=int(rng.integers(5, 13)))
        mask[region] = id
    return mask


def shift(region: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves a region, bool (H, W); what leaves the image is gone."""
    height, width = region.shape
    moved = np.zeros_like(region)
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = region[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return moved


def polygon(rng: np.random.Generator, region: np.ndarray, corners: int) -> np.ndarray:
    """Draws a coarse outline: corners at random angles around the middle of one part, at its farthest pixel there.

    Args:
        rng: source of randomness.
        region: bool (H, W), not empty.
        corners: at most so many.

    Returns:
        bool (H, W), the polygon filled.
    """
    parts, count = label(region)
    rows, columns = np.nonzero(parts == rng.integers(1, count + 1))
    down, right = rows - rows.mean(), columns - columns.mean()
    angle, reach = np.arctan2(down, right), np.hypot(down, right)
    sector = ((angle + np.pi + rng.uniform(0, 2 * np.pi)) / (2 * np.pi) * corners).astype(int) % corners
    tips = [np.flatnonzero(sector == k)[reach[sector == k].argmax()] for k in np.unique(sector)]
    path = sorted(tips, key=lambda tip: angle[tip])
    if len(path) < 3:
        return region
    return _draw(region.shape, lambda pen: pen.polygon([(columns[tip], rows[tip]) for tip in path], fill=1))


def show_part(rng: np.random.Generator, mask: np.ndarray, patch: int) -> np.ndarray:
    """Says a mask, but for patches that are to be painted anew: those along its edges, or random blocks.

    Args:
        rng: source of randomness.
        mask: uint8 (H, W): 0, 1..K.
        patch: side of a patch in pixels.

    Returns:
        What is said: all of a patch, or nothing of it.
    """
    h, w = (side // patch for side in mask.shape)
    if rng.random() < 0.5:
        hidden = random_hidden(rng, (h, w)).reshape(h, w)
    else:
        cells = mask.reshape(h, patch, w, patch)
        mixed = cells.max((1, 3)) != cells.min((1, 3))
        hidden = binary_dilation(mixed, generate_binary_structure(2, 2), iterations=int(rng.integers(1, 3)))
    return np.where(np.kron(hidden, np.ones((patch, patch), bool)), UNSAID, mask).astype(np.uint8)


def random_hidden(rng: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
    """Hides blocks of patches until a share of 0.5 to 0.95 is hidden (Painter, arXiv 2212.02499, hides blocks too).

    Returns:
        (h * w) bool.
    """
    h, w = grid
    hidden, wanted = np.zeros(grid, bool), rng.uniform(0.5, 0.95)
    while hidden.mean() < wanted:
        rows, columns = rng.integers(1, max(2, h // 2) + 1), rng.integers(1, max(2, w // 2) + 1)
        top, left = rng.integers(0, h - rows + 1), rng.integers(0, w - columns + 1)
        hidden[top : top + rows, left : left + columns] = True
    return hidden.ravel()


def _width(rng: np.random.Generator, patch: int) -> float:
    """Radius of a click or a stroke: its diameter is half a patch or more."""
    return patch * rng.uniform(0.25, 0.75)


def _draw(size: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    canvas = Image.new("L", size[::-1])
    draw(ImageDraw.Draw(canvas))
    return np.asarray(canvas) > 0
