"""`incontext demo`: from a few examples to scored masks, on scenes that the project renders itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from incontext.cli.arguments import output_folder
from incontext.cli.model_options import add_device, add_model, open_predictor

TASKS = ("biggest red sphere", "kinds", "shadows", "top faces")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="segment rendered scenes from a few examples, and score the result",
        description="Renders scenes, shows the model a few with their masks, segments others, scores them "
        "against their known truth beside two baselines, and writes images, masks, results.json and a sheet.",
    )
    parser.add_argument(
        "-o", "--output", type=output_folder, default=Path("incontext-demo"), metavar="DIR", help="where to write"
    )
    add_model(parser)
    parser.add_argument("--shots", type=int, default=2, metavar="N", help="examples per task (default 2)")
    parser.add_argument("--queries", type=int, default=4, metavar="N", help="scenes to segment per task (default 4)")
    parser.add_argument("--tasks", metavar="NAME,NAME", help=f"what to segment (default: {', '.join(TASKS)})")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of the scenes (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status."""
    from incontext.evaluation import BASELINES, Report, rendered, score_episodes
    from incontext.evaluation.report import aligned, save
    from incontext.export import overlay, write_image, write_indexed
    from incontext.scenes import TASKS as KNOWN

    tasks = [task.strip() for task in args.tasks.split(",")] if args.tasks else list(TASKS)
    unknown = [task for task in tasks if task not in KNOWN]
    if unknown:
        raise ValueError(f"expected tasks among {', '.join(KNOWN)}; got {', '.join(unknown)}")
    if min(args.shots, args.queries) < 1 or args.size < 32:
        raise ValueError("expected at least 1 example, 1 query and a side of 32 pixels; give larger numbers")

    methods = {"model": open_predictor(args)}
    methods.update({baseline.name: baseline() for baseline in BASELINES})
    scores, samples = [], []
    for task in tasks:
        episodes = rendered(task, args.queries, args.shots, seed=args.seed, size=(args.size, args.size))
        found, kept = score_episodes(task, "scenes", episodes, methods, (args.shots,), samples=args.queries)
        scores += found
        samples += kept
    report = Report(scores, samples, {"seed": args.seed, "size": args.size, "shots": args.shots})

    for sample in samples:
        episode, folder = sample.episode, args.output / sample.set.replace(" ", "-")
        for number, example in enumerate(episode.examples, start=1):
            write_image(folder / f"example-{number}.png", example.image)
            write_indexed(folder / f"example-{number}-mask.png", example.labels)
        query = folder / f"query-{episode.name.removeprefix(f'{sample.set} ')}"
        found = sample.results["model", args.shots].labels
        write_image(f"{query}.png", episode.image)
        write_indexed(f"{query}-mask.png", found)
        write_indexed(f"{query}-truth.png", episode.truth)
        write_image(f"{query}-overlay.png", overlay(episode.image, found, colours=_colours(episode.ids)))
    save(report, args.output)
    sheet = args.output / "contact-sheet.png"
    write_image(sheet, _sheet(report, args.shots))

    print(aligned(report))
    print("mIoU in percent, on scenes that are not among the examples; the last number is how many there were")
    print(f"look at {sheet}; images, masks and results.json lie beside it")
    return 0


def _sheet(report, shots: int):
    """One section for each task: examples with their masks, then queries with what the model found."""
    from incontext.evaluation import Tally
    from incontext.export import Card, lay_out, overlay

    sections: dict[str, tuple[str, str, list]] = {}
    for sample in report.samples:
        e = sample.episode
        colours = _colours(e.ids)
        if sample.set not in sections:
            means = [f"{s.method} {100 * s.miou:.0f}" for s in report.scores if s.set == sample.set]
            names = {i: name for x in e.examples for i, name in x.names.items()}
            legend = [(colours[i], names.get(i, str(i))) for i in e.ids] if len(e.ids) > 1 else []
            shown = [(x.image, overlay(x.image, x.labels, colours=colours)) for x in e.examples]
            cards = [Card(pictures, "example", legend) for pictures in shown]
            sections[sample.set] = (sample.set.capitalize(), f"mIoU in percent: {', '.join(means)}", cards)
        found = sample.results["model", shots].labels
        tally = Tally()
        tally.add(found, e.truth, e.ids)
        picture = overlay(e.image, found, colours=colours)
        sections[sample.set][2].append(Card((e.image, picture), f"query, found: IoU {100 * tally.image_mean:.0f}"))
    return lay_out(list(sections.values()), title="One model, a few examples, any task", height=236)


def _colours(ids: tuple[int, ...]) -> dict[int, tuple[int, int, int]]:
    """How ids are drawn. A lone id is bright green: red, the usual first colour, is lost on a red sphere."""
    from incontext.export import display_colour

    return {ids[0]: (0, 255, 140)} if len(ids) == 1 else {i: display_colour(i) for i in ids}
