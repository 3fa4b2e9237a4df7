"""The values that travel through the project: an example, and a segmentation.

Axes: H, W pixels. Sizes are always (H, W), images always RGB. Labels are integers per pixel: 0 is background,
ids are 1 and up, and `IGNORE` marks pixels that count neither as background nor as an object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

IGNORE = -1

_COUNTED = 1 << 16  # ids below this are counted in a table of all of them


@dataclass(frozen=True, eq=False)
class Example:
    """One picture with its mask: what the user shows. What is found in its arrays is kept, so they must not change.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        labels: int32 (H, W); 0 background, `IGNORE`, ids >= 1. Other integer and bool arrays are converted.
        names: id -> name, for people; may be empty or partial.

    Raises:
        TypeError: an array has the wrong type.
        ValueError: shapes don't fit each other, or a label is below `IGNORE`.
    """

    image: np.ndarray
    labels: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rgb("image", self.image)
        object.__setattr__(self, "labels", _as_labels(self.labels, self.image.shape[:2]))
        object.__setattr__(self, "names", _as_names(self.names))

    @classmethod
    def open(
        cls,
        image: Any,
        mask: Any,
        names: Mapping[int, str] | None = None,
        colours: Mapping[int, Sequence[int]] | None = None,
    ) -> Example:
        """Reads a picture and its mask.

        Args:
            image: path, PIL image or array; see `incontext.image.open_image`.
            mask: path, PIL image or array of the same size; see `incontext.image.open_labels`.
            names: id -> name.
            colours: id -> (r, g, b), for a mask that is coded in colours; found in the mask where it is not
                given.

        Raises:
            ImageError: a file cannot be read, the sizes differ, or the mask holds no object.
        """
        return cls.open_many([(image, mask)], names=names, colours=colours)[0]

    @classmethod
    def open_many(
        cls,
        pairs: Sequence[tuple[Any, Any]],
        names: Mapping[int, str] | None = None,
        colours: Mapping[int, Sequence[int]] | None = None,
    ) -> list[Example]:
        """Reads several pictures with their masks, so that one colour means one id in all of them.

        Args:
            pairs: (image, mask) pairs; see `open`.
            names: id -> name, for all of them.
            colours: id -> (r, g, b), for masks that are coded in colours; found in all the masks together
                where it is not given.

        Raises:
            ImageError: see `open`.
        """
        # They need IGNORE from here, so these imports cannot stand at the top.
        from incontext.image import find_colours, open_image, open_labels
        from incontext.picture_file import ImageError, describe

        if colours is None:
            colours = find_colours([mask for _, mask in pairs])
        examples = []
        for image, mask in pairs:
            pixels = open_image(image)
            labels = open_labels(mask, colours=colours)
            if labels.shape != pixels.shape[:2]:
                raise ImageError(_size_mismatch(describe(image), pixels.shape[:2], describe(mask), labels.shape))
            if not (labels > 0).any():
                raise ImageError(
                    f"{describe(mask)}: expected at least one object, got a mask that is all background; "
                    "paint the object with a value or a colour that isn't 0 (black)"
                )
            examples.append(cls(pixels, labels, names or {}))
        return examples

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids that occur in the labels, sorted."""
        return ids_in(self.labels)

    @cached_property
    def is_background(self) -> bool:
        """Whether it shows background and nothing else, but for pixels of which nothing is known."""
        return not self.ids and bool((self.labels == 0).any())

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.labels.shape

    def __repr__(self) -> str:
        return f"Example(size={self.size}, ids={self.ids})"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model sees in one query.

    Attributes:
        labels: int32 (H, W); 0 background, ids >= 1.
        confidence: float32 (H, W) in 0..1: how sure each pixel's label is.
        painting: uint8 (H, W, 3): the colours that the model painted, before decoding.
        scores: id -> 0..1, how sure each id is as a whole.
        names: id -> name, for people.

    Raises:
        TypeError: an array has the wrong type.
        ValueError: shapes don't fit each other, or a label is below `IGNORE`.
    """

    labels: np.ndarray
    confidence: np.ndarray
    painting: np.ndarray
    scores: Mapping[int, float] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rgb("painting", self.painting)
        size = self.painting.shape[:2]
        object.__setattr__(self, "labels", _as_labels(self.labels, size))
        confidence = np.asarray(self.confidence)
        if not np.issubdtype(confidence.dtype, np.floating):
            raise TypeError(f"confidence: expected floats in 0..1, got {confidence.dtype}")
        if confidence.shape != size:
            raise ValueError(f"confidence: expected shape {size} like the painting, got {confidence.shape}")
        object.__setattr__(self, "confidence", confidence.astype(np.float32, copy=False))
        object.__setattr__(self, "scores", {int(i): float(score) for i, score in self.scores.items()})
        object.__setattr__(self, "names", _as_names(self.names))

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that occur in the labels, sorted."""
        return ids_in(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.labels.shape

    def mask(self, id: int) -> np.ndarray:
        """Where one id is: bool (H, W), all False where the id does not occur."""
        return self.labels == id

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`: one detection for each id, with its mask, box, score as confidence,
        and name in `data["class_name"]`. Needs the package supervision.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        if not self.ids:
            return supervision.Detections.empty()
        masks = np.stack([self.mask(id) for id in self.ids])
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            confidence=np.array([self.scores.get(id, np.nan) for id in self.ids], np.float32) if self.scores else None,
            class_id=np.array(self.ids),
            data={"class_name": np.array([self.names.get(id, f"class {id}") for id in self.ids])},
        )

    def __repr__(self) -> str:
        return f"Segmentation(size={self.size}, ids={self.ids})"


def ids_in(labels: np.ndarray) -> tuple[int, ...]:
    """The ids that occur in integer labels, sorted."""
    if labels.max(initial=0) < _COUNTED:  # counting is many times faster than sorting
        return tuple((np.flatnonzero(np.bincount(np.maximum(labels, 0).ravel())[1:]) + 1).tolist())
    return tuple(np.unique(labels[labels > 0]).tolist())


def _check_rgb(what: str, image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"{what}: expected a uint8 array (H, W, 3), got {got}; read files with incontext.open_image")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{what}: expected shape (H, W, 3), got {image.shape}")


def _as_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biu":
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"labels: expected an integer array (H, W), got {got}; read files with incontext.open_labels")
    if labels.shape != size:
        raise ValueError(f"labels: expected shape {size} like the image, got {labels.shape}")
    if labels.min() < IGNORE or labels.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"labels: expected 0 (background), {IGNORE} (ignore) or ids from 1 on, "
            f"got values from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int32, copy=False)


def _as_names(names: Mapping[int, str]) -> dict[int, str]:
    for key, name in names.items():
        if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not isinstance(name, str):
            raise TypeError(f"names: expected ids with their names such as {{1: 'cell'}}, got {key!r}: {name!r}")
    return {int(key): name for key, name in names.items()}


def _size_mismatch(image: str, size: tuple[int, int], mask: str, mask_size: tuple[int, int]) -> str:
    message = (
        f"{mask}: expected a mask of {size[1]} x {size[0]} pixels (width x height) like its image {image}, "
        f"got {mask_size[1]} x {mask_size[0]}"
    )
    if mask_size == size[::-1]:
        return (
            f"{message}; it lies on its side: EXIF orientation is applied to images, "
            "so draw the mask on the image as viewers show it, or turn the mask by 90 degrees"
        )
    return f"{message}; export the mask at the image's own size"
