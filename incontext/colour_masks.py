"""Masks that are coded in colours: which colours mean something, and which are only their edges.

A picture of a mask rarely holds just its classes. Drawing programs blend edges, resizing blurs them, and JPEG
spreads noise around them. A colour counts as real where it fills an area, or where it is no blend of what
lies on both sides of it. All other pixels take the nearest real colour among those around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from incontext.palette import MAX_IDS, voc_colours
from incontext.shades import (
    NEAR,
    SAME,
    histogram,
    in_plain_area,
    is_blend,
    is_noisy_binary,
    pack,
    squared_distances,
)
from incontext.types import IGNORE

Rgb = tuple[int, int, int]

_CALM = 16
"""The tolerance, per channel, at which a noisy area still counts as plain."""


class ColourError(ValueError):
    """A mask's colours cannot be told apart, or don't fit a table. The message doesn't name the mask."""


@dataclass(frozen=True, eq=False)
class ColourCode:
    """The real colours of one mask.

    Attributes:
        colours: uint8 (K, 3).
        soft: whether the mask has blended or noisy edges; else every pixel has exactly one of the colours.
    """

    colours: np.ndarray
    soft: bool


def read_colours(image: np.ndarray, lossy: bool = False) -> ColourCode:
    """Finds the real colours of a colour-coded mask.

    Args:
        image: uint8 (H, W, 3).
        lossy: the mask comes from a lossy file (JPEG), so no colour is exact.

    Raises:
        ColourError: it looks like a photograph, or its colours are lost.
    """
    survey = _survey(image)
    if not lossy and not survey.soft:
        return ColourCode(survey.shades[np.argsort(-survey.counts, kind="stable")], soft=False)
    return ColourCode(_soft_colours(image, survey), soft=True)


def read_levels(grey: np.ndarray, lossy: bool = False) -> ColourCode | None:
    """The real levels of a grey mask with blended or noisy edges; None where every value is real.

    Ids may touch in any order and thinly, so values are taken as they are unless the evidence is strong.

    Args:
        grey: uint8 (H, W).
        lossy: see `read_colours`.

    Raises:
        ColourError: see `read_colours`.
    """
    if not lossy and len(np.unique(grey)) <= 2:
        return None
    image = np.repeat(grey[..., None], 3, axis=2)
    survey = _survey(image)
    rare = survey.blends > 0.8 * survey.counts
    faded = rare.sum() >= 8 and rare.sum() >= 0.6 * len(rare)
    if not lossy and not faded and not is_noisy_binary(grey):
        return None
    return ColourCode(_soft_colours(image, survey), soft=True)


def paint_slots(image: np.ndarray, code: ColourCode) -> np.ndarray:
    """Every pixel's real colour: an index into `code.colours`, intp (H, W)."""
    shades, slots, _ = histogram(image)
    distances = squared_distances(shades, code.colours)
    nearest = distances.argmin(axis=1)
    if not code.soft or len(code.colours) == 1:
        return nearest[slots]
    # A shade close to a real colour is that colour. Others are blends: between red and blue lies a purple
    # that must not become the purple class from elsewhere, so only colours around the pixel count.
    known = (distances.min(axis=1) <= (NEAR / 2) ** 2)[slots]
    unsure = known & ~in_plain_area(image, _CALM)
    known[unsure] = ~is_blend(image, unsure)
    chosen = np.where(known, nearest[slots], -1)
    for _ in range(4):
        rows, columns = np.nonzero(chosen < 0)
        if not len(rows):
            return chosen
        padded = np.pad(chosen, 2, constant_values=-1)
        best, least = np.full(len(rows), -1), np.full(len(rows), np.inf, np.float32)
        for dy in range(5):
            for dx in range(5):
                candidate = padded[rows + dy, columns + dx]
                distance = np.where(candidate >= 0, distances[slots[rows, columns], candidate], np.inf)
                better = distance < least
                best, least = np.where(better, candidate, best), np.where(better, distance, least)
        chosen[rows, columns] = best
    return np.where(chosen < 0, nearest[slots], chosen)


