"""Contact sheets: examples and results on one page, for people to judge at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from incontext.export.lettering import lettering
from incontext.export.raster import display_colour, overlay
from incontext.types import Example, Segmentation

Rgb = tuple[int, int, int]

_PAPER: Rgb = (250, 250, 251)
_INK: Rgb = (28, 31, 38)
_DIM: Rgb = (112, 118, 130)
_RULE: Rgb = (222, 225, 230)

_MARGIN = 44  # around the page
_GAP = 28  # between cards
_JOINT = 6  # between the pictures of one card
_LINE = 22  # height of a line of small text
_SWATCH = 12
_RADIUS = 5


@dataclass(frozen=True, eq=False)
class Card:
    """Pictures that belong together, side by side, with a line of text and a legend below.

    Attributes:
        pictures: uint8 (H, W, 3) each; all are drawn at the same height.
        title: one line; cut with an ellipsis where it is too long.
        legend: (colour, text) entries.
    """

    pictures: Sequence[np.ndarray]
    title: str = ""
    legend: Sequence[tuple[Sequence[int], str]] = ()


def contact_sheet(
    examples: Sequence[Example],
    results: Sequence[tuple[np.ndarray, Segmentation]],
    *,
    title: str = "",
    example_titles: Sequence[str] = (),
    result_titles: Sequence[str] = (),
    truths: Sequence[np.ndarray | None] = (),
    names: Mapping[int, str] | None = None,
    limit: int = 24,
    height: int = 240,
    width: int = 1600,
) -> np.ndarray:
    """Draws the examples with their masks on top, then each query beside what was found in it.

    Args:
        examples: what was shown.
        results: (image uint8 (H, W, 3), segmentation of the same size) pairs.
        title: of the page.
        example_titles: a line under each example, such as its file name.
        result_titles: a line under each result.
        truths: labels (H, W) of each result where they are known: drawn as a third picture.
        names: id -> name; those of the examples and segmentations where it is not given.
        limit: how many results to draw at most; a line says how many are left out.
        height: of the pictures, in pixels, more or less: rows are made to fill the width.
        width: of the page, in pixels, at most.

    Returns:
        uint8 (H, W, 3).
    """
    names = dict(names or {})
    for value in (*(segmentation for _, segmentation in results), *examples):
        names = {**value.names, **names}
    shown = [
        Card(
            (example.image, overlay(example.image, example.labels)),
            _at(example_titles, k),
            [(display_colour(i), names.get(i, str(i))) for i in example.ids],
        )
        for k, example in enumerate(examples)
    ]
    found = []
    for k, (image, segmentation) in enumerate(results[:limit]):
        pictures = [image, overlay(image, segmentation.labels)]
        if (truth := _at(truths, k, None)) is not None:
            pictures.append(overlay(image, truth))
        found.append(Card(pictures, _at(result_titles, k), _legend(segmentation, names)))
    columns = "image, result, truth" if any(truth is not None for truth in truths) else "image, result"
    left_out = len(results) - len(found)
    note = f"{columns}; {left_out} more not shown" if left_out else columns
    sections = [("Examples", "image, mask", shown), ("Results", note, found)]
    return lay_out([section for section in sections if section[2]], title=title, height=height, width=width)


def lay_out(
    sections: Sequence[tuple[str, str, Sequence[Card]]],
    *,
    title: str = "",
    height: int = 240,
    width: int = 1600,
) -> np.ndarray:
    """Draws sections of cards on one page.

    Args:
        sections: (heading, note beside it, cards).
        title: of the page.
        height: of the pictures, in pixels, more or less: rows are made to fill the width.
        width: of the page, in pixels, at most.

    Returns:
        uint8 (H, W, 3).
    """
    page = _Page(width)
    height = _filling([card for _, _, cards in sections for card in cards], height, page.inner)
    if title:
        page.text(title, 30, _INK)
        page.y += 52
    for heading, note, cards in sections:
        page.heading(heading, note)
        for row in _rows([_fit(card, height, page.inner) for card in cards], page.inner):
            page.row(row)
    return page.finish()


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A card at its final size."""

    pictures: list[Image.Image]
    title: str
    legend: list[list[tuple[Rgb, str]]]  # lines of entries
    width: int
    height: int


