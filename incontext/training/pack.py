"""A pack: folders of images and masks as one file that loads fast and travels well.

One safetensors file holds all JPEG and PNG bytes in one tensor; its metadata says where each record lies. Packs are the
only thing the training loop reads, so that every source (folders today) becomes episodes the same way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from incontext.atomic import replacing
from incontext.image import open_image, open_labels
from incontext.types import IGNORE

FORMAT = "incontext-pack-1"
IGNORE_ID = 255  # as stored in the masks of the folders and of the pack
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Record:
    """One image of a pack.

    Attributes:
        image: uint8 (H, W, 3).
        labels: uint8 (H, W) class ids, 0 background, 255 ignored; None without masks.
        instances: uint8 (H, W) instance ids, 0 background, 255 ignored; None where not known.
    """

    image: np.ndarray
    labels: np.ndarray | None
    instances: np.ndarray | None


@dataclass
class _Entry:
    set: str
    name: str
    image: tuple[int, int]
    labels: tuple[int, int] | None = None
    instances: tuple[int, int] | None = None
    classes: dict[str, float] = field(default_factory=dict)  # id -> share of the image's pixels


class Pack:
    """A read-only pack.

    Attributes:
        path: the file.
        sets: the name of each set -> indexes of its records.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a pack.

        Raises:
            ValueError: if the file is no pack.
        """
        self.path = Path(path)
        try:
            with safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"format is {metadata.get('format')!r}")
                self._bytes = file.get_tensor("bytes")
                self._entries = [_Entry(**entry) for entry in json.loads(metadata["entries"])]
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.path}: expected a pack written by `incontext train pack` ({FORMAT}), got another file: {error}"
            ) from error
        self.sets: dict[str, list[int]] = {}
        for index, entry in enumerate(self._entries):
            self.sets.setdefault(entry.set, []).append(index)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Returns `SET/STEM` of a record."""
        return f"{self._entries[index].set}/{self._entries[index].name}"

    def classes(self, index: int) -> dict[int, float]:
        """Returns the class ids of a record and the share of the image that each covers, 0..1."""
        return {int(key): share for key, share in self._entries[index].classes.items()}

    def has_instances(self, index: int) -> bool:
        """Returns whether a record has instance ids."""
        return self._entries[index].instances is not None

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        image = np.asarray(self._open(entry.image).convert("RGB"))
        labels = np.asarray(self._open(entry.labels)) if entry.labels else None
        instances = np.asarray(self._open(entry.instances)) if entry.instances else None
        return Record(image, labels, instances)

    def _open(self, span: Sequence[int]) -> Image.Image:
        start, stop = span
        return Image.open(io.BytesIO(self._bytes[start:stop].tobytes()))


def list_sets(root: str | Path) -> dict[str, list[tuple[Path, Path | None, Path | None]]]:
    """Finds the sets below a folder: `SET/images/NAME.jpg` with `SET/masks/NAME.png` and `SET/masks_inst/NAME.png`.

    Videos (`SET/VIDEO/frames` with `masks`) count as records of their set. A set without masks holds images only.

    Args:
        root: folder of sets.

    Returns:
        The name of each set -> (image, mask or None, instance mask or None) per record, sorted.

    Raises:
        ValueError: if there is no set.
    """
    root = Path(root)
    sets = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        records = list(_records(folder / "images", folder / "masks", folder / "masks_inst"))
        for video in sorted(path for path in folder.iterdir() if (path / "frames").is_dir()):
            records += _records(video / "frames", video / "masks", video / "masks_inst")
        if records:
            sets[folder.name] = records
    if not sets:
        raise ValueError(f"{root}: expected folders SET/images/NAME.jpg with SET/masks/NAME.png, found none")
    return sets


def _records(images: Path, masks: Path, instances: Path) -> Iterator[tuple[Path, Path | None, Path | None]]:
    if not images.is_dir():
        return
    for image in sorted(path for path in images.iterdir() if path.suffix.lower() in _SUFFIXES):
        mask, instance = masks / f"{image.stem}.png", instances / f"{image.stem}.png"
        if mask.exists() or not masks.is_dir():
            yield image, mask if mask.exists() else None, instance if instance.exists() else None


def pack_folders(
    root: str | Path,
    out: str | Path,
    *,
    side: int = 208,
    quality: int = 88,
    sets: Sequence[str] | None = None,
) -> Pack:
    """Packs the sets below a folder.

    Args:
        root: as for `list_sets`.
        out: the file to write.
        side: the longest side of a packed image, in pixels. Smaller images stay as they are.
        quality: JPEG quality of the images, 1..95. Masks are lossless.
        sets: the sets to take; all, by default.

    Returns:
        The pack, opened.

    Raises:
        ValueError: for unknown sets, a root without sets, or a mask that does not fit its image or holds no ids.
    """
    found = list_sets(root)
    unknown = sorted(set(sets or ()) - set(found))
    if unknown:
        raise ValueError(f"unknown sets {unknown}; {root} holds {sorted(found)}")
    blob, entries = io.BytesIO(), []

    def put(image: Image.Image, **options) -> tuple[int, int]:
        start = blob.tell()
        image.save(blob, **options)
        return start, blob.tell()

    for name in sets or found:
        for image_path, mask_path, instance_path in found[name]:
            image = Image.fromarray(open_image(image_path))
            scale = min(1.0, side / max(image.size))
            size = tuple(max(1, round(length * scale)) for length in image.size)
            stem = (
                image_path.stem if image_path.parent.name == "images" else f"{image_path.parts[-3]}-{image_path.stem}"
            )
            entry = _Entry(
                name, stem, put(image.resize(size, Image.Resampling.LANCZOS), format="JPEG", quality=quality)
            )
            for key, path in (("labels", mask_path), ("instances", instance_path)):
                if path is None:
                    continue
                mask = Image.fromarray(_read_ids(path, image)).resize(size, Image.Resampling.NEAREST)
                setattr(entry, key, put(mask, format="PNG", optimize=True))
                if key == "labels":
                    ids, counts = np.unique(np.asarray(mask), return_counts=True)
                    shares = counts / (size[0] * size[1])
                    entry.classes = {
                        str(i): round(float(s), 5) for i, s in zip(ids, shares, strict=True) if i not in (0, IGNORE_ID)
                    }
            entries.append(entry)
    data = save(
        {"bytes": np.frombuffer(blob.getbuffer(), np.uint8)},
        {"format": FORMAT, "entries": json.dumps([vars(entry) for entry in entries])},
    )
    with replacing(out) as draft:
        draft.write_bytes(data)
    return Pack(out)


def _read_ids(path: Path, image: Image.Image) -> np.ndarray:
    """Reads a mask as uint8 (H, W): 255 is ignored, but where a mask holds 0 and 255 alone 255 is an object."""
    with Image.open(path) as file:
        if len(file.getbands()) != 1:
            # Colours get their ids file by file, which would tie unlike things together across a set.
            raise ValueError(f"{path}: expected one channel of ids 0..254, got mode {file.mode}; save ids instead")
    ids = open_labels(path)
    if ids.max() >= IGNORE_ID:
        raise ValueError(f"{path}: expected ids 0..254, got ids up to {ids.max()}; renumber the mask")
    if ids.shape[::-1] != image.size:
        raise ValueError(f"{path}: expected the image's size {image.size} (width, height), got {ids.shape[::-1]}")
    return np.where(ids == IGNORE, IGNORE_ID, ids).astype(np.uint8)
