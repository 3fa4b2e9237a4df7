"""Where examples come from: folders of images and masks, COCO, labelme and other datasets, merged by class name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from incontext.colour_masks import Rgb
from incontext.export.class_table import CLASS_IDS
from incontext.export.documents import FormatError, parsing, read_json
from incontext.export.file_names import find_files
from incontext.export.formats import FORMATS
from incontext.export.labelled import LabelledImage
from incontext.image import find_colours, open_image
from incontext.labeling.example_pairs import find_pairs, holds_masks, read_class_names
from incontext.labelled_folders import SetError, SetMasks
from incontext.shades import NEAR, squared_distances
from incontext.types import IGNORE, Example

_MARKS = {
    **{FORMATS[name].document: name for name in ("coco", "coco-panoptic", "cvat", "label-studio", "yolo")},
    "SegmentationClass": "voc",
}
"""What a folder holds -> the format that it is in."""

_NAMES = ("classes.json", CLASS_IDS)
"""JSON beside labels that only names classes."""


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """Examples with one table of classes.

    Attributes:
        examples: in the order of their sources; each holds all of `names`.
        names: class id -> name.
        paths: each example's image.
        masks: files of masks.
        renumbered: source -> {class id in it: class id here}, for classes whose id changed.

    Goes wherever examples go: iterating over it gives them.
    """

    examples: tuple[Example, ...]
    names: Mapping[int, str]
    paths: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    renumbered: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def open_examples(
    sources: str | os.PathLike | Sequence[str | os.PathLike], names: Mapping[int, str] | None = None
) -> ExampleSet:
    """Opens examples.

    A source is

    - a folder of images and masks: images/a.jpg with masks/a.png, or a.jpg beside a.png or a_mask.png, in any depth;
      masks as `incontext.open_labels` reads them, names from classes.txt or classes.json in the folder;
    - a COCO JSON file, polygons or RLE; images beside it, in images/, or in a folder next to its own; or a folder that
      holds one, under any name, and no masks;
    - a labelme JSON file, or a folder of them beside their images;
    - a dataset in another format of `incontext.export.formats`.

    Classes of several sources are the same where their names are. A class keeps its id where that is free, else it
    gets the next free one. Images that show no object are passed over, but for masks, where that is an error.

    Args:
        sources: one or several paths.
        names: class id -> name, for classes that sources give no name, and to fix ids.

    Raises:
        FormatError: a source is missing or broken, holds no example, or leaves open which class is which.
        ImageError: an image or a mask cannot be used.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    if not sources:
        raise FormatError("examples: expected at least one folder or file, got none")
    opened = [_open(Path(source).expanduser()) for source in sources]
    table, mappings = _merge_classes(opened, {int(id): str(name) for id, name in (names or {}).items()})
    examples = [
        Example(example.image, _renumber(example.labels, mapping), table)
        for source, mapping in zip(opened, mappings, strict=True)
        for example in source.examples
    ]
    renumbered = {
        str(source.path): {old: new for old, new in mapping.items() if old != new}
        for source, mapping in zip(opened, mappings, strict=True)
    }
    return ExampleSet(
        examples=tuple(examples),
        names=table,
        paths=tuple(path for source in opened for path in source.images),
        masks=tuple(path for source in opened for path in source.masks),
        renumbered={source: changes for source, changes in renumbered.items() if changes},
    )


@dataclass(frozen=True, eq=False)
class _Source:
    """One source with ids of its own; `names` may lack some that its labels have.

    Its masks, if it has any, may be coded in `colours`.
    """

    path: Path
    images: list[Path]
    examples: list[Example]
    names: Mapping[int, str]
    masks: Sequence[Path] = ()
    colours: Mapping[int, Rgb] = field(default_factory=dict)

    @property
    def unnamed(self) -> list[int]:
        """Ids that occur and have no name."""
        return sorted({id for example in self.examples for id in example.ids} - self.names.keys())


def _open(path: Path) -> _Source:
    if not path.exists():
        raise FormatError(f"{path}: expected a folder of examples or a JSON file, but there is none; check the path")
    if path.is_dir():
        path, format = _recognise(path)
    else:
        format = _format_of_file(path)
    if format is None:
        names = read_class_names(path)
        pairs = find_pairs(path)
        images, masks = (list(each) for each in zip(*pairs, strict=True))
        colours = find_colours(masks)
        examples = Example.open_many(pairs, colours=colours)
        together = SetMasks(tuple(masks))
        examples = [_unknown_where_255(*each, together) for each in zip(examples, masks, strict=True)]
        return _Source(path, images, examples, names, masks, colours)
    images, examples, names = [], [], {}
    for item in FORMATS[format].read(path):
        names |= item.names
        if item.ids:
            images.append(_find_image(path, item))
            examples.append(_example(images[-1], item))
    if not examples:
        raise FormatError(f"{path}: expected images with at least one object, found none; label some first")
    return _Source(path, images, examples, names)


def _unknown_where_255(example: Example, mask: Path, together: SetMasks) -> Example:
    """An example whose mask holds but 0 and 255: object 1, unless other masks show that 255 says nothing is known."""
    if example.ids != (1,) or (example.labels == IGNORE).any():
        return example
    try:
        unknown = together.unknown_in(mask)
    except SetError:  # colours
        return example
    if unknown is None:
        return example
    labels = np.where(unknown, np.int32(IGNORE), example.labels)
    if not (labels > 0).any():
        raise FormatError(
            f"{mask}: expected at least one object, got 0 and 255 alone, which is 'unknown' as other masks have ids; "
            "leave the mask and its image out"
        )
    return Example(example.image, labels, example.names)


