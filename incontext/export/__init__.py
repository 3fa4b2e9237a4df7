"""Segmentations as files: datasets in many formats, indexed PNGs, overlays and contact sheets."""

from __future__ import annotations

from incontext.export.dataset import read_dataset, write_dataset
from incontext.export.documents import FormatError
from incontext.export.formats import FORMATS, Format
from incontext.export.labelled import LabelledImage, LabelledObject, split_instances
from incontext.export.raster import display_colour, overlay, write_image, write_indexed
from incontext.export.sheet import Card, contact_sheet, lay_out

__all__ = [
    "Card",
    "FORMATS",
    "Format",
    "FormatError",
    "LabelledImage",
    "LabelledObject",
    "contact_sheet",
    "display_colour",
    "lay_out",
    "overlay",
    "read_dataset",
    "split_instances",
    "write_dataset",
    "write_image",
    "write_indexed",
]
