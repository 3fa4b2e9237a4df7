"""Masks that a person corrected: they are what their images show, and examples for all others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from incontext.image import ImageError, find_colours, open_image, open_labels
from incontext.labeling.inputs import SUFFIXES, Input
from incontext.types import Example

_log = logging.getLogger(__name__)


def open_corrections(folder: Path, inputs: Sequence[Input], names: Mapping[int, str]) -> dict[str, Example]:
    """Opens the corrected masks of a folder.

    Args:
        folder: a mask is called like the one in OUT/masks that it corrects, below this folder; with any suffix of an
            image. All background says that there is nothing to find.
        inputs: the images of the job. Masks of others are left out, with a warning.
        names: class id -> name.

    Returns:
        An input's `file_name` -> its image and corrected labels, sorted.

    Raises:
        ImageError: a mask or its image cannot be read, or their sizes differ.
    """
    masks = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    }
    wanted = {each.name.as_posix(): each for each in inputs}
    if unknown := sorted(masks.keys() - wanted.keys()):
        _log.warning("%s: %d corrected masks have no image in this job, such as %s", folder, len(unknown), unknown[0])
    masks = {name: path for name, path in masks.items() if name in wanted}
    colours = find_colours(masks.values())
    corrections = {}
    for name, path in masks.items():
        image, labels = open_image(wanted[name].path), open_labels(path, colours=colours)
        if labels.shape != image.shape[:2]:
            raise ImageError(
                f"{path}: expected a mask of size {image.shape[:2]} like its image {wanted[name].path}, "
                f"got {labels.shape}; save it at the image's own size"
            )
        shown = {int(id): text for id, text in names.items()}
        corrections[wanted[name].file_name] = Example(image, labels, shown)
    return corrections
