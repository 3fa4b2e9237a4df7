"""`incontext track`: objects followed through a video."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from incontext.cli.arguments import class_names, output_folder, word_list
from incontext.cli.model_options import (
    add_device,
    add_flip,
    add_model,
    add_pack,
    add_precision,
    add_refine,
    open_predictor,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from incontext.colour_masks import Rgb
    from incontext.predictor import Predictor
    from incontext.types import Example
    from incontext.video.frames import Frames

FORMATS = ("overlay", "table", "picture", "coco", "mots")
_LOOKS_SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `track`."""
    parser = subparsers.add_parser(
        "track",
        help="follow painted objects through a video",
        description="Follows the objects of a painted frame through a video, forwards and, where the frame is not the "
        "first, backwards. Writes DIR/masks/NAME.png (pixel values are ids) and what --formats says, and in "
        "DIR/track.json the frames that a person should look at. A job that was stopped goes on when it is "
        "started again. A frame that cannot be read is reported and left out; the exit status is then 1.",
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file, or a folder of frames")
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[FRAME=]FILE",
        help="a painted frame (ids, black and white, or colours), the first unless its number is given; may be given "
        "several times, for corrections and objects that come later",
    )
    parser.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "MASK"),
        help="a picture from elsewhere with its mask; may be given several times",
    )
    parser.add_argument(
        "--examples", metavar="FOLDER", help="many of them: a folder or file as `incontext label` takes"
    )
    add_pack(parser)
    parser.add_argument("-o", "--output", type=output_folder, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--start", type=int, default=0, metavar="FRAME", help="the first frame to track (default 0)")
    parser.add_argument("--end", type=int, metavar="FRAME", help="the frame to stop before (default: the end)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="track every Nth frame only")
    parser.add_argument("--memory", type=int, default=8, metavar="N", help="past frames to remember (default 8)")
    parser.add_argument(
        "--policy",
        choices=("selective", "fifo"),
        default="selective",
        help="which: those that are certain, lead back to the painted frame and are new (default), or the last ones",
    )
    parser.add_argument(
        "--formats",
        default=",".join(FORMATS),
        metavar="NAMES",
        help=f"what to write beside the masks, of {', '.join(FORMATS)} (default: all)",
    )
    parser.add_argument("--names", type=class_names, default={}, metavar="1=NAME,2=NAME", help="names of ids")
    add_model(parser)
    add_flip(parser)
    add_refine(parser)
    parser.add_argument("--reader", choices=("auto", "decord", "pyav"), default="auto", help="of video files")
    add_device(parser)
    add_precision(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="track nothing; measure frames a second beside a plain loop, with 1 and 9 examples, into DIR/profile.json",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 0, or 1 if a frame failed.

    Raises:
        ValueError: if arguments, the video, masks, examples or the model are wrong, or files would be lost.
    """
    from incontext.image import find_colours
    from incontext.video.frames import read_frames
    from incontext.video.writers import check_formats

    formats = check_formats(word_list(args.formats))
    frames = read_frames(args.video, reader=args.reader)
    chosen = _choose(args, len(frames))
    files, pairs = _mask_files(args.mask, chosen), [tuple(map(Path, pair)) for pair in args.example]
    colours = find_colours([*files.values(), *(mask for _, mask in pairs)])  # one means one id in all of them
    masks = _open_masks(files, colours, frames)
    examples = _open_examples(pairs, colours, args.examples)
    if not (masks or examples or args.pack):
        raise ValueError("expected --mask, --example, --examples or --pack, got none; paint the first frame")
    predictor = open_predictor(args, refine=args.refine, precision=args.precision)
    if args.profile:
        return _profile(args, predictor, frames[chosen.start : chosen.stop : chosen.step], masks)
    return _track(args, predictor, frames, chosen, masks, examples, formats)


def _track(
    args: argparse.Namespace,
    predictor: Predictor,
    frames: Frames,
    chosen: range,
    masks: Mapping[int, np.ndarray],
    examples: list[Example],
    formats: tuple[str, ...],
) -> int:
    import hashlib

    from incontext.model.inference import pick_precision
    from incontext.pack.library import locate_pack, open_pack
    from incontext.video.job import TrackJob
    from incontext.video.memory import POLICIES
    from incontext.video.tracker import Tracker

    sources = [*map(open_pack, args.pack), *examples]
    policy = POLICIES[args.policy](args.memory)
    tracker = Tracker(predictor, memory=policy, examples=sources, names=args.names, flip=args.flip)
    job = TrackJob(
        frames,
        tracker,
        args.output,
        masks=masks,
        chosen=chosen,
        formats=formats,
        settings={
            "model": args.model,
            "weights": predictor.fingerprint[:16],
            "memory": args.memory,
            "policy": args.policy,
            "flip": args.flip,
            "refine": predictor.refine,
            "precision": pick_precision(args.precision, predictor.device),
            "masks": {str(index): _digest(mask) for index, mask in masks.items()},
            "examples": [_digest(each.image, each.labels) for each in examples],
            "packs": [hashlib.sha256(locate_pack(name).read_bytes()).hexdigest()[:16] for name in args.pack],
            "names": {str(id): name for id, name in args.names.items()},
        },
    )
    job.run()
    print(_summary(job, args.output, len(chosen)))
    return 1 if job.failed else 0


def _profile(args: argparse.Namespace, predictor: Predictor, frames: Frames, masks: Mapping[int, np.ndarray]) -> int:
    import json

    from incontext.atomic import replacing
    from incontext.model.inference import pick_precision
    from incontext.video.speed import measure_pace

    if not masks or min(masks) != args.start:
        raise ValueError("--profile: expected a --mask of the first frame")
    results = [measure_pace(predictor, frames, masks[args.start], examples=count).summary() for count in (1, 9)]
    with replacing(args.output / "profile.json") as draft:
        report = {
            "model": args.model,
            "device": str(predictor.device),
            "precision": pick_precision(args.precision, predictor.device),
            "size": list(frames.size),
            "paces": results,
        }
        draft.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for each in results:
        print(
            f"N = {each['examples']}: {each['tracker_fps']} frames a second, plain loop {each['naive_fps']}, "
            f"{each['times_as_quick']} times as quick; {each['not_model']:.1%} of the time is not the model"
        )
    return 0


def _choose(args: argparse.Namespace, count: int) -> range:
    if args.every < 1:
        raise ValueError(f"--every: expected 1 or more, got {args.every}")
    chosen = range(args.start, count if args.end is None else min(args.end, count), args.every)
    if args.start < 0 or not chosen:
        raise ValueError(
            f"--start, --end: expected a part of frames 0 to {count - 1}, got {args.start} to "
            f"{'the end' if args.end is None else args.end}"
        )
    return chosen


def _mask_files(arguments: list[str], chosen: range) -> dict[int, Path]:
    """Frame number -> its mask's file."""
    files: dict[int, Path] = {}
    for argument in arguments:
        number, _, file = argument.partition("=")
        is_numbered = number.isascii() and number.isdigit() and file
        index = int(number) if is_numbered else chosen.start
        if index in files:
            raise ValueError(f"--mask: expected one mask for each frame, got two for frame {index}; give FRAME=FILE")
        files[index] = Path(file if is_numbered else argument).expanduser()
    return files


def _open_masks(files: Mapping[int, Path], colours: Mapping[int, Rgb], frames: Frames) -> dict[int, np.ndarray]:
    """Frame number -> labels of the frames' size."""
    from incontext.image import open_labels

    masks = {index: open_labels(path, colours=colours) for index, path in files.items()}
    height, width = frames.size
    for index, mask in masks.items():
        if mask.shape != frames.size:
            raise ValueError(
                f"{files[index]}: expected a mask of {width} x {height} pixels (width x height) like the frames of "
                f"{frames.name}, got {mask.shape[1]} x {mask.shape[0]}; save it at the video's own size"
            )
    return masks


def _open_examples(pairs: Sequence[tuple[Path, Path]], colours: Mapping[int, Rgb], source: str | None) -> list[Example]:
    from incontext.types import Example

    examples = Example.open_many(pairs, colours=colours)
    if source:
        from incontext.labeling.example_sources import open_examples

        examples += open_examples(source).examples
    return examples


def _digest(*arrays: np.ndarray) -> str:
    """What tells masks and examples apart when a job goes on."""
    import hashlib

    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _summary(job: Any, output: Path, total: int) -> str:
    """A few lines for the user."""
    failed = f", {len(job.failed)} failed" if job.failed else ""
    lines = [f"{len(job.journal.rows) - len(job.failed)} of {total} frames tracked{failed}; results are in {output}"]
    looks = [f"{doubt.frame} (id {doubt.id} {doubt.reason})" for doubt in job.doubts[:_LOOKS_SHOWN]]
    if looks:
        lines.append(f"look at frames {', '.join(looks)}; all of them are in track.json")
    return "\n".join(lines)