def _recognise(folder: Path) -> tuple[Path, str | None]:
    """What to read in a folder, and its format; None for plain images and masks.

    JSON that holds no labels, such as settings, is passed over.
    """
    for mark, format in _MARKS.items():
        if (folder / mark).exists():
            return folder, format
    documents = []
    for file in find_files(folder, ".json"):
        format = None if file.name in _NAMES else _format_of_document(file)
        if format == "labelme":
            return folder, format
        if format and file.parent == folder:
            documents.append((file, format))
    if not documents or holds_masks(folder):
        return folder, None
    if len(documents) > 1:
        listed = ", ".join(file.name for file, _ in documents)
        raise FormatError(f"{folder}: expected one file of labels, found {listed}; give the files themselves")
    return documents[0]


def _format_of_file(file: Path) -> str:
    if file.suffix.lower() == ".xml":
        return "cvat"
    if file.suffix.lower() != ".json":
        raise FormatError(f"{file}: expected a folder of images and masks, or a COCO or labelme JSON file")
    format = _format_of_document(file)
    if format is None:
        raise FormatError(f"{file}: expected COCO (images, annotations) or labelme (shapes), got other JSON")
    return format


def _format_of_document(file: Path) -> str | None:
    """The format of a JSON file; None where it holds no labels."""
    document = read_json(file)
    if isinstance(document, list) and document and all(isinstance(task, dict) and "data" in task for task in document):
        return "label-studio"
    if isinstance(document, dict) and "shapes" in document:
        return "labelme"
    if isinstance(document, dict) and "images" in document and "annotations" in document:
        with parsing(file, "a list of annotations"):
            segments = any("segments_info" in annotation for annotation in document["annotations"])
        return "coco-panoptic" if segments else "coco"
    return None


def _find_image(source: Path, item: LabelledImage) -> Path:
    """The image that a dataset names: in its folder, in images/, or in a folder beside."""
    folder = source if source.is_dir() else source.parent
    places = [folder, folder / "images", folder / "JPEGImages", folder.parent, folder.parent / "images"]
    for place in (*places, *sorted(p for p in folder.parent.iterdir() if p.is_dir())):
        if (place / item.file_name).is_file():
            return place / item.file_name
    raise FormatError(
        f"{source}: expected its image {item.file_name} in {folder}, in {folder / 'images'} or in a folder beside, "
        "found none; move or link the images there"
    )


def _example(path: Path, item: LabelledImage) -> Example:
    image = open_image(path)
    if image.shape[:2] != item.size:
        raise FormatError(
            f"{path}: expected the size (H, W) {item.size} that its labels have, got {image.shape[:2]}; "
            "an image that was turned or resized after labelling has to be labelled again"
        )
    return Example(image, item.labels, item.names)


def _merge_classes(sources: Sequence[_Source], names: Mapping[int, str]) -> tuple[dict[int, str], list[dict[int, int]]]:
    """One table of classes for all sources.

    Returns:
        Class id -> name; and for each source, its ids -> the table's.
    """
    _check_given_names(sources, names)
    sources = [
        replace(each, names={id: names[id] for id in each.unnamed if id in names} | each.names) for each in sources
    ]
    _check_colours(sources)
    nameless = {id for source in sources for id in source.unnamed}
    table = dict(names)
    ids = {name: id for id, name in table.items()}
    mappings: list[dict[int, int]] = []
    for source in sources:
        mapping = {}
        for id, name in sorted(source.names.items()):
            if name not in ids:
                free = id if id not in table else _next_free(table.keys() | nameless)
                table[free], ids[name] = name, free
            mapping[id] = ids[name]
        mappings.append(mapping)
    for source, mapping in zip(sources, mappings, strict=True):
        for id in source.unnamed:
            if id in table:
                raise FormatError(
                    f"{source.path}: expected a name for id {id}, which is {table[id]!r} elsewhere and may be another "
                    "class here; add a classes.txt with lines 'ID NAME' to the folder"
                )
            mapping[id] = id
    return table, mappings


def _check_given_names(sources: Sequence[_Source], names: Mapping[int, str]) -> None:
    if len(set(names.values())) < len(names) or min(names, default=1) < 1:
        raise FormatError(f"names: expected distinct names for ids from 1 on, got {dict(names)}")
    known = {name for source in sources for name in source.names.values()}
    for source in sources:
        for id, name in names.items():
            if id in source.names and name not in known:
                raise FormatError(
                    f"names: expected a class of {source.path} for id {id}, which it calls {source.names[id]!r}, "
                    f"got {name!r}; change the name there, or leave it out here"
                )


def _check_colours(sources: Sequence[_Source]) -> None:
    """Ids without names are counted from the colours of one source: in another they may be other colours."""
    colours: dict[int, tuple[Rgb, _Source]] = {}
    for source in sources:
        for id in source.unnamed:
            if id not in source.colours:
                continue
            colour, first = colours.setdefault(id, (source.colours[id], source))
            if squared_distances(*np.array([[colour], [source.colours[id]]])) > NEAR**2:
                raise FormatError(
                    f"{source.path}: expected the colours of {first.path}, whose id {id} is {colour}, got "
                    f"{source.colours[id]}; put them into one folder, or add a classes.txt with lines 'ID NAME' to both"
                )


def _next_free(taken: set[int]) -> int:
    return next(id for id in range(1, len(taken) + 2) if id not in taken)


def _renumber(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    renumbered = labels.copy()
    for old, new in mapping.items():
        if old != new:
            renumbered[labels == old] = new
    return renumbered
