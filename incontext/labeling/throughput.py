"""How fast and how large a label job is: `python -m incontext.labeling.throughput`.

Renders scenes, labels them as a job, and compares with calling the predictor in a loop that reads, predicts and writes
one image after another. Runs take turns, so that a busy machine slows both alike; the medians count. The second part
labels many images and watches the memory of the process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from incontext.export.raster import write_image, write_indexed
from incontext.labeling.config import LabelConfig
from incontext.labeling.job import label
from incontext.model.zoo import load_model
from incontext.predictor import Predictor
from incontext.scenes import render_scene, task_labels
from incontext.types import Example

TASK = "spheres"


def render_examples(count: int, size: tuple[int, int]) -> list[Example]:
    """Scenes with the labels of `TASK`, the same every time."""
    generator = np.random.default_rng(0)
    scenes = [render_scene(generator, size, task=TASK) for _ in range(count)]
    return [Example(scene.image, task_labels(scene, TASK)) for scene in scenes]


def render_images(folder: Path, count: int, size: tuple[int, int], distinct: int = 40) -> list[Path]:
    """Writes scenes as JPEG files; above `distinct` they repeat, as rendering takes longer than labelling."""
    generator = np.random.default_rng(1)
    scenes = [render_scene(generator, size, task=TASK).image for _ in range(min(count, distinct))]
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        write_image(path, scenes[number % len(scenes)])
    return paths


def label_in_a_loop(paths: Sequence[Path], examples: Sequence[Example], out: Path, predictor: Predictor) -> None:
    """What a script would do: read, predict and write, one image after another, with the same examples."""
    for path in paths:
        write_indexed(out / f"{path.stem}.png", predictor.predict(path, examples).labels)


def compare(paths: Sequence[Path], counts: Sequence[int], size: tuple[int, int], rounds: int, options: dict) -> None:
    """Prints images per second of the loop and of the job, and how many times faster the job is."""
    print(f"{len(paths)} images of {size[1]} x {size[0]} pixels, medians of {rounds} rounds that take turns")
    print("| examples | loop, images/s | label, images/s | label over loop |\n|---:|---:|---:|---:|")
    for count in counts:
        examples = render_examples(count, size)
        predictor = Predictor(load_model(options["model"]), device=options["device"])

        def loop(out: Path, examples=examples, predictor=predictor) -> None:
            label_in_a_loop(paths, examples, out, predictor)

        def job(out: Path, examples=examples, predictor=predictor) -> None:
            config = LabelConfig(calibrate=False, batch_size=options["batch_size"])
            label(paths, examples, out, predictor=predictor, config=config)

        predictor.predict(paths[0], examples)  # neither pays for what a first call costs
        times = {loop: [], job: []}
        for _ in range(rounds):
            for run, taken in times.items():
                taken.append(_seconds(run))
        slow, fast = (len(paths) / statistics.median(taken) for taken in times.values())
        ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"| {count} | {slow:.1f} | {fast:.1f} | {ratio:.2f} |", flush=True)


def watch_memory(folder: Path, count: int, size: tuple[int, int], options: dict) -> None:
    """Prints the resident memory of the process while it labels many images, in ten parts of the job."""
    paths = render_images(folder / "many", count, size)
    examples = render_examples(1, size)
    predictor = Predictor(load_model(options["model"]), device=options["device"])
    out, samples, over = folder / "memory", [], threading.Event()

    def watch() -> None:
        manifest = out / "manifest.jsonl"
        while not over.wait(0.2):
            if manifest.exists():
                samples.append((sum(1 for _ in open(manifest, "rb")), resident_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        config = LabelConfig(calibrate=False, formats=("coco",), batch_size=options["batch_size"])
        summary = label(paths, examples, out, predictor=predictor, config=config)
    finally:
        over.set()
        watcher.join()
    print(f"\n{summary}\n| images done | resident memory, MiB |\n|---:|---:|")
    for part in range(1, 11):
        inside = [memory for done, memory in samples if (part - 1) * count < 10 * done <= part * count]
        if inside:
            print(f"| {part * count // 10} | {max(inside):.0f} |")
    print(f"| with annotations.json written | {resident_mib():.0f} |")


def resident_mib() -> float:
    """Memory that this process holds now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m incontext.labeling.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100, help="of the comparison (default 100)")
    parser.add_argument("--examples", type=int, nargs="*", default=[1, 8], help="how many (default 1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison (default 5)")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="also label N images and watch the memory")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"), help="default 480 640")
    parser.add_argument("--model", default="default", help="name or file (default: the bundled model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--batch-size", type=int, help="default: as incontext label")
    args = parser.parse_args(argv)
    size, options = tuple(args.size), {"model": args.model, "device": args.device, "batch_size": args.batch_size}
    with TemporaryDirectory(prefix="incontext-") as folder:
        paths = render_images(Path(folder) / "images", args.images, size)
        if args.examples:
            compare(paths, args.examples, size, args.rounds, options)
        if args.memory:
            watch_memory(Path(folder), args.memory, size, options)
    return 0


def _seconds(run: Callable[[Path], None]) -> float:
    """Of a run into a fresh folder."""
    with TemporaryDirectory(prefix="incontext-") as out:
        start = time.perf_counter()
        run(Path(out))
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
