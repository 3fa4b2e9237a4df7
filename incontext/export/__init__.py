"""Segmentations as files: indexed PNGs, overlays and contact sheets."""

from __future__ import annotations

from incontext.export.raster import display_colour, overlay, write_image, write_indexed
from incontext.export.sheet import Card, contact_sheet, lay_out

__all__ = [
    "Card",
    "contact_sheet",
    "display_colour",
    "lay_out",
    "overlay",
    "write_image",
    "write_indexed",
]
