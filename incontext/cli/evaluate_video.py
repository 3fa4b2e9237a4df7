"""`incontext eval davis | ytvos | mose | clips`: video object segmentation from given masks."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from incontext.cli.arguments import number_list, output_folder, positive, word_list
from incontext.cli.model_options import add_device, add_model, open_predictor
from incontext.cli.progress import progress

if TYPE_CHECKING:
    from incontext.evaluation.vos_report import VosRun
    from incontext.predictor import Predictor

_LAYOUT = (
    "Also reads labelled folders, VIDEO/frames/00000.jpg with VIDEO/masks/00000.png. Objects are given by their first "
    "annotated mask. J and F are those of the DAVIS toolkit; the first and the last frame do not count."
)


def add_parsers(protocols: argparse._SubParsersAction) -> None:
    """Adds the protocols of video."""
    davis = protocols.add_parser(
        "davis",
        help="DAVIS 2016 and 2017: J, F and J&F",
        description="Tracks DAVIS (JPEGImages, Annotations, ImageSets) from its first masks and scores it, or scores "
        f"masks made elsewhere. {_LAYOUT}",
    )
    davis.add_argument("--year", type=int, choices=(2016, 2017), default=2017, help="2016 is one object (default 2017)")
    davis.add_argument("--split", default="val", help="list in ImageSets: val, train, test-dev (default val)")
    davis.add_argument("--resolution", default="480p", help="480p or Full-Resolution (default 480p)")
    _add_tracking(davis)
    davis.set_defaults(run=run_davis)

    for name, title, run in (("ytvos", "YouTube-VOS", run_ytvos), ("mose", "MOSE", run_mose)):
        parser = protocols.add_parser(
            name,
            help=f"{title}: masks for its server, and scores where there is truth",
            description=f"Tracks {title} (JPEGImages, Annotations, meta.json), objects from the frame where they "
            f"appear, writes what its server takes, and scores videos with further annotations. {_LAYOUT}",
        )
        parser.add_argument("--split", default="valid", help="folder of the split, where PATH has some (default valid)")
        _add_tracking(parser)
        parser.set_defaults(run=run)

    clips = protocols.add_parser(
        "clips",
        help="rendered clips: id switches at crossings, occlusions and exits",
        description="Tracks rendered shapes from their first masks: crossings, occlusions, exits and returns. "
        "switches: an object took another's id; lost: share of the frames in which a visible object is not found "
        "(IoU of 0.5 or less); ghosts: share of the frames in which an object is painted that is not there.",
    )
    clips.add_argument(
        "--objects", type=number_list, default=(1, 2, 4, 8, 12, 20), metavar="N,N", help="default 1,2,4,8,12,20"
    )
    clips.add_argument("--clips", type=positive, default=3, metavar="N", help="for each number of objects (default 3)")
    clips.add_argument("--frames", type=positive, default=32, metavar="N", help="in each clip (default 32)")
    clips.add_argument("--size", type=positive, default=192, metavar="PIXELS", help="side of the clips (default 192)")
    clips.add_argument("--seed", type=int, default=0, help="of the clips (default 0)")
    _add_tracker(clips)
    clips.add_argument(
        "-o", "--output", "--out", type=output_folder, metavar="DIR", help="write results.json and .md there"
    )
    clips.set_defaults(run=run_clips)


def _add_tracker(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--memory",
        type=functools.partial(number_list, least=0),
        default=(8,),
        metavar="N,N",
        help="past frames remembered, such as 0,1,4,8: a run for each (default 8)",
    )
    parser.add_argument(
        "--policy", type=word_list, default=["selective"], metavar="NAME,NAME", help="selective, fifo, or both"
    )
    add_device(parser)


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="PATH", help="the data set")
    parser.add_argument("--videos", type=word_list, metavar="NAME,NAME", help="only these (default: all)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="score DIR/VIDEO/FRAME.png instead of tracking")
    _add_tracker(parser)
    parser.add_argument(
        "-o",
        "--output",
        "--out",
        type=output_folder,
        metavar="DIR",
        help="keep the masks there, with a .zip for the server and the scores; a killed run goes on there",
    )


def run_davis(args: argparse.Namespace) -> int:
    """Runs `incontext eval davis`; returns the exit status."""
    from incontext.evaluation.vos_videos import davis_videos

    options = {"year": args.year, "split": args.split, "resolution": args.resolution}
    return _run(args, davis_videos, options, top="", seen=None)


def run_ytvos(args: argparse.Namespace) -> int:
    """Runs `incontext eval ytvos`; returns the exit status."""
    from incontext.evaluation.vos_videos import seen_categories, youtube_videos

    return _run(args, youtube_videos, {"split": args.split}, top="Annotations", seen=seen_categories(args.data))


def run_mose(args: argparse.Namespace) -> int:
    """Runs `incontext eval mose`; returns the exit status."""
    from incontext.evaluation.vos_videos import youtube_videos

    return _run(args, youtube_videos, {"split": args.split}, top="", seen=None)


def run_clips(args: argparse.Namespace) -> int:
    """Runs `incontext eval clips`; returns the exit status."""
    from dataclasses import asdict

    from incontext.evaluation import tables
    from incontext.evaluation.clip_scores import clip_table, random_clips, score_clips

    if max(args.objects) > 20 or args.frames < 8 or args.size < 32:
        raise ValueError(
            "expected at most 20 objects, and at least 8 frames of 32 pixels; change --objects or --frames"
        )
    runs: dict[str, list] = {}
    for name, track in _tracks(args, open_predictor(args)).items():
        for objects in args.objects:
            clips = random_clips(objects, args.clips, size=(args.size, args.size), frames=args.frames, seed=args.seed)
            clips = progress(clips, f"{name}, {objects} objects", args.clips, "clip")
            runs.setdefault(name, []).append(score_clips(objects, clips, track))
    rows = clip_table(runs)
    print(tables.align(rows))
    print("percent, but for switches; ghosts and lost are better low")
    if args.output:
        plain = {name: [asdict(score) for score in scores] for name, scores in runs.items()}
        texts = {"results.json": json.dumps(plain, indent=1) + "\n", "results.md": tables.markdown(rows)}
        print("wrote " + ", ".join(str(path) for path in tables.write_texts(args.output, texts)))
    return 0


def _run(
    args: argparse.Namespace, read: Callable, options: dict[str, object], *, top: str, seen: frozenset[str] | None
) -> int:
    """Tracks and scores, or scores only. An earlier run's masks count if it read the data with the same options."""
    from incontext.evaluation import tables, vos_report
    from incontext.evaluation.vos_scores import score_folder
    from incontext.evaluation.vos_videos import choose, open_videos

    videos = choose(open_videos(read, args.data, **options), args.videos)
    if args.results:
        if not args.results.is_dir():
            raise ValueError(f"--results: expected a folder of VIDEO/FRAME.png, found no folder {args.results}")
        inner = args.results / "Annotations"
        scores, failures = score_folder(videos, inner if inner.is_dir() else args.results)
        runs = [vos_report.VosRun(args.results.name, tuple(scores), failures=failures)]
    else:
        predictor = open_predictor(args)
        settings = {"model": predictor.fingerprint, "data": str(args.data.resolve()), **options}
        tracks = _tracks(args, predictor)
        with tempfile.TemporaryDirectory(prefix="incontext-") as spare:
            folder = args.output or Path(spare)
            runs = [_track(name, track, videos, folder, settings) for name, track in tracks.items()]
            for run in runs if args.output else ():
                _archive(run, videos, folder, top)

    scored = any(run.scores for run in runs)
    if scored and len(runs) == 1:
        print(tables.align(vos_report.per_video(runs[0]), means=1))
        print()
    if scored:
        print(tables.align(vos_report.compare(runs)))
        print("percent, means over objects, first and last frame left out")
    else:
        print("no scores: no video is annotated beyond the frames where objects appear")
    unscored = [video.name for video in videos if not video.scorable]
    if scored and unscored:
        print(f"not scored, annotated only where objects appear: {', '.join(unscored)}", file=sys.stderr)
    for run in runs if scored and seen else ():
        numbers = vos_report.overall(run, seen)
        print(f"{run.name}: " + ", ".join(f"{name} {tables.percent(value)}" for name, value in numbers.items()))
    if args.output:
        chosen = {"model": args.model, "memory": args.memory, "policy": args.policy}
        written = vos_report.save(runs, args.output, {"data": str(args.data), **options, **chosen})
        print("wrote " + ", ".join(str(path) for path in written))
    for run in runs:
        for video, error in run.failures.items():
            print(f"{run.name}, {video}: {error}", file=sys.stderr)
    return int(any(run.failures for run in runs))


