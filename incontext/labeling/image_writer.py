"""One image's way out of a label job: its mask, its files in other formats, its row in the manifest."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from incontext.export.formats import FORMATS
from incontext.export.labelled import LabelledImage, split_instances
from incontext.export.raster import write_indexed
from incontext.image import open_labels
from incontext.labeling.calibration import expected_ious, image_score
from incontext.labeling.fingerprints import fingerprint_of
from incontext.labeling.labeller import Labelled
from incontext.labeling.manifest import Row
from incontext.labeling.reading import Reading, cannot_write

_BAD_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # one image's name does not fit the disk


@dataclass(frozen=True, eq=False)
class ImageWriter:
    """Writes what belongs to single images, each file whole or not at all. May be used in several threads.

    Attributes:
        out: the output folder.
        names: class id -> name.
        formats: names in `FORMATS`.
        instances, min_area: see `LabelConfig`.
    """

    out: Path
    names: Mapping[int, str]
    formats: tuple[str, ...] = ()
    instances: bool = False
    min_area: int = 0

    @property
    def fingerprint(self) -> str:
        """Of what `write` leaves in other formats."""
        names = {str(id): name for id, name in sorted(self.names.items())}
        return fingerprint_of([sorted(self.formats), self.instances, self.min_area, names])

    def write(self, reading: Reading, labelled: Labelled | None = None) -> Row:
        """Writes one image's files.

        Args:
            reading: what was read.
            labelled: what the model says, if it was asked.

        Returns:
            The row for the manifest, of a failed image too.

        Raises:
            JobStopped: the folder cannot be written to.
        """
        task = reading.task
        row = Row(
            image=task.image,
            status="failed",
            recipe=task.recipe,
            sha256=reading.sha256,
            bytes=reading.bytes,
            modified=reading.modified,
            error=reading.error,
        )
        if reading.error is not None:
            return row
        try:
            if reading.standing is not None:
                row = replace(reading.standing, bytes=reading.bytes, modified=reading.modified)
                if row.formats != self.fingerprint:
                    self._write_formats(self.item(row))
                return replace(row, formats=self.fingerprint)
            row = replace(row, status="done", mask=task.mask, formats=self.fingerprint)
            if labelled is None:
                labels = task.correction
                ids = tuple(int(id) for id in np.unique(labels) if id > 0)
                row = replace(row, corrected=True, scores=dict.fromkeys(ids, 1.0), score=1.0)
            else:
                segmentation = labelled.segmentation
                labels, ious = segmentation.labels, expected_ious(segmentation)
                ids = tuple(ious)
                scores = {id: round(iou, 4) for id, iou in ious.items()}
                row = replace(row, scores=scores, score=round(image_score(segmentation, ious), 4))
                if labelled.wholeness is not None:
                    row = replace(row, wholeness=round(labelled.wholeness, 4))
                if labelled.disagreement is not None:
                    row = replace(row, disagreement=round(labelled.disagreement, 4))
            row = replace(row, size=labels.shape, ids=ids)
            write_indexed(self.out / task.mask, labels)
            self._write_formats(self._item(row, labels))
        except ValueError as error:
            return replace(row, status="failed", mask=None, error=f"{task.path}: its labels cannot be written: {error}")
        except OSError as error:
            if error.errno in _BAD_NAME:
                return replace(row, status="failed", mask=None, error=f"{task.path}: its name cannot be used: {error}")
            raise cannot_write(self.out, error) from error
        return replace(row, seconds=round(time.perf_counter() - reading.started, 4))

    def item(self, row: Row) -> LabelledImage:
        """A finished image as the formats take it, read back from its mask.

        Raises:
            ImageError: the mask is gone or broken.
        """
        return self._item(row, open_labels(self.out / row.mask))

    def _item(self, row: Row, labels: np.ndarray) -> LabelledImage:
        item = LabelledImage(row.image, labels, self.names, row.scores)
        return split_instances(item, self.min_area) if self.instances else item

    def _write_formats(self, item: LabelledImage) -> None:
        for name in self.formats:
            FORMATS[name].write_image(item, self.out / name)
