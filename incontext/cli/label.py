"""`incontext label`: a folder of images becomes a labelled dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from incontext.cli.arguments import class_names
from incontext.cli.class_ids import packs_renumbered, tell_renumbered
from incontext.cli.model_options import (
    add_device,
    add_model,
    add_one_by_one,
    add_pack,
    add_precision,
    add_refine,
    add_views,
    open_predictor,
    settle_tiles,
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `label`."""
    parser = subparsers.add_parser(
        "label",
        help="turn a folder of images into a labelled dataset",
        description="Labels images as examples or prompt packs show. Writes OUT/masks/NAME.png (pixel values are class "
        "ids), a folder for each format, and OUT/manifest.jsonl with a line for each image. It may be stopped at any "
        "moment: the same command goes on where it stopped, redoes what has changed and tries again what failed. "
        "Several may work on one OUT at once. An image that cannot be labelled is recorded, and the job goes on; the "
        "exit status is then 1.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders (with subfolders), patterns such as 'a/*.jpg', or .txt files that list some",
    )
    parser.add_argument(
        "--examples",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="folders of images with masks of the same name, COCO or labelme JSON, or other datasets; "
        "classes of the same name are the same",
    )
    add_pack(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="where to write")
    parser.add_argument(
        "--format",
        type=_formats,
        default=("coco",),
        metavar="NAME,NAME",
        help="formats of the dataset: coco, coco-polygons, coco-panoptic, yolo, voc, png, labelme, cvat, "
        "label-studio, or none (default coco)",
    )
    parser.add_argument(
        "--names", type=class_names, default={}, metavar="1=NAME,2=NAME", help="names of the examples' ids"
    )
    _add_model_arguments(parser)
    _add_trust_arguments(parser)
    _add_engine_arguments(parser)
    parser.set_defaults(run=run)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add_model(group)
    add_device(group)
    add_precision(group)
    add_views(group)
    group.add_argument(
        "--ensemble",
        choices=("feature", "spatial"),
        help="of several examples: average what each tells (default, unless a pack says otherwise), or lay all out in "
        "one grid (faster)",
    )
    group.add_argument(
        "--select", type=int, metavar="K", help="show each image only the K examples that suit it best, out of all"
    )
    add_refine(group)
    add_one_by_one(group)
    group.add_argument(
        "--kind",
        choices=("instance", "semantic"),
        help="what the ids are (default instance, unless a pack says otherwise)",
    )
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="larger images are recorded as failed (default 80 million)"
    )


def _add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("objects and trust")
    group.add_argument(
        "--instances",
        action="store_true",
        help="make every connected part of a class an object of its own; SegGPT has no native instances: it tells "
        "classes apart, not objects that touch",
    )
    group.add_argument(
        "--min-area", type=int, default=0, metavar="PIXELS", help="drop smaller objects; implies --instances"
    )
    group.add_argument(
        "--recolourings",
        type=int,
        default=0,
        metavar="N",
        help="record how much masks in N other sets of colours disagree; each costs the time of one more",
    )
    group.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit the confidence by leaving out one example at a time (default); packs alone bring their own",
    )
    group.add_argument("--review", action="store_true", help="write OUT/review.html and .csv, the least sure first")
    group.add_argument(
        "--corrections",
        type=Path,
        metavar="DIR",
        help="corrected masks, called as in OUT/masks: they stand, and are examples for all others "
        "(default OUT/corrections, where there is one)",
    )


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this process (default), or Ray: on this machine, or the cluster that RAY_ADDRESS names; all its "
        "machines must reach IMAGES and OUT under the same paths",
    )
    group.add_argument("--workers", type=int, metavar="N", help="models that Ray holds (default: as many as fit)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 0, or 1 if an image failed.

    Raises:
        ValueError: arguments, examples, packs or the model are wrong.
        JobStopped: the job cannot go on now.
    """
    from PIL import Image

    from incontext.labeling import LabelConfig, label, open_examples
    from incontext.pack.library import open_pack

    if not args.examples and not args.pack:
        raise ValueError("expected --examples or --pack, got neither; show what to find")
    if args.names and not args.examples:
        raise ValueError("--names: expected --examples, whose classes it names; a pack brings its own names along")
    config = LabelConfig(
        formats=args.format,
        ensemble=args.ensemble,
        kind=args.kind,
        flip=args.flip,
        tile=args.tile,
        overlap=args.overlap,
        batch_size=args.batch_size,
        instances=args.instances or args.min_area > 0,
        min_area=args.min_area,
        select=args.select,
        recolourings=args.recolourings,
        calibrate=args.calibrate,
        review=args.review,
        engine=args.engine,
        workers=args.workers,
        **({} if args.max_pixels is None else {"max_pixels": args.max_pixels}),
    )
    if args.max_pixels is not None and Image.MAX_IMAGE_PIXELS is not None:  # who asks for large images trusts them
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, args.max_pixels)
    if args.corrections is not None and not args.corrections.is_dir():
        raise ValueError(f"--corrections: expected a folder of masks, got {args.corrections}")
    packs = [open_pack(each) for each in args.pack]
    examples = open_examples(args.examples, names=args.names) if args.examples else ()
    predictor = open_predictor(args, one_by_one=args.one_by_one, refine=args.refine, precision=args.precision)
    sources = [*packs, *examples]
    prompt = predictor.prompt(sources)
    settle_tiles(predictor, prompt, args.tile)
    if examples:
        tell_renumbered(examples.renumbered, prompt.names)
    tell_renumbered(packs_renumbered(args.pack, packs, prompt.packs), prompt.names)
    try:
        summary = label(
            args.images,
            sources,
            args.output,
            predictor=predictor,
            config=config,
            corrections=args.corrections,
            skip=examples.masks if examples else (),
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    print(f"{summary}; see {args.output}")
    return 1 if summary.failures else 0


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names
