"""What a tuning run shows of itself: its curve, and pictures of before and after."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from incontext.atomic import replacing
from incontext.export import Card, display_colour, lay_out, overlay, write_image
from incontext.image import denormalise
from incontext.pack.prompt_pack import PromptPack
from incontext.predictor import Predictor
from incontext.training.tune_data import IGNORED, Views
from incontext.types import IGNORE

_SIZE = (420, 900)  # (H, W) of the curve
_MARGIN = 56
_SHOWN = 8  # pictures of queries
_LINES = {
    "loss": ("loss, own scale", (150, 160, 175)),
    "held_out_loss": ("held-out loss", (200, 80, 60)),
    "held_out_iou": ("held-out IoU", (40, 110, 190)),
}


def write_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes the rows of a run as CSV, atomically."""
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: round(value, 6) for key, value in row.items()} for row in rows)


def draw_curve(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the held-out loss (left scale) and IoU in percent (right scale) over the steps, as a PNG.

    The loss of the steps has a scale of its own: it is of other colours, so its values say little beside the held-out
    ones.
    """
    height, width = _SIZE
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    left, right, top, bottom = _MARGIN, width - _MARGIN, _MARGIN, height - _MARGIN
    draw.rectangle((left, top, right, bottom), outline=(200, 205, 212))
    last = max(row["step"] for row in rows) or 1
    scales = {key: _range([row[key] for row in rows if not math.isnan(row[key])]) for key in _LINES}
    for number, (key, (title, colour)) in enumerate(_LINES.items()):
        low, high = scales[key]
        points = [
            (left + (right - left) * row["step"] / last, bottom - (bottom - top) * (row[key] - low) / (high - low))
            for row in rows
            if not math.isnan(row[key])
        ]
        draw.line(points, fill=colour, width=3)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((left + 160 * number, 20), title, colour, font)
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top) - 8
        (low, high), (least, most) = scales["held_out_loss"], scales["held_out_iou"]
        draw.text((6, y), f"{low + share * (high - low):.3f}", _LINES["held_out_loss"][1], font)
        draw.text((right + 6, y), f"{100 * (least + share * (most - least)):.1f}%", _LINES["held_out_iou"][1], font)
    draw.text((left, bottom + 8), "step 0", (80, 85, 95), font)
    draw.text((right, bottom + 8), str(int(last)), (80, 85, 95), font, anchor="ra")
    write_image(path, np.asarray(picture))


def draw_before_after(model: nn.Module, before: PromptPack, after: PromptPack, views: Views, path: Path) -> None:
    """Draws held-out views with what a predictor finds by the real and the learned examples, and these examples."""
    legend = [(display_colour(id), after.names[id]) for id in after.ids]
    pages = []
    for title, pack in (("Real examples", before), ("Learned examples", after)):
        images = denormalise(pack.pixels()).round().byte()
        pictures = rearrange(images, "n c h w -> n h w c").numpy()
        masks = pack.masks if pack.masks.ndim == 3 else pack.masks.float().argmax(1)
        cards = [Card((image, _drawn(image, mask.numpy(), pack))) for image, mask in zip(pictures, masks, strict=True)]
        pages.append((title, "image, mask", cards))
    some = views[:: max(1, len(views) // _SHOWN)][:_SHOWN]
    predictor, cards = Predictor(model, device=next(model.parameters()).device), []
    for image, truth in zip(some.images, some.slots, strict=True):
        found = [predictor.predict(image, pack).labels for pack in (before, after)]
        pictures = (image, _drawn(image, truth, after), *(overlay(image, labels) for labels in found))
        cards.append(Card(pictures, legend=legend if not cards else ()))
    pages.append(("Held out", "image, truth, real examples, learned examples", cards))
    write_image(path, lay_out(pages, title=after.name, height=140))


def _drawn(image: np.ndarray, slots: np.ndarray, pack: PromptPack) -> np.ndarray:
    table = np.full(IGNORED + 1, IGNORE, np.int32)
    table[: len(pack.ids) + 1] = [0, *pack.ids]
    return overlay(np.ascontiguousarray(image), table[slots])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
