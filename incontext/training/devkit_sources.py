"""The folders of well-known data sets as sources of packed images: PASCAL VOC, ADE20K, and DAVIS with its likes."""

from __future__ import annotations

from pathlib import Path

from incontext.labelled_folders import list_images
from incontext.training.sources import Item, MaskFiles


def voc_items(name: str, root: str | Path, split: str) -> list[Item]:
    """Reads a VOC devkit: JPEGImages, SegmentationClass, SegmentationObject, ImageSets/Segmentation.

    Args:
        name: of the set.
        root: the folder that holds these, such as `VOCdevkit/VOC2012`.
        split: the list of images, such as "train".

    Raises:
        ValueError: if the folder or the split is not there.
    """
    root = Path(root)
    items = []
    for stem in _split(root / "ImageSets" / "Segmentation", split):
        objects = root / "SegmentationObject" / f"{stem}.png"
        read = MaskFiles(root / "SegmentationClass" / f"{stem}.png", objects if objects.exists() else None)
        items.append(Item(name, stem, root / "JPEGImages" / f"{stem}.jpg", read))
    return items


def ade_items(name: str, root: str | Path, split: str) -> list[Item]:
    """Reads the scene parsing layout of ADE20K: images/SPLIT and annotations/SPLIT, with ids 1..150.

    Id 0, "none of the 150 classes", is background.

    Args:
        name: of the set.
        root: the folder, such as `ADEChallengeData2016`.
        split: "training" or "validation".

    Raises:
        ValueError: if there are no such folders.
    """
    root = Path(root)
    images = list_images(root / "images" / split)
    if not images:
        raise ValueError(f"{root}: expected images/{split} and annotations/{split}, as in ADEChallengeData2016")
    masks = root / "annotations" / split
    return [Item(name, image.stem, image, MaskFiles(masks / f"{image.stem}.png")) for image in images]


def davis_items(name: str, root: str | Path, split: str, every: int = 1) -> list[Item]:
    """Reads videos: JPEGImages[/RESOLUTION]/VIDEO/*.jpg with Annotations beside (DAVIS, YouTube-VOS, MOSE).

    Args:
        name: of the set. Its ids number the objects of one video.
        root: the folder that holds both.
        split: a list ImageSets[/YEAR]/SPLIT.txt of videos, or "all".
        every: takes every so many-th annotated frame of a video; neighbours hardly differ.

    Raises:
        ValueError: if there are no such folders, or no such list.
    """
    root = Path(root)
    images = _resolution(root / "JPEGImages")
    masks = _resolution(root / "Annotations")
    videos = sorted(path.name for path in masks.iterdir() if path.is_dir())
    if split != "all":
        lists = sorted(root.glob(f"ImageSets/**/{split}.txt"))
        if not lists:
            raise ValueError(f"{root}: expected a list ImageSets/**/{split}.txt of videos; or take the split 'all'")
        videos = sorted({line.split()[0] for line in lists[-1].read_text().splitlines() if line.strip()} & set(videos))
    items = []
    for video in videos:
        pairs = [(image, masks / video / f"{image.stem}.png") for image in list_images(images / video)]
        annotated = [(image, mask) for image, mask in pairs if mask.exists()]
        for image, mask in annotated[::every]:
            items.append(Item(name, f"{video}-{image.stem}", image, MaskFiles(mask), video, segments=True))
    if not items:
        raise ValueError(f"{root}: found no frame with a mask of the same name in the videos of split {split!r}")
    return items


def _split(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    if not path.exists():
        known = sorted(each.stem for each in folder.glob("*.txt"))
        raise ValueError(f"{path}: no such list; {folder} holds {known}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _resolution(folder: Path) -> Path:
    """The folder of videos: of DAVIS's resolutions, the smallest, since packs shrink images anyway."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected JPEGImages and Annotations with a folder for each video")
    return folder / "480p" if (folder / "480p").is_dir() else folder
