"""Masks that a person corrected: they are what their images show, and examples for all others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from incontext.colour_masks import Rgb
from incontext.image import ImageError, find_colours, open_image, open_labels
from incontext.labeling.inputs import SUFFIXES, Input
from incontext.palette import voc_colours
from incontext.shades import NEAR, squared_distances
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
        ImageError: a mask or its image cannot be read, their sizes differ, or its colours may mean several classes.
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
    colours = _known_colours(folder, find_colours(masks.values()), names)
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


def check_classes(corrections: Mapping[str, Example], names: Mapping[int, str], before: Mapping[int, str]) -> None:
    """Makes sure that the ids in corrected masks still mean what they did when these were made.

    Args:
        corrections: see `open_corrections`.
        names: class id -> name, of this run.
        before: the same of the last run into this folder.

    Raises:
        ValueError: an id that a correction shows has become another class.
    """
    for image, example in corrections.items():
        for id in example.ids:
            was, now = before.get(id), names.get(id)
            if was is not None and was != now:
                raise ValueError(
                    f"the corrected mask of {image}: expected id {id} to be {was!r}, as in the last run, got {now!r}; "
                    "give the examples in the order of that run, or fix the ids of their classes with names"
                )


def _known_colours(folder: Path, colours: Mapping[int, Rgb], names: Mapping[int, str]) -> Mapping[int, Rgb]:
    """The colours of corrected masks, if there is no doubt about which class each is: they are those of the masks in
    OUT/masks, or there are as many as classes."""
    objects = {id: colour for id, colour in colours.items() if id > 0}
    usual = voc_colours()
    if len(objects) == len(names) or all(
        squared_distances(usual[id, None], np.array([colour])) <= NEAR**2 for id, colour in objects.items()
    ):
        return colours
    raise ImageError(
        f"{folder}: expected corrected masks with the colours of those in masks/, or with one for each of the "
        f"{len(names)} classes, got {len(objects)} others ({', '.join(str(tuple(c)) for c in objects.values())}); "
        "save them as indexed or grey PNG, with class ids as values"
    )