def _track(name: str, track: Callable, videos: list, folder: Path, settings: dict) -> VosRun:
    """One run: masks, and their scores."""
    from incontext.evaluation.vos_report import VosRun
    from incontext.evaluation.vos_scores import score_folder
    from incontext.evaluation.vos_tracking import track_videos

    masks = folder / _stem(name)
    steps = track_videos(videos, track, masks, {**settings, "run": name})
    tracked = list(progress(steps, name, len(videos), "video"))
    failures = {each.video: each.error for each in tracked if each.error}
    scores, unscored = score_folder([video for video in videos if video.name not in failures], masks)
    frames, seconds = (sum(getattr(each, part) for each in tracked if not each.error) for part in ("frames", "seconds"))
    return VosRun(name, tuple(scores), frames, seconds, {**failures, **unscored})


def _archive(run: VosRun, videos: list, folder: Path, top: str) -> None:
    """What a server takes: the masks of all videos that were tracked."""
    from incontext.evaluation.vos_tracking import zip_submission

    done = [video for video in videos if video.name not in run.failures]
    if done:
        zip_submission(folder / _stem(run.name), done, folder / f"{_stem(run.name)}.zip", top)


def _stem(name: str) -> str:
    return name.replace(" ", "-")


def _tracks(args: argparse.Namespace, predictor: Predictor) -> dict[str, Callable]:
    """Run name -> how to track one video; one for each policy and memory size."""
    from incontext.video.memory import POLICIES
    from incontext.video.tracker import Tracker

    unknown = [policy for policy in args.policy if policy not in POLICIES]
    if unknown or not args.policy:
        raise ValueError(f"--policy: expected some of {', '.join(POLICIES)}; got {', '.join(unknown) or 'none'}")

    def track_with(policy: str, size: int) -> Callable:
        def track(frames, given):
            tracker = Tracker(predictor, memory=POLICIES[policy](size))
            return (segmentation.labels for segmentation in tracker.propagate(frames, given))

        return track

    sizes = [(policy, size) for policy in args.policy for size in args.memory]
    # Policies that remember nothing are one and the same.
    named = {(f"{policy} {size}" if size else "memory 0"): (policy, size) for policy, size in sizes}
    return {name: track_with(*chosen) for name, chosen in named.items()}
