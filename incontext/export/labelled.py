"""What goes into files and comes out of them: one image's labels, with names, scores and single objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from scipy import ndimage

from incontext.types import IGNORE


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image's labels, without the image.

    Attributes:
        file_name: the image's path below the folder of all images, with "/" between folders.
        labels: int32 (H, W): 0 background, `IGNORE`, class ids >= 1.
        names: class id -> name; may be partial. `name` gives "class ID" where one is missing.
        scores: class id -> 0..1; may be empty.
        instances: int32 (H, W): 0 none, objects 1..K, each inside one class; None where objects were not told
            apart.
        instance_classes: object -> class id, for every object. Taken from the labels where it is empty.
        instance_scores: object -> 0..1; may be empty.

    Raises:
        ValueError: the file name is absolute or leads out of its folder, shapes differ, a label is below
            `IGNORE`, or an object lies in several classes or outside all.
    """

    file_name: str
    labels: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    instances: np.ndarray | None = None
    instance_classes: Mapping[int, int] = field(default_factory=dict)
    instance_scores: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file_name", _check_file_name(self.file_name))
        labels = np.asarray(self.labels)
        if labels.ndim != 2 or labels.dtype.kind not in "biu" or not labels.size:
            raise ValueError(f"{self.file_name}: expected integer labels (H, W), got {labels.dtype} {labels.shape}")
        if labels.min() < IGNORE:
            raise ValueError(f"{self.file_name}: expected labels from {IGNORE} on, got {labels.min()}")
        object.__setattr__(self, "labels", labels.astype(np.int32, copy=False))
        object.__setattr__(self, "names", {int(i): str(name) for i, name in self.names.items()})
        object.__setattr__(self, "scores", {int(i): float(score) for i, score in self.scores.items()})
        if self.instances is None:
            if self.instance_classes or self.instance_scores:
                raise ValueError(f"{self.file_name}: expected instances with their classes and scores, got none")
            return
        instances = np.asarray(self.instances)
        if instances.shape != labels.shape or instances.dtype.kind not in "biu" or instances.min() < 0:
            raise ValueError(
                f"{self.file_name}: expected instances {labels.shape} of integers >= 0, "
                f"got {instances.dtype} {instances.shape}"
            )
        object.__setattr__(self, "instances", instances.astype(np.int32, copy=False))
        object.__setattr__(self, "instance_classes", _classes_of_objects(self))
        object.__setattr__(self, "instance_scores", {int(k): float(s) for k, s in self.instance_scores.items()})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.labels.shape

    @property
    def ids(self) -> tuple[int, ...]:
        """The class ids that occur in the labels, sorted."""
        return tuple(int(i) for i in np.unique(self.labels) if i > 0)

    def name(self, id: int) -> str:
        """The class's name, or "class ID" where it has none."""
        return self.names.get(id) or f"class {id}"

    def objects(self) -> Iterator[LabelledObject]:
        """The single objects, in order; where they were not told apart, each class as one object."""
        if self.instances is None:
            for id in self.ids:
                yield LabelledObject(id, self.labels == id, self.scores.get(id))
            return
        for number, box in enumerate(ndimage.find_objects(self.instances), start=1):
            if box is not None:
                mask = np.zeros(self.size, bool)
                mask[box] = self.instances[box] == number
                id = self.instance_classes[number]
                yield LabelledObject(id, mask, self.instance_scores.get(number, self.scores.get(id)))

    @classmethod
    def from_objects(
        cls, file_name: str, size: tuple[int, int], objects: Iterable[LabelledObject], names: Mapping[int, str]
    ) -> LabelledImage:
        """Lays objects on top of each other, the first at the bottom.

        Args:
            file_name: see `LabelledImage`.
            size: (H, W).
            objects: their masks have that size and may overlap. One whose id is 0 or `IGNORE` hides what is under
                it and is no object itself; one that is hidden entirely is left out.
            names: class id -> name.
        """
        labels, instances = np.zeros(size, np.int32), np.zeros(size, np.int32)
        laid = list(objects)
        for number, thing in enumerate(laid, start=1):
            labels[thing.mask] = thing.id
            instances[thing.mask] = number if thing.id > 0 else 0
        seen = np.unique(instances[instances > 0])
        instances = np.where(instances > 0, np.searchsorted(seen, instances) + 1, 0)
        laid = [laid[number - 1] for number in seen]
        classes = {k: thing.id for k, thing in enumerate(laid, start=1)}
        scores = {k: thing.score for k, thing in enumerate(laid, start=1) if thing.score is not None}
        best: dict[int, float] = {}
        for k, score in scores.items():
            best[classes[k]] = max(score, best.get(classes[k], 0.0))
        return cls(file_name, labels, names, best, instances, classes, scores)

    def __repr__(self) -> str:
        objects = "" if self.instances is None else f", objects={len(self.instance_classes)}"
        return f"LabelledImage({self.file_name!r}, size={self.size}, ids={self.ids}{objects})"