def number_colours(codes: Sequence[ColourCode]) -> dict[int, Rgb]:
    """One table of ids for the colours of one or several masks.

    Black is the background, else white where there is no black. If all other colours are those of VOC's
    indexed PNGs, ids are VOC's indices and its "void" is `IGNORE`; else ids count from 1 in a fixed order of
    the colours (red before green before blue), so the same set of colours always gives the same ids.

    Returns:
        id -> (r, g, b); 0 is the background and `IGNORE` may occur. Empty where `codes` is.

    Raises:
        ColourError: there are more than 255 colours.
    """
    colours: dict[Rgb, bool] = {}  # colour -> whether it is only known roughly
    for code in sorted(codes, key=lambda code: code.soft):
        for colour in code.colours:
            listed = np.array(list(colours)).reshape(-1, 3)
            if not code.soft or squared_distances(colour[None], listed).min(initial=np.inf) > NEAR**2:
                colours.setdefault(tuple(int(channel) for channel in colour), code.soft)
    background = _background(colours)
    objects = [colour for colour in colours if colour != background]
    if len(objects) > MAX_IDS:
        raise ColourError(_photograph(len(objects)))
    table: dict[int, Rgb] = {} if background is None else {0: background}
    indices = [_voc_index(colour, rough=colours[colour]) for colour in objects]
    if None not in indices and len(set(indices)) == len(indices):
        pairs = sorted(zip(indices, objects, strict=True))
        return table | {(IGNORE if index == 255 else index): colour for index, colour in pairs}
    # Rounding keeps the order where JPEG moved a value by a little.
    objects.sort(key=lambda colour: ([round(channel / 64) for channel in colour], colour), reverse=True)
    return table | dict(enumerate(objects, start=1))


