"""What a label job has to do: which images have no mask yet, or one that is out of date."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from incontext.labeling.fingerprints import labels_fingerprint
from incontext.labeling.inputs import Input
from incontext.labeling.manifest import Recipe, Row
from incontext.labeling.reading import Task

MASKS = "masks"


@dataclass(frozen=True, eq=False)
class Plan:
    """The images of a job, and what their masks are to be made with.

    Attributes:
        inputs: the images.
        out: the output folder.
        recipe: of all masks but corrected ones.
        formats: the fingerprint of what is to be in other formats; see `ImageWriter.fingerprint`.
        corrections: an input's `file_name` -> labels int32 (H, W) that a person corrected.

    Raises:
        ValueError: two images would have one name in the dataset, or an image lies where its mask would.
    """

    inputs: Sequence[Input]
    out: Path
    recipe: Recipe
    formats: str
    corrections: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        taken: dict[str, Path] = {}
        masks = (self.out / MASKS).resolve()
        for each in self.inputs:
            other = taken.setdefault(each.file_name, each.path)
            if other is not each.path:
                raise ValueError(
                    f"expected images of different names, but {other} and {each.path} would both be "
                    f"{each.file_name}; give the folder that holds both"
                )
            if masks in each.path.resolve().parents:
                raise ValueError(f"{each.path} lies among the masks to be written; choose another output folder")

    def task(self, image: Input, rows: Mapping[str, Row]) -> Task | None:
        """What is to be done with an image, given what was done; None where nothing is.

        An image whose size and time of change are those of the manifest counts as the same. Else its content
        decides, when it is read.
        """
        row = self.finished(image, rows)
        if row is not None and row.formats == self.formats:
            try:
                info = os.stat(image.path)
            except OSError:
                pass  # reading it will say why
            else:
                if (row.bytes, row.modified) == (info.st_size, info.st_mtime_ns):
                    return None
        return Task(
            image=image.file_name,
            path=image.path,
            start=image.start,
            mask=self._mask(image),
            recipe=self._recipe(image),
            correction=self.corrections.get(image.file_name),
            finished=row,
        )

    def finished(self, image: Input, rows: Mapping[str, Row]) -> Row | None:
        """The row of an image's mask, if it is there and made with the right recipe."""
        row = rows.get(image.file_name)
        if row is None or not row.done or row.recipe != self._recipe(image) or row.mask != self._mask(image):
            return None
        try:
            return row if os.stat(self.out / row.mask).st_size else None  # the power went
        except OSError:
            return None

    def open_tasks(self, rows: Mapping[str, Row]) -> Iterator[tuple[Input, Task]]:
        """The images that something is to be done with."""
        for image in self.inputs:
            if (task := self.task(image, rows)) is not None:
                yield image, task

    def _mask(self, image: Input) -> str:
        return f"{MASKS}/{image.name.as_posix()}.png"

    def _recipe(self, image: Input) -> Recipe:
        labels = self.corrections.get(image.file_name)
        return self.recipe if labels is None else Recipe("", labels_fingerprint(labels), "")