@dataclass(frozen=True, eq=False)
class LabelledObject:
    """One object of an image, or all of one class.

    Attributes:
        id: class id.
        mask: bool (H, W), at least one pixel.
        score: 0..1, or None.
    """

    id: int
    mask: np.ndarray
    score: float | None = None


def largest_first(objects: Iterable[LabelledObject]) -> list[LabelledObject]:
    """For formats that say nothing of what lies on top: small objects stay visible on large ones."""
    return sorted(objects, key=lambda thing: -int(thing.mask.sum()))


def split_instances(labelled: LabelledImage, min_area: int = 0) -> LabelledImage:
    """Makes every connected part of a class an object of its own. Diagonal neighbours are connected.

    SegGPT tells classes apart, not objects: two cells that touch are one part here.

    Args:
        labelled: the labels; objects that it has are forgotten.
        min_area: parts with fewer pixels than this become background.

    Returns:
        Objects numbered by class id, then from top to bottom; each takes its class's score.
    """
    labels, count = labelled.labels.copy(), 0
    instances = np.zeros(labelled.size, np.int32)
    classes: dict[int, int] = {}
    for id in labelled.ids:
        parts, found = ndimage.label(labelled.labels == id, structure=np.ones((3, 3), bool))
        keep = np.bincount(parts.ravel(), minlength=found + 1) >= max(min_area, 1)
        keep[0] = False
        numbers = np.where(keep, keep.cumsum() + count, 0).astype(np.int32)
        inside = parts > 0
        instances[inside] = numbers[parts[inside]]
        labels[inside & (instances == 0)] = 0
        classes |= {number: id for number in range(count + 1, count + int(keep.sum()) + 1)}
        count += int(keep.sum())
    scores = {number: labelled.scores[id] for number, id in classes.items() if id in labelled.scores}
    return replace(labelled, labels=labels, instances=instances, instance_classes=classes, instance_scores=scores)


def _check_file_name(name: str) -> str:
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"file_name: expected a path below the folder of images such as 'a/b.jpg', got {name!r}")
    return str(path)


def _classes_of_objects(labelled: LabelledImage) -> dict[int, int]:
    """Object -> class id, checked against the labels."""
    inside = labelled.instances > 0
    pairs = np.unique(np.stack([labelled.instances[inside], labelled.labels[inside]]), axis=1)
    objects, classes = pairs.tolist()
    found = dict(zip(objects, classes, strict=True))
    stated = {int(k): int(id) for k, id in labelled.instance_classes.items()}
    wrong = [k for k, id in zip(objects, classes, strict=True) if id <= 0 or stated.get(k, id) != id]
    if len(found) < len(objects) or wrong:
        number = wrong[0] if wrong else next(k for k in objects if objects.count(k) > 1)
        raise ValueError(
            f"{labelled.file_name}: expected every object inside its own class, but object {number} "
            f"covers labels {[id for k, id in zip(objects, classes, strict=True) if k == number]}"
        )
    return found
