"""Pascal VOC folders: palette PNGs with VOC's colours, 255 for what is ignored. Pictures are not copied.

ROOT/SegmentationClass/NAME.png    class ids up to 254
ROOT/SegmentationObject/NAME.png   objects, where they were told apart; the 254 largest of an image
ROOT/Annotations/NAME.xml          the image's name and size, and the boxes of these objects
ROOT/ImageSets/Segmentation/trainval.txt
ROOT/labelmap.txt                  names and colours of the classes, as CVAT and Datumaro know them
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from incontext.export.class_table import ClassTable
from incontext.export.documents import FormatError, parsing, read_text, read_xml, write_text, write_xml
from incontext.export.file_names import ImageFinder, LabelFiles, find_files, relative_stem
from incontext.export.labelled import LabelledImage
from incontext.export.losses import MANY, Losses
from incontext.export.raster import write_indexed
from incontext.export.shapes import box_of
from incontext.image import open_labels
from incontext.palette import voc_colours
from incontext.types import IGNORE

FILE = "labelmap.txt"

_LIST = "ImageSets/Segmentation/trainval.txt"
_TOP = 254

VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()
"""The classes of the challenge itself, ids from 1; for folders without a labelmap.txt."""


def finish(items: Iterable[LabelledImage], root: str | os.PathLike, class_names: Mapping[int, str]) -> None:
    """Writes the whole dataset: masks and annotations, then the lists. Warns how many objects were left out.

    Raises:
        ValueError: a class id is above 254, which VOC's masks cannot hold.
    """
    root, files, table, losses = Path(root), LabelFiles(".png"), ClassTable(class_names), Losses("VOC")
    stems: list[str] = []
    ignored = False
    for item in items:
        ignored |= bool((item.labels == IGNORE).any())
        if max(item.ids, default=0) > _TOP:
            raise ValueError(f"{item.file_name}: VOC holds class ids up to {_TOP}, got {max(item.ids)}; renumber them")
        mask = files.claim(item.file_name)
        stems.append(mask.removesuffix(".png"))
        if item.instances is None:
            (root / "SegmentationObject" / mask).unlink(missing_ok=True)  # of an earlier mask
        write_indexed(root / "SegmentationClass" / mask, item.labels)
        if item.instances is not None:
            objects, item = item.instances, _largest(item, losses)
            unknown = (item.labels == IGNORE) | (objects > 0) & (item.instances == 0)
            write_indexed(root / "SegmentationObject" / mask, np.where(unknown, IGNORE, item.instances))
        write_xml(root / "Annotations" / f"{stems[-1]}.xml", _annotation(item, table))
    write_text(root / _LIST, "".join(f"{stem}\n" for stem in stems))
    write_text(root / FILE, _label_map(dict(table.items()), ignored))
    losses.report()


def read(source: str | os.PathLike, images_root: str | os.PathLike | None = None) -> Iterator[LabelledImage]:
    """Reads masks: those that ImageSets/Segmentation lists, or all where there is no list.

    Args:
        source: the folder that holds SegmentationClass/.
        images_root: the images, to learn their suffixes where there is no annotation; ROOT/JPEGImages by default.

    Raises:
        FormatError: there are no masks, or a file is broken.
    """
    root = Path(source)
    names, finder = _read_label_map(root / FILE), ImageFinder(images_root or root / "JPEGImages")
    for stem in _stems(root):
        mask, objects = (root / folder / f"{stem}.png" for folder in ("SegmentationClass", "SegmentationObject"))
        with parsing(mask, "a mask"):
            labels = open_labels(mask)
            instances = open_labels(objects).clip(min=0) if objects.is_file() else None
            if instances is not None:
                instances[labels == IGNORE] = 0  # VOC's own masks have a rim between objects
            name = _image_name(root, stem, finder)
            item = LabelledImage(name, labels, names, instances=instances)
        yield item


def _largest(item: LabelledImage, losses: Losses) -> LabelledImage:
    """An image with as many of its objects as the 8 bits of a palette PNG hold; the pixels of others keep a class."""
    if item.instances.max() <= _TOP:
        return item
    areas = np.bincount(item.instances.ravel())
    kept = sorted(sorted(item.instance_classes, key=lambda number: -areas[number])[:_TOP])
    losses.add(MANY, len(item.instance_classes) - len(kept))
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    classes = {k: item.instance_classes[number] for k, number in enumerate(kept, start=1)}
    return replace(item, instances=numbers[item.instances], instance_classes=classes, instance_scores={})


def _annotation(item: LabelledImage, table: ClassTable) -> ElementTree.Element:
    height, width = item.size
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = ""
    ElementTree.SubElement(root, "filename").text = item.file_name
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for id in item.ids:
        table.name(item, id)
    for thing in item.objects() if item.instances is not None else ():
        element = ElementTree.SubElement(root, "object")
        for tag, value in (("name", item.name(thing.id)), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(element, tag).text = value
        left, top, right, bottom = box_of(thing.mask)
        box = ElementTree.SubElement(element, "bndbox")  # VOC counts pixels from 1, the last one included
        for tag, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ElementTree.SubElement(box, tag).text = str(value)
    return root


def _label_map(names: Mapping[int, str], ignored: bool) -> str:
    """A line "NAME:R,G,B::" for each class; the colour is that of the id. ":" would end a name, so it becomes " "."""
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for id, name in names.items():
        if id <= _TOP:
            plain = " ".join(name.replace(":", " ").splitlines())
            lines.append(f"{plain}:{','.join(map(str, voc_colours()[id].tolist()))}::")
    if ignored:  # Datumaro wants every colour listed
        lines.append(f"ignored:{','.join(map(str, voc_colours()[255].tolist()))}::")
    return "\n".join(lines) + "\n"


def _read_label_map(path: Path) -> dict[int, str]:
    """Class id -> name. Colours that are VOC's tell the ids; else the lines count from 0, the background."""
    if not path.is_file():
        return dict(enumerate(VOC_NAMES, start=1))
    lines = [line for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]
    with parsing(path, "lines NAME:R,G,B:PARTS:ACTIONS"):
        entries = [line.rsplit(":", 3) for line in lines]
        colours = [tuple(int(value) for value in colour.split(",")) for _, colour, _, _ in entries]
    index = {tuple(colour): id for id, colour in enumerate(voc_colours().tolist())}
    known = all(colour in index for colour in colours)
    names = {
        index[colour] if known else k: entry[0] for k, (entry, colour) in enumerate(zip(entries, colours, strict=True))
    }
    return {id: name for id, name in names.items() if 0 < id <= _TOP}


def _stems(root: Path) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    lists = [path for path in find_files(folder, ".txt") if path.parent == folder]
    if lists:
        return list(
            dict.fromkeys(line.strip() for path in lists for line in read_text(path).splitlines() if line.strip())
        )
    masks = root / "SegmentationClass"
    stems = [relative_stem(path, masks) for path in find_files(masks, ".png")]
    if not stems:
        raise FormatError(f"{root}: expected masks as SegmentationClass/NAME.png, found none; check the path")
    return stems


def _image_name(root: Path, stem: str, finder: ImageFinder) -> str:
    annotation = root / "Annotations" / f"{stem}.xml"
    if annotation.is_file():
        name = read_xml(annotation).findtext("filename")
        if name:
            return name
    return finder.find(stem) or f"{stem}.jpg"
