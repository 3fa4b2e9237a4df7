"""Letters for pictures: Pillow's own font, which is everywhere and has plain ones only, or one of the machine's."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont

_OTHERS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf")
"""Fonts with more letters, where a machine has them."""


def lettering(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Finds a font that has all letters of a text.

    Returns:
        The text and the font to draw it with. Where no font has all of its letters, accents are left out, and what
        is still missing becomes "?": boxes would tell nothing.
    """
    own = _own(size)
    for font in (own, *(_open(name, size) for name in _OTHERS)):
        if font is not None and _has(font, text):
            return text, font
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if _has(own, c) else "?" for c in plain), own


@cache
def _own(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@cache
def _open(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether no letter is drawn as a missing one, which an unassigned character is."""
    missing = bytes(font.getmask("\uffff"))
    return all(c.isascii() or bytes(font.getmask(c)) != missing for c in set(text))
