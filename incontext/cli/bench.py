"""`incontext bench`: how fast this machine is, against transformers and against its own limits."""

from __future__ import annotations

import argparse
from pathlib import Path

from incontext.cli.arguments import number_list


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed on this machine",
        description="Times the model in interleaved rounds: against transformers' SegGPT where that is installed and "
        "can be such a model, else against the form in which it is trained. Prints medians, ranges, how far the "
        "outputs differ, the share of the best matrix product of this machine, and peak memory; writes "
        "DIR/bench.json, DIR/bench.md and DIR/bench.png.",
    )
    parser.add_argument(
        "--model",
        default="bundled",
        choices=("bundled", "vit-large", "tiny"),
        help="bundled (default), or a size with random weights, which computes as fast as with published ones",
    )
    parser.add_argument(
        "--examples", type=number_list, metavar="N,N", help="how many examples (default 1,2,4,8,16; vit-large 1,8)"
    )
    parser.add_argument(
        "--batch", type=number_list, default=(), metavar="B,B", help="also several queries at once, with one example"
    )
    parser.add_argument("--precision", default="fp32", metavar="P,P", help="of fp32,bf16,fp16,auto (default fp32)")
    parser.add_argument("--device", default="auto", metavar="D,D", help="of cpu,cuda,mps (default auto)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="rounds in which each is timed (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on a CPU (default: all cores)")
    parser.add_argument(
        "--against",
        choices=("auto", "transformers", "plain"),
        default="auto",
        help="what to compare with (default auto: transformers where possible)",
    )
    parser.add_argument(
        "--cached", action="store_true", help="also cache prompts where that is an approximation (published weights)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory, which takes a process each")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench"), metavar="DIR", help="default: bench/")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: if a device or precision is unknown, or transformers cannot take part.
    """
    import torch

    from incontext.bench import Plan, markdown, run, save
    from incontext.device import pick_device
    from incontext.model.inference import pick_precision

    if args.pairs < 1 or (args.threads or 1) < 1:
        raise ValueError(f"expected at least 1 round and 1 thread, got {args.pairs} and {args.threads}")
    if args.threads:
        torch.set_num_threads(args.threads)
    devices = tuple(dict.fromkeys(str(pick_device(name)) for name in args.device.split(",")))
    asked = [pick_precision(name, torch.device(devices[0])) for name in args.precision.split(",")]
    plan = Plan(
        size=args.model,
        devices=devices,
        examples=args.examples or ((1, 8) if args.model == "vit-large" else (1, 2, 4, 8, 16)),
        batches=args.batch,
        precisions=tuple(dict.fromkeys(asked)),
        pairs=args.pairs,
        cached=args.cached,
        against_transformers={"auto": None, "transformers": True, "plain": False}[args.against],
        memory=not args.no_memory,
    )
    # What is there is saved after each case: a run that is stopped leaves its results.
    results = run(plan, after_case=lambda so_far: save(so_far, args.output))
    print(markdown(results))
    print(f"bench.json, bench.md and the chart bench.png are in {args.output}")
    return 0
