"""The results of a label job for a person's eyes, those least to be trusted first: a page that opens offline, and a
table."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from incontext.atomic import replacing
from incontext.export import display_colour
from incontext.image import open_image, open_labels
from incontext.labeling.manifest import Row
from incontext.labeling.thumbnails import picture_uri, tint_uri
from incontext.labeling.trust import trust
from incontext.prefetch import prefetch

PAGE, TABLE, PICTURES = "review.html", "review.csv", "review"

ROWS_PER_PART = 48
"""Rows whose pictures are loaded together: those of one page in the first order."""

EMBEDDED_PARTS = 3
"""A page of no more parts holds its pictures itself, and is one file to send around."""


def write_review(
    out: Path,
    rows: Sequence[Row],
    *,
    images: Mapping[str, Path],
    names: Mapping[int, str],
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Writes OUT/review.html, OUT/review.csv, and for large jobs OUT/review/, where the page finds its pictures.

    Each file is whole at any moment. Pictures of rows that have not changed since the last time are kept.

    Args:
        out: the output folder of the job.
        rows: what became of each image; see `incontext.labeling.manifest`.
        images: `Row.image` -> the picture's file.
        names: class id -> name.
        progress: wraps the loop over parts of `ROWS_PER_PART` pictures.

    Raises:
        OSError: a file cannot be written.
    """
    rows = sorted(rows, key=_order)
    parts = [rows[start : start + ROWS_PER_PART] for start in range(0, len(rows), ROWS_PER_PART)]
    keys = [_part_key(part) for part in parts]
    embedded = len(parts) <= EMBEDDED_PARTS
    scripts = []
    for key, part in progress(list(zip(keys, parts, strict=True))):
        file = out / PICTURES / f"{key}.js"
        if embedded:
            scripts.append(_part_script(out, key, part, images))
        elif not file.exists():
            with replacing(file) as draft:
                draft.write_text(_part_script(out, key, part, images), encoding="utf-8")
    _write_text(out / TABLE, _table(rows, names))
    _write_text(out / PAGE, _page(out, rows, keys, scripts, images, names))
    for stale in (out / PICTURES).glob("*.js"):  # only now: the page of before needed them
        if embedded or stale.stem not in keys:
            stale.unlink(missing_ok=True)
    if embedded and (out / PICTURES).is_dir() and not any((out / PICTURES).iterdir()):
        (out / PICTURES).rmdir()


def row_trust(row: Row) -> float:
    """How far to trust a row, 0..1; see `incontext.labeling.trust`. A person's mask counts as 1, a failure as 0."""
    if row.corrected or not row.done:
        return float(row.done)
    return trust(row.score or 0.0, row.wholeness, row.disagreement)


def _order(row: Row) -> tuple:
    """Worst first; images without a mask come last, as there is nothing to look at."""
    return not row.done, row_trust(row), row.image


def _part_key(part: Sequence[Row]) -> str:
    """Changes with any mask or image of the part."""
    digest = hashlib.sha256()
    for row in part:
        digest.update(repr((row.image, row.status, row.sha256, row.recipe, row.corrected, row.mask)).encode())
    return digest.hexdigest()[:16]


def _row_key(row: Row) -> str:
    """Names a result: a mark that was put on it does not stick to what replaces it."""
    return hashlib.sha256(repr((row.image, row.sha256, row.recipe, row.corrected)).encode()).hexdigest()[:12]


def _part_script(out: Path, key: str, part: Sequence[Row], images: Mapping[str, Path]) -> str:
    def draw(row: Row) -> list[str]:
        return _pictures(out, row, images.get(row.image))

    pictures = list(prefetch(draw, part, threads=4, ahead=ROWS_PER_PART))
    return f"addPictures({json.dumps(key)},{json.dumps(pictures)});\n"


def _pictures(out: Path, row: Row, path: Path | None) -> list[str]:
    """Data URIs of a row's picture and of its mask; empty where there is none."""
    if not row.done:  # its row says why
        return ["", ""]
    try:
        image = picture_uri(open_image(path)) if path is not None else ""
    except (OSError, ValueError):
        return ["", ""]
    try:
        return [image, tint_uri(open_labels(out / row.mask)) if row.mask else ""]
    except (OSError, ValueError):
        return [image, ""]


def _page(
    out: Path,
    rows: Sequence[Row],
    keys: Sequence[str],
    scripts: Sequence[str],
    images: Mapping[str, Path],
    names: Mapping[int, str],
) -> str:
    ids = sorted({id for row in rows for id in row.ids} | set(names))
    data = {
        "title": out.resolve().name,
        "job": hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12],
        "folder": PICTURES,
        "perPart": ROWS_PER_PART,
        "parts": list(keys),
        "classes": [
            [id, names.get(id, f"class {id}"), "#{:02x}{:02x}{:02x}".format(*display_colour(id))] for id in ids
        ],
        "rows": [_row_data(out, row, images.get(row.image)) for row in rows],
    }
    template = resources.files("incontext.labeling").joinpath("review.html").read_text(encoding="utf-8")
    pictures = "\n".join(f"<script>{script}</script>" for script in scripts)
    return template.replace("/*DATA*/", _in_script(data)).replace("<!--PICTURES-->", pictures)


def _row_data(out: Path, row: Row, path: Path | None) -> dict[str, object]:
    return {
        "key": _row_key(row),
        "image": row.image,
        "href": "" if path is None else _link(path, out),
        "mask": quote(row.mask) if row.mask else "",
        "status": "corrected" if row.corrected else row.status,
        "trust": round(row_trust(row), 4),
        "score": _rounded(row.score),
        "wholeness": _rounded(row.wholeness),
        "disagreement": _rounded(row.disagreement),
        "classes": [[id, _rounded(row.scores.get(id))] for id in row.ids],
        "size": list(row.size or ()),
        "error": row.error or "",
    }


def _table(rows: Sequence[Row], names: Mapping[int, str]) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    header = ["rank", "image", "status", "trust", "score", "wholeness", "disagreement", "classes", "least_sure_class"]
    writer.writerow([*header, "mask", "height", "width", "seconds", "error"])
    for rank, row in enumerate(rows, start=1):
        scores = {names.get(id, f"class {id}"): row.scores.get(id) for id in row.ids}
        signals = (row.score, row.wholeness, row.disagreement)
        known = {name: score for name, score in scores.items() if score is not None}
        writer.writerow(
            [
                rank,
                row.image,
                "corrected" if row.corrected else row.status,
                f"{row_trust(row):.4f}" if row.done else "",
                *("" if value is None else f"{value:.4f}" for value in signals),
                "; ".join(name if score is None else f"{name} {score:.3f}" for name, score in scores.items()),
                min(known, key=lambda name: known[name]) if known else "",
                row.mask or "",
                *(row.size or ("", "")),
                "" if row.seconds is None else f"{row.seconds:.4f}",
                row.error or "",
            ]
        )
    return lines.getvalue()


def _link(path: Path, out: Path) -> str:
    """A picture's address as seen from the page."""
    try:
        return quote(Path(os.path.relpath(path, out)).as_posix())
    except ValueError:  # on another drive
        return path.resolve().as_uri()


def _in_script(data: object) -> str:
    """JSON that can stand in a script element whatever file names hold: "</script>" would end it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 4)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
