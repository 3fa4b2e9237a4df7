"""`incontext eval semantic | panoptic | clicks`: whole data sets of still images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from incontext.cli.arguments import number_list, output_folder, positive, word_list
from incontext.cli.model_options import add_device, add_model, add_pack, open_predictor
from incontext.cli.progress import progress


def add_parsers(protocols: argparse._SubParsersAction) -> None:
    """Adds the protocols of still images."""
    semantic = protocols.add_parser(
        "semantic",
        help="mIoU and pixel accuracy with one prompt for all images, such as a pack for ADE20K",
        description="Segments every image with the same prompt. DATA: ADE20K's layout (images/SPLIT, "
        "annotations/SPLIT; 0 does not count), or images + masks. The ids of the prompt are those of the data.",
    )
    semantic.add_argument("data", type=Path, metavar="DATA", help="the data set")
    semantic.add_argument("--split", default="validation", help="of ADE20K's layout (default validation)")
    _add_prompt(semantic)
    semantic.set_defaults(run=run_semantic)

    panoptic = protocols.add_parser(
        "panoptic",
        help="PQ, SQ and RQ in COCO's panoptic layout",
        description="Segments every image with the same prompt, takes each connected part of a thing as an object, "
        "and scores it; or scores a panoptic JSON made elsewhere. The ids of the prompt are the category ids.",
    )
    panoptic.add_argument("data", type=Path, metavar="JSON", help="such as annotations/panoptic_val2017.json")
    panoptic.add_argument("--images", type=Path, metavar="DIR", help="its images (default: ../val2017 and the like)")
    panoptic.add_argument("--results", type=Path, metavar="JSON", help="score this instead of a model")
    _add_prompt(panoptic)
    panoptic.set_defaults(run=run_panoptic)

    clicks = protocols.add_parser(
        "clicks",
        help="interactive mIoU: simulated clicks on single objects, no examples",
        description="The first click goes to the middle of the object, each further one to the middle of the largest "
        "error. Every segment of a mask is an object, whatever its id means: DATA holds SET/images + SET/masks.",
    )
    clicks.add_argument("data", type=Path, metavar="DATA", help="a folder of sets, or one set")
    clicks.add_argument("--sets", type=word_list, metavar="NAME,NAME", help="only these sets (default: all)")
    clicks.add_argument(
        "--clicks", type=number_list, default=(1, 3, 5), metavar="N,N", help="report after so many (default 1,3,5)"
    )
    clicks.add_argument("--objects", type=positive, default=1, metavar="N", help="largest of each image (default 1)")
    add_model(clicks)
    add_device(clicks)
    _add_limits(clicks)
    clicks.set_defaults(run=run_clicks)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    add_pack(parser)
    parser.add_argument(
        "--examples", action="append", default=[], metavar="SOURCE", help="a folder of images and masks, or a JSON"
    )
    add_model(parser)
    add_device(parser)
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=positive, metavar="N", help="images per set, evenly spread (default: all)")
    parser.add_argument(
        "-o", "--output", "--out", type=output_folder, metavar="DIR", help="write results.json and .md there"
    )


def run_semantic(args: argparse.Namespace) -> int:
    """Runs `incontext eval semantic`; returns the exit status."""
    from incontext.evaluation import tables
    from incontext.evaluation.episodes import spread
    from incontext.evaluation.semantic import evaluate_semantic, open_semantic

    data = open_semantic(args.data, args.split)
    items = spread(list(data.items), args.limit)
    score = evaluate_semantic(data, _predict(args), progress(items, "images", len(items), "image"))
    rows = [["class", "name", "IoU"]]
    rows += [[str(id), data.names.get(id, ""), tables.percent(value)] for id, value in score.ious.items()]
    rows.append(["mean", f"{len(score.ious)} classes", tables.percent(score.miou)])
    print(tables.align(rows, text=2, means=1))
    print(
        f"{score.images} images, mIoU {tables.percent(score.miou)}, pixel accuracy "
        f"{tables.percent(score.pixel_accuracy)}, in percent"
    )
    plain = {
        "miou": tables.number(score.miou),
        "pixel_accuracy": tables.number(score.pixel_accuracy),
        "images": score.images,
        "ious": {str(id): tables.number(value) for id, value in score.ious.items()},
    }
    return _save(args, plain, tables.markdown(rows, text=2))


def run_panoptic(args: argparse.Namespace) -> int:
    """Runs `incontext eval panoptic`; returns the exit status."""
    from incontext.evaluation import tables
    from incontext.evaluation.episodes import spread
    from incontext.evaluation.panoptic import PanopticTally, open_panoptic, segments_of
    from incontext.image import open_image

    data = open_panoptic(args.data, args.images)
    items = spread(list(data.items), args.limit)
    tally = PanopticTally()
    if args.results:
        found = {item.name: item for item in open_panoptic(args.results, args.images).items}
        missing = [item.name for item in items if item.name not in found]
        if missing:
            raise ValueError(f"{args.results}: expected a result for each image, found none for {missing[0]}")
        for item in progress(items, "images", len(items), "image"):
            result = found[item.name]
            classes = {id: segment.category for id, segment in result.segments.items()}
            tally.add(result.open_segments(), classes, item.open_segments(), item.segments)
    else:
        predict = _predict(args)
        for item in progress(items, "images", len(items), "image"):
            segments, classes = segments_of(predict(open_image(item.image)), data.things)
            tally.add(segments, classes, item.open_segments(), item.segments)
    parts = {"all": None, "things": data.things, "stuff": set(data.names) - data.things}
    rows = [["", "PQ", "SQ", "RQ", "classes"]]
    whole = {name: tally.quality(classes) for name, classes in parts.items()}
    for name, q in whole.items():
        rows.append([name, *map(tables.percent, (q.pq, q.sq, q.rq)), str(q.classes)])
    print(tables.align(rows))
    print(f"{len(items)} images, in percent")
    plain = {name: {k: tables.number(getattr(q, k)) for k in ("pq", "sq", "rq")} for name, q in whole.items()}
    plain["per_class"] = {data.names.get(id, str(id)): tables.number(q.pq) for id, q in tally.per_class.items()}
    return _save(args, plain, tables.markdown(rows))


def run_clicks(args: argparse.Namespace) -> int:
    """Runs `incontext eval clicks`; returns the exit status."""
    from incontext.evaluation import tables
    from incontext.evaluation.clicks import TARGETS, click_objects, clicks_needed, mean_iou, run_clicks
    from incontext.evaluation.episodes import spread
    from incontext.labelled_folders import ImageSet, find_sets
    from incontext.types import IGNORE

    predictor = open_predictor(args)
    most = max(args.clicks)

    def predict(image, clicks):
        return predictor.click(image, clicks).labels

    sets = [source for source in find_sets(args.data, args.sets) if isinstance(source, ImageSet)]
    if not sets:
        raise ValueError(f"{args.data}: expected sets of images, found videos only")
    columns = [f"mIoU {count}" for count in args.clicks] + [f"NoC{100 * target:.0f}" for target in TARGETS]
    rows, plain = [["set", "objects", *columns]], {}
    for source in sets:
        objects = list(click_objects(spread(list(source.items), args.limit), objects=args.objects))
        runs = []
        for name, item, id in progress(objects, source.name, len(objects), "image"):
            image, labels = item.open_pair()
            runs.append(
                run_clicks(
                    name,
                    image,
                    labels == id,
                    predict,
                    count=most,
                    valid=labels != IGNORE,
                )
            )
        after = [mean_iou(runs, count) for count in args.clicks]
        needed = [clicks_needed(runs, target, most) for target in TARGETS]
        cells = [*map(tables.percent, after), *(f"{value:.2f}" for value in needed)]
        rows.append([source.name, str(len(runs)), *cells])
        values = map(tables.number, (*after, *needed))
        plain[source.name] = {"objects": len(runs), **dict(zip(columns, values, strict=True))}
    print(tables.align(rows))
    print(
        f"mIoU in percent after so many clicks; NoC: mean number of clicks to that IoU, {most} where it is not reached"
    )
    return _save(args, plain, tables.markdown(rows))


def _predict(args: argparse.Namespace) -> Callable:
    """Image -> labels, with the prompt that the user asked for."""
    from incontext.labeling.example_sources import open_examples
    from incontext.pack.library import open_pack

    if not (args.pack or args.examples):
        raise ValueError("expected --pack or --examples (or --results), got none; a model needs a prompt")
    sources = [open_pack(pack) for pack in args.pack]
    if args.examples:
        shown = open_examples(args.examples)
        if shown.renumbered:
            raise ValueError(f"--examples: expected one id for each class, got classes renumbered: {shown.renumbered}")
        sources += shown.examples
    predictor = open_predictor(args)
    prompt = predictor.prompt(sources)
    return lambda image: predictor.predict(image, prompt).labels


def _save(args: argparse.Namespace, plain: dict, table: str) -> int:
    from incontext.evaluation import tables

    if args.output:
        texts = {"results.json": json.dumps(plain, indent=1) + "\n", "results.md": table}
        print("wrote " + ", ".join(str(path) for path in tables.write_texts(args.output, texts)))
    return 0