class _Page:
    """A page that grows downwards."""

    def __init__(self, width: int) -> None:
        self.width, self.inner = width, width - 2 * _MARGIN
        self.y, self.right = (
            _MARGIN,
            min(width, 720) - _MARGIN,
        )  # where the next line goes; how far cards reach
        self.canvas = Image.new("RGB", (width, 256), _PAPER)

    def reserve(self, height: int) -> ImageDraw.ImageDraw:
        if self.y + height > self.canvas.height:
            taller = Image.new("RGB", (self.width, 2 * (self.y + height)), _PAPER)
            taller.paste(self.canvas, (0, 0))
            self.canvas = taller
        return ImageDraw.Draw(self.canvas)

    def text(self, text: str, size: int, colour: Rgb, x: int = _MARGIN) -> int:
        """Writes on the current line; returns where the text ends."""
        text, font = lettering(text, size)
        text = _cut(text, font, self.width - _MARGIN - x)
        self.reserve(40).text((x, self.y + 22), text, colour, font, anchor="ls")
        return x + round(font.getlength(text))

    def heading(self, heading: str, note: str) -> None:
        self.text(note, 15, _DIM, self.text(heading, 20, _INK) + 14)
        draw = self.reserve(60)
        draw.line([(_MARGIN, self.y + 32), (self.width - _MARGIN, self.y + 32)], _RULE, 1)
        self.y += 50

    def row(self, cards: Sequence[_Fitted]) -> None:
        tallest = max(card.height for card in cards)
        self.reserve(tallest + _GAP)
        x = _MARGIN
        for card in cards:
            self.card(card, x)
            x += card.width + _GAP
        self.right = max(self.right, x - _GAP)
        self.y += tallest + _GAP

    def card(self, card: _Fitted, x: int) -> None:
        draw, left = ImageDraw.Draw(self.canvas), x
        for picture in card.pictures:
            self.canvas.paste(picture, (left, self.y), _rounded(picture.size))
            frame = [left, self.y, left + picture.width - 1, self.y + picture.height - 1]
            draw.rounded_rectangle(frame, _RADIUS, outline=_RULE)  # white pictures would melt into the page
            left += picture.width + _JOINT
        y = self.y + card.pictures[0].height + 8
        if card.title:
            title, font = lettering(card.title, 15)
            draw.text((x, y + 15), _cut(title, font, card.width), _INK, font, anchor="ls")
            y += _LINE
        for line in card.legend:
            left = x
            for colour, text in line:
                text, font = lettering(text, 14)
                draw.rounded_rectangle([left, y + 4, left + _SWATCH, y + 4 + _SWATCH], 3, colour)
                draw.text((left + _SWATCH + 6, y + 15), text, _DIM, font, anchor="ls")
                left += _entry_width(text, font)
            y += _LINE

    def finish(self) -> np.ndarray:
        return np.asarray(self.canvas.crop((0, 0, self.right + _MARGIN, self.y + _MARGIN - _GAP)))


def _filling(cards: Sequence[Card], height: int, room: int) -> int:
    """The height near the wished one at which a whole number of typical cards fills a row."""
    if not cards:
        return height
    ratios = [sum(p.shape[1] / p.shape[0] for p in card.pictures) for card in cards]
    joints = [_JOINT * (len(card.pictures) - 1) for card in cards]
    ratio, joint = max(zip(ratios, joints, strict=True), key=lambda pair: ratios.count(pair[0]))
    columns = max(1, round((room + _GAP) / (height * ratio + joint + _GAP)))
    filling = ((room + _GAP) / columns - _GAP - joint) / ratio
    return int(min(max(filling, 0.7 * height), 1.4 * height))


def _fit(card: Card, height: int, room: int) -> _Fitted:
    shapes = [picture.shape for picture in card.pictures]
    joints = _JOINT * (len(shapes) - 1)
    natural = sum(height * shape[1] / shape[0] for shape in shapes)
    height = max(1, int(height * min(1.0, (room - joints) / natural)))
    pictures = [
        Image.fromarray(picture).resize((max(1, int(height * shape[1] / shape[0])), height), Image.Resampling.LANCZOS)
        for picture, shape in zip(card.pictures, shapes, strict=True)
    ]
    width = max(sum(picture.width for picture in pictures) + joints, min(room, 160))
    lines, left = [], 0
    for colour, text in card.legend:
        text, font = lettering(text, 14)
        text = _cut(text, font, width - _SWATCH - 6)
        if not lines or left + _entry_width(text, font) > width + 16:
            lines.append([])
            left = 0
        lines[-1].append((tuple(colour), text))
        left += _entry_width(text, font)
    below = 8 + _LINE * (bool(card.title) + len(lines))
    return _Fitted(pictures, card.title, lines, width, height + below)


def _rows(cards: Sequence[_Fitted], room: int) -> list[list[_Fitted]]:
    rows: list[list[_Fitted]] = []
    left = 0
    for card in cards:
        if not rows or left + card.width > room:
            rows.append([])
            left = 0
        rows[-1].append(card)
        left += card.width + _GAP
    return rows


def _legend(segmentation: Segmentation, names: Mapping[int, str]) -> list[tuple[Rgb, str]]:
    if not segmentation.ids:
        return [(_RULE, "nothing found")]
    return [
        (
            display_colour(i),
            names.get(i, str(i)) + (f" {segmentation.scores[i]:.2f}" if i in segmentation.scores else ""),
        )
        for i in segmentation.ids
    ]


def _at(values: Sequence, k: int, default: object = "") -> object:
    return values[k] if k < len(values) else default


def _entry_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return _SWATCH + 6 + round(font.getlength(text)) + 16


def _cut(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners, smoothed by drawing it four times as large."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]), 0)
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, 4 * size[0] - 1, 4 * size[1] - 1], 4 * _RADIUS, 255)
    return mask.resize(size, Image.Resampling.BOX)
