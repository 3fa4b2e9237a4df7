"""A pack: images with masks as one file that loads fast and travels well.

One safetensors file holds all WebP and PNG bytes in one tensor; its metadata says where each record lies. Packs are the
only thing the training loop reads, so that every source becomes episodes the same way; `pack_writer` writes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

FORMAT = "incontext-pack-1"
IGNORE_ID = 255  # as stored in the masks of the folders and of the pack
LARGEST_ID = 254


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


@dataclass(frozen=True)
class Traits:
    """What is special about the ids of a set.

    Attributes:
        segments: ids number the segments or objects of one image or video, and mean nothing in another.
        handed: classes tell left from right, so the views of an episode are mirrored together or not at all.
    """

    segments: bool = False
    handed: bool = False


@dataclass
class Entry:
    """Where a record lies in a pack, and what is known of it without opening it.

    Attributes:
        set, name: which record it is.
        image, labels, instances: (start, stop) in the pack's bytes.
        classes: id (as text, for JSON) -> share of the image's pixels, 0..1.
        video: the video that the image is a frame of, or empty. Frames stand in their order in time.
    """

    set: str
    name: str
    image: tuple[int, int]
    labels: tuple[int, int] | None = None
    instances: tuple[int, int] | None = None
    classes: dict[str, float] = field(default_factory=dict)
    video: str = ""


class Pack:
    """A read-only pack. Worker processes open the file anew instead of receiving its bytes.

    Attributes:
        path: the file.
        sets: the name of each set -> indexes of its records.
        digest: tells another pack from this one, by what is known of the records without opening them.
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
                self._entries = [Entry(**entry) for entry in json.loads(metadata["entries"])]
                self._traits = {name: Traits(**each) for name, each in json.loads(metadata.get("traits", "{}")).items()}
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.path}: expected a pack written by `incontext train pack` ({FORMAT}), got another file: {error}"
            ) from error
        self.digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
        self.sets: dict[str, list[int]] = {}
        for index, entry in enumerate(self._entries):
            self.sets.setdefault(entry.set, []).append(index)

    def __reduce__(self) -> tuple:
        return Pack, (self.path,)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Returns `SET/STEM` of a record."""
        return f"{self._entries[index].set}/{self._entries[index].name}"

    def video(self, index: int) -> str:
        """Returns the name of the video that a record is a frame of; empty for a still image."""
        return self._entries[index].video

    def traits(self, name: str) -> Traits:
        """Returns what is special about the ids of a set. Packs from before traits were stored tell by the name."""
        return self._traits.get(name) or usual_traits(name)

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


def usual_traits(name: str) -> Traits:
    """Returns what the name of a well-known set tells: BSDS numbers segments, car parts tell left from right."""
    return Traits(segments=name.startswith("bsds"), handed=name.startswith("car_parts"))
