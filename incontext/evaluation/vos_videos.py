"""The videos of DAVIS, YouTube-VOS and MOSE, in their official layouts, and of labelled folders.

DAVIS            JPEGImages/480p/VIDEO/00000.jpg   Annotations/480p/VIDEO/00000.png   ImageSets/2017/val.txt
YouTube-VOS      JPEGImages/VIDEO/00000.jpg        Annotations/VIDEO/00000.png        meta.json
MOSE             as YouTube-VOS, with or without meta.json
labelled folder  VIDEO/frames/00000.jpg            VIDEO/masks/00000.png
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from incontext.image import open_image
from incontext.labelled_folders import VideoSet, find_sets, list_images, read_ids
from incontext.types import IGNORE


class VideoError(ValueError):
    """A video, or what was made of it, is not as expected."""


@dataclass(frozen=True)
class Video:
    """One video with what is known of it.

    Attributes:
        name: its folder's name.
        frames: the pictures, in order.
        masks: frame name (a file's stem) -> annotation; not every frame needs one.
        binary: whether anything in a mask is object 1, as in DAVIS 2016.
        late: whether objects may appear after the first annotated frame. In DAVIS they do not: what its first mask
            lacks is not scored.
        categories: object id -> category, where known.
    """

    name: str
    frames: tuple[Path, ...]
    masks: Mapping[str, Path]
    binary: bool = False
    late: bool = True
    categories: Mapping[int, str] = field(default_factory=dict)

    @property
    def annotated(self) -> list[str]:
        """Names of the frames that have an annotation, in order."""
        return [path.stem for path in self.frames if path.stem in self.masks]

    @cached_property
    def scorable(self) -> bool:
        """Whether at least three frames are annotated, and any object in more than the frame where it appears.

        What servers score is published without more. A video whose masks cannot be read counts: scoring tells why.
        """
        if len(self.annotated) < 3:
            return False
        try:
            return any(
                self.starts.get(int(id), name) != name for name in self.annotated for id in np.unique(self.truth(name))
            )
        except VideoError:
            return True

    def images(self) -> Iterator[np.ndarray]:
        """The frames, uint8 (H, W, 3) each, one by one."""
        return (open_image(path) for path in self.frames)

    def truth(self, name: str) -> np.ndarray:
        """The annotation of a frame: int32 (H, W), 0 background. Void (255) is background, as in the toolkits.

        Raises:
            VideoError: it cannot be read, or holds colours.
        """
        return read_result(self.masks[name], self.binary)

    @cached_property
    def starts(self) -> dict[int, str]:
        """Object id -> the frame where it is first annotated."""
        starts: dict[int, str] = {}
        for name in self.annotated if self.late else self.annotated[:1]:
            for id in np.unique(self.truth(name)):
                if id > 0:
                    starts.setdefault(int(id), name)
        return starts

    def given(self) -> dict[int, np.ndarray]:
        """What a tracker is told: place in `frames` -> int32 (H, W), the objects that start there and 0 elsewhere.

        Raises:
            VideoError: no object is annotated.
        """
        if not self.starts:
            raise VideoError(f"{self.name}: expected an annotation that shows the objects to follow, found none")
        given = {}
        for place, path in enumerate(self.frames):
            new = [id for id, name in self.starts.items() if name == path.stem]
            if new:
                labels = self.truth(path.stem)
                given[place] = np.where(np.isin(labels, new), labels, 0)
        return given


def read_result(path: Path, binary: bool = False) -> np.ndarray:
    """Reads an indexed PNG: int32 (H, W). 255 is background, or part of object 1 where `binary`.

    Raises:
        VideoError: it is missing, cannot be read, or holds colours instead of indices.
    """
    if not path.is_file():
        raise VideoError(f"{path}: expected a mask for this frame, found no file; write one PNG for each frame")
    try:
        labels = read_ids(path)
    except ValueError as error:
        raise VideoError(str(error)) from error
    if binary:
        return (labels != 0).astype(np.int32)
    labels[labels == IGNORE] = 0
    return labels


def davis_videos(root: Path, *, year: int = 2017, split: str = "val", resolution: str = "480p") -> list[Video]:
    """The videos of DAVIS 2016 or 2017.

    Args:
        root: the folder that holds JPEGImages, Annotations and ImageSets.
        year: 2016 scores everything annotated as one object, 2017 each object.
        split: names the list in ImageSets: "val", "train", "test-dev".
        resolution: "480p" or "Full-Resolution".

    Raises:
        VideoError: something is missing.
    """
    lists = [root / "ImageSets" / str(year) / f"{split}.txt", root / "ImageSets" / resolution / f"{split}.txt"]
    found = next((path for path in lists if path.is_file()), None)
    if found is None:
        raise VideoError(f"{root}: expected DAVIS with {' or '.join(str(p.relative_to(root)) for p in lists)}")
    lines = [line.split()[0] for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
    # The first release of 2016 lists pairs of files, later ones list videos.
    names = dict.fromkeys(Path(line).parent.name if line.endswith(".jpg") else line for line in lines)
    images, masks = root / "JPEGImages" / resolution, root / "Annotations" / resolution
    return [_video(name, images / name, masks / name, binary=year == 2016, late=False) for name in names]


def youtube_videos(root: Path, *, split: str = "valid") -> list[Video]:
    """The videos of YouTube-VOS or MOSE.

    Args:
        root: the folder that holds JPEGImages and Annotations, or the one above with a folder for each split.
        split: that folder's name.

    Raises:
        VideoError: something is missing.
    """
    if not (root / "JPEGImages").is_dir():
        root = root / split
    if not (root / "Annotations").is_dir():
        raise VideoError(f"{root}: expected JPEGImages/VIDEO/00000.jpg and Annotations/VIDEO/00000.png")
    meta = _read_meta(root / "meta.json")
    names = sorted(meta or (path.name for path in (root / "Annotations").iterdir() if path.is_dir()))
    return [
        _video(name, root / "JPEGImages" / name, root / "Annotations" / name, categories=meta.get(name, {}))
        for name in names
    ]


def folder_videos(root: Path) -> list[Video]:
    """The videos of labelled folders; see `incontext.labelled_folders`.

    Raises:
        VideoError: there are none.
    """
    sets = [found for found in find_sets(root) if isinstance(found, VideoSet)]
    videos = []
    for source in sets:
        for name, items in source.videos:
            label = f"{source.name}-{name}" if len(sets) > 1 else name
            masks = {item.image.stem: item.mask for item in items}
            videos.append(Video(label, tuple(item.image for item in items), masks, items[0].masks.binary))
    if not videos:
        raise VideoError(f"{root}: expected VIDEO/frames/00000.jpg with VIDEO/masks/00000.png, found no video")
    return videos


def open_videos(read: Callable[..., list[Video]], root: Path, **options) -> list[Video]:
    """The videos of a data set: in its official layout, or else of labelled folders.

    Args:
        read: `davis_videos` or `youtube_videos`.
        root: the data.
        options: for `read`.

    Raises:
        VideoError: it is neither.
    """
    official = any((folder / "JPEGImages").is_dir() for folder in (root, root / options.get("split", "")))
    if official or not root.is_dir():
        return read(root, **options)
    try:
        return folder_videos(root)
    except ValueError as error:
        raise VideoError(f"{root}: expected JPEGImages and Annotations, or VIDEO/frames and VIDEO/masks") from error


def choose(videos: Sequence[Video], names: Iterable[str] | None) -> list[Video]:
    """The videos of these names; all, by default.

    Raises:
        VideoError: there is no such video.
    """
    if names is None:
        return list(videos)
    by_name = {video.name: video for video in videos}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise VideoError(f"no video named {', '.join(missing)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def seen_categories(root: Path) -> frozenset[str]:
    """The categories that YouTube-VOS shows for training: those of ROOT/train/meta.json; empty without that file."""
    for folder in (root / "train", root.parent / "train"):
        meta = _read_meta(folder / "meta.json")
        if meta:
            return frozenset(category for objects in meta.values() for category in objects.values())
    return frozenset()


def _video(
    name: str,
    images: Path,
    masks: Path,
    *,
    binary: bool = False,
    late: bool = True,
    categories: Mapping[int, str] | None = None,
) -> Video:
    frames = list_images(images)
    if not frames:
        raise VideoError(f"{images}: expected the frames of {name}, found no pictures")
    annotations = {path.stem: path for path in list_images(masks) if path.suffix.lower() == ".png"}
    return Video(name, tuple(frames), annotations, binary, late, categories or {})


def _read_meta(path: Path) -> dict[str, dict[int, str]]:
    """Video -> object id -> category, of YouTube-VOS's meta.json; empty without that file."""
    if not path.is_file():
        return {}
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {
            name: {int(id): about.get("category", "") for id, about in video["objects"].items()}
            for name, video in videos.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VideoError(f"{path}: expected YouTube-VOS's meta.json, got something else: {error}") from error
