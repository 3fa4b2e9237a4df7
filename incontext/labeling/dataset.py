"""All images of a job together: the files of a whole dataset, made of the masks and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from incontext.export.formats import FORMATS
from incontext.export.labelled import LabelledImage
from incontext.labeling.image_writer import ImageWriter
from incontext.labeling.manifest import Row


def write_dataset(rows: Sequence[Row], writer: ImageWriter) -> None:
    """Writes those files of every format that tell of all images, each whole or not at all.

    Masks are read one at a time, so memory does not grow with them.

    Args:
        rows: of the finished images, in the dataset's order.
        writer: what it is to write to, and in which formats.

    Raises:
        ImageError: a mask is gone or broken.
        OSError: the folder cannot be written to.
    """

    def items() -> Iterator[LabelledImage]:
        yield from map(writer.item, rows)

    for name in writer.formats:
        FORMATS[name].finish(items(), writer.out / name, writer.names)