def match_colours(image: np.ndarray, code: ColourCode, table: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Labels int32 (H, W) of a colour-coded mask, by a table of ids.

    Args:
        image: uint8 (H, W, 3).
        code: the mask's real colours.
        table: id -> (r, g, b); black is the background unless the table says otherwise.

    Raises:
        ColourError: the mask has a colour that isn't in the table.
    """
    if 0 not in table and (0, 0, 0) not in [tuple(colour) for colour in table.values()]:
        table = {0: (0, 0, 0), **table}
    ids, listed = np.array(list(table), np.int32), np.array(list(table.values()))
    distances = squared_distances(code.colours, listed)
    unknown = distances.min(axis=1) > (NEAR if code.soft else _reach(listed)) ** 2
    slots = paint_slots(image, code)
    if unknown.any():
        colour, count = code.colours[unknown][0], int((slots == np.flatnonzero(unknown)[0]).sum())
        known = ", ".join(f"{i}: {tuple(int(c) for c in rgb)}" for i, rgb in list(table.items())[:8])
        raise ColourError(
            f"expected the colours of the table ({known}{', ...' if len(table) > 8 else ''}), got "
            f"{tuple(int(c) for c in colour)} in {count} pixels; add it to the table or correct the mask"
        )
    return ids[distances.argmin(axis=1)][slots]


@dataclass(frozen=True, eq=False)
class _Survey:
    """What a look at every shade of a mask shows.

    Attributes:
        shades: the distinct colours, uint8 (n, 3).
        slots: each pixel's index into them, (H, W).
        counts: each shade's pixels, (n,).
        blends: those of its pixels that look like blends, (n,); 0 for shades that fill an area.
        soft: whether edges are blended or noisy.
    """

    shades: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    blends: np.ndarray
    soft: bool


def _survey(image: np.ndarray) -> _Survey:
    shades, slots, counts = histogram(image)
    if len(shades) > 64 and (slots[:, 1:] == slots[:, :-1]).mean() < 0.5:
        raise ColourError(_photograph(len(shades)))
    loose = np.bincount(slots[in_plain_area(slots)], minlength=len(shades)) == 0
    blended = loose[slots]
    blended[blended] = is_blend(image, blended)
    blends = np.bincount(slots[blended], minlength=len(shades))
    pixels = counts[loose].sum()
    many = len(shades) > MAX_IDS + 1 or loose.sum() > 8 and pixels < 3 * loose.sum()
    soft = loose.any() and (many or blends.sum() > 0.1 * pixels)
    return _Survey(shades, slots, counts, blends, bool(soft))


def _soft_colours(image: np.ndarray, survey: _Survey) -> np.ndarray:
    """The real colours of a mask with blended or noisy edges: uint8 (K, 3), those that fill areas first."""
    shades, slots, counts = survey.shades, survey.slots, survey.counts
    calm = in_plain_area(image, _CALM)
    # Shades go into cubes of 16 levels, so that noise adds up instead of splitting a colour into hundreds.
    cubes, cube_of = np.unique(pack(shades + np.int32(8) >> 4), return_inverse=True)
    mass = np.bincount(cube_of, counts, minlength=len(cubes))
    area = np.bincount(cube_of, np.bincount(slots[calm], minlength=len(shades)), minlength=len(cubes))
    blends = np.bincount(cube_of, survey.blends, minlength=len(cubes))
    enough = max(8.0, 0.12 * slots.size**0.5)  # noise follows edges, so it grows like a length
    colours, masses = [], []

    def accept(cube: int) -> None:
        members = np.flatnonzero(cube_of == cube)
        colour = shades[members[counts[members].argmax()]]
        if colours:
            gaps = squared_distances(colour[None], np.array(colours))[0] ** 0.5
            rarer = mass[cube] < 0.1 * np.array(masses)
            if (gaps <= 2 * SAME).any() or (rarer & (gaps <= NEAR)).any():
                return
        colours.append(colour)
        masses.append(mass[cube])

    for cube in _descending(area, area >= enough):
        accept(cube)
    if colours:  # thin things fill no area; but neither do the seams between areas, nor what a blur left
        areas = np.array(colours)
        distances = squared_distances(shades, areas)
        known = np.where(distances.min(axis=1) <= (NEAR / 2) ** 2, distances.argmin(axis=1), -1)
        known = np.where(calm, known[slots], -1)
        for cube in _descending(mass, (area < enough) & (mass >= enough) & (blends < 0.5 * mass)):
            members = cube_of == cube
            if not _at_seams(known, members[slots]) and not _between(shades[members].mean(axis=0), areas):
                accept(cube)
    listed = np.array(colours).reshape(-1, 3)
    near = squared_distances(shades, listed).min(axis=1, initial=np.inf) <= NEAR**2
    if counts[near].sum() < 0.6 * slots.size or len(colours) > MAX_IDS:
        raise ColourError(_photograph(len(shades)))
    if len(colours) == 1 and 0 < image.max() < NEAR:
        raise ColourError("expected ids or colours, got noise near black: JPEG loses ids; save masks as PNG")
    return listed


def _descending(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The indices of the chosen values, the largest value first."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(-values[indices], kind="stable")]


def _at_seams(known: np.ndarray, where: np.ndarray) -> bool:
    """Whether most of the pixels have two different known colours (index, or -1) within 4 pixels."""
    rows, columns = np.nonzero(where)
    padded = np.pad(known, 4, constant_values=-1)
    around = np.stack([padded[rows + dy, columns + dx] for dy in range(9) for dx in range(9)])  # (81, n)
    least = np.where(around < 0, MAX_IDS + 1, around).min(axis=0)
    return bool((around.max(axis=0) > least).mean() > 0.5)


def _between(colour: np.ndarray, colours: np.ndarray) -> bool:
    """Whether a colour (3,) lies near the line between two of the others (K, 3)."""
    others = colours.astype(np.float32)
    line = others[None] - others[:, None]  # (K, K, 3)
    offset = colour - others[:, None]
    along = (offset * line).sum(axis=-1) / np.maximum((line**2).sum(axis=-1), 1)
    aside = ((offset - along[..., None] * line) ** 2).sum(axis=-1)
    return bool(((along > 0) & (along < 1) & (aside <= (NEAR / 2) ** 2)).any())


def _reach(table: np.ndarray) -> float:
    """How far an exact colour may lie from one of a table (K, 3): never past the middle between two."""
    gaps = squared_distances(table, table)[np.triu_indices(len(table), k=1)]
    return min(SAME, float(gaps.min(initial=np.inf)) ** 0.5 / 2)


def _background(colours: Mapping[Rgb, bool]) -> Rgb | None:
    """Black, or what stands for it."""
    if (0, 0, 0) in colours:
        return (0, 0, 0)
    dark = [c for c, rough in colours.items() if sum(v * v for v in c) <= (NEAR if rough else 16.0) ** 2]
    dark = [c for c in dark if colours[c] or max(c) == min(c)]  # exact (1, 0, 0) may well be an id
    if dark:
        return min(dark, key=lambda c: (sum(c), c))
    white = [c for c, rough in colours.items() if min(c) >= (240 if rough else 255)]
    return max(white, key=lambda c: (sum(c), c)) if white and len(colours) > 1 else None


def _voc_index(colour: Rgb, rough: bool) -> int | None:
    gaps = squared_distances(np.array([colour]), voc_colours())[0]
    return int(gaps.argmin()) if gaps.min() <= (SAME**2 if rough else 0) else None


def _photograph(colours: int) -> str:
    return (
        f"expected a mask with at most {MAX_IDS} colours in plain areas, "
        f"got {colours} colours as in a photograph; give the mask, not the picture, and save masks as PNG"
    )
