"""Writing packs: any mixture of sources becomes one file, as large in pixels as a budget of bytes allows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save
from tqdm import tqdm

from incontext.atomic import replacing
from incontext.image import open_image
from incontext.training.pack import FORMAT, IGNORE_ID, Entry, Pack, Traits, usual_traits
from incontext.training.sources import Item, list_sets

log = logging.getLogger(__name__)

SIDES = tuple(range(64, 1025, 16))
_SAMPLE = 160
_MARGIN = 0.97  # what a sample of the images says is an estimate
_UNREADABLE = (OSError, ValueError)


def pack_folders(
    root: str | Path,
    out: str | Path,
    *,
    side: int = 208,
    quality: int = 80,
    sets: Sequence[str] | None = None,
) -> Pack:
    """Packs the sets below a folder.

    Args:
        root: as for `list_sets`.
        out: the file to write.
        side, quality: as for `write_pack`.
        sets: the sets to take; all, by default.

    Returns:
        The pack, opened.

    Raises:
        ValueError: for unknown sets, a root without sets, or as for `write_pack`.
    """
    return write_pack(folder_items(root, sets), out, side=side, quality=quality)


def folder_items(root: str | Path, sets: Sequence[str] | None = None) -> list[Item]:
    """Returns the items of the sets below a folder; of all, or of those named.

    Raises:
        ValueError: for unknown sets, or a root without sets.
    """
    found = list_sets(root)
    unknown = sorted(set(sets or ()) - set(found))
    if unknown:
        raise ValueError(f"unknown sets {unknown}; {root} holds {sorted(found)}")
    return [item for name in sets or found for item in found[name]]


def write_pack(
    items: Sequence[Item],
    out: str | Path,
    *,
    side: int = 208,
    quality: int = 80,
    traits: Mapping[str, Traits] | None = None,
) -> Pack:
    """Packs images. Those that cannot be read are left out, and named in the log.

    Args:
        items: the images, those of a set together.
        out: the file to write.
        side: the longest side of a packed image, in pixels. Smaller images stay as they are.
        quality: WebP quality of the images, 1..100. At equal size it keeps more pixels than JPEG, for half a
            millisecond more to open. Masks are lossless.
        traits: of sets whose names and items do not tell them; see `usual_traits` and `Item.segments`.

    Returns:
        The pack, opened.

    Raises:
        ValueError: if there is nothing to pack, or no image can be read with its mask.
    """
    if not items:
        raise ValueError("nothing to pack: give a folder of sets, or another source")
    blob, entries, failure = io.BytesIO(), [], None
    for item in tqdm(items, unit="image", disable=None):
        try:
            entries.append(_put(blob, item, side, quality))
        except _UNREADABLE as error:
            log.warning("failed: %s/%s: %s", item.set, item.name, error)
            failure = error
    if not entries:
        raise ValueError(f"nothing to pack: none of {len(items)} images can be read; the last: {failure}") from failure
    known = {item.set: (traits or {}).get(item.set) or usual_traits(item.set) for item in items}
    for name in {item.set for item in items if item.segments}:
        known[name] = dataclasses.replace(known[name], segments=True)
    metadata = {
        "format": FORMAT,
        "entries": json.dumps([vars(entry) for entry in entries]),
        "traits": json.dumps({name: dataclasses.asdict(each) for name, each in known.items()}),
    }
    data = save({"bytes": np.frombuffer(blob.getbuffer(), np.uint8)}, metadata)
    with replacing(out) as draft:
        draft.write_bytes(data)
    return Pack(out)


def fit_side(items: Sequence[Item], budget: int, quality: int = 80) -> int:
    """Finds the largest side at which a pack stays within a budget, judged by an even sample of its images.

    Args:
        items: the images.
        budget: in bytes.
        quality: WebP quality, 1..100.

    Returns:
        One of `SIDES`.

    Raises:
        ValueError: if not even the smallest side fits, or no image of the sample can be read.
    """
    sample = items[:: max(1, len(items) // _SAMPLE)]
    fits = 0
    low, high = 0, len(SIDES)
    while low < high:  # sizes grow with the side: bisect
        middle = (low + high) // 2
        blob, texts = io.BytesIO(), []
        for item in sample:
            with contextlib.suppress(*_UNREADABLE):  # `write_pack` tells
                texts.append(len(json.dumps(vars(_put(blob, item, SIDES[middle], quality)))))
        if not texts:
            raise ValueError(f"nothing to pack: none of {len(sample)} images of a sample can be read")
        size = (blob.tell() + sum(texts)) * len(items) / len(texts)
        if size <= _MARGIN * budget:
            fits, low = SIDES[middle], middle + 1
        else:
            high = middle
    if not fits:
        raise ValueError(
            f"{len(items)} images do not fit {budget / 2**20:.1f} MiB even at {SIDES[0]} pixels; take fewer images"
        )
    return fits


def limit_sets(items: Iterable[Item], limit: int) -> list[Item]:
    """Takes at most `limit` images of every set, evenly spread over it."""
    sets: dict[str, list[Item]] = {}
    for item in items:
        sets.setdefault(item.set, []).append(item)
    spread = []
    for group in sets.values():
        places = np.linspace(0, len(group) - 1, min(limit, len(group))).round().astype(int)
        spread += [group[place] for place in places]
    return spread


def _put(blob: io.BytesIO, item: Item, side: int, quality: int) -> Entry:
    """Adds an image and its maps to the bytes."""
    image = Image.fromarray(open_image(item.image))
    scale = min(1.0, side / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)

    def put(picture: Image.Image, **options) -> tuple[int, int]:
        start = blob.tell()
        picture.save(blob, **options)
        return start, blob.tell()

    labels, instances = (
        None if ids is None else Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
        for ids in item.read(image.size[::-1])  # before anything is added: it may fail
    )
    shrunk = image.resize(size, Image.Resampling.LANCZOS)
    entry = Entry(item.set, item.name, put(shrunk, format="WEBP", quality=quality), video=item.video)
    if labels is not None:
        entry.labels = put(labels, format="PNG", optimize=True)
        ids, counts = np.unique(np.asarray(labels), return_counts=True)
        shares = zip(ids.tolist(), (counts / counts.sum()).tolist(), strict=True)
        entry.classes = {str(id): round(share, 5) for id, share in shares if id not in (0, IGNORE_ID)}
    if instances is not None:
        entry.instances = put(instances, format="PNG", optimize=True)
    return entry
