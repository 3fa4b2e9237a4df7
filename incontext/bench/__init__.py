"""Speed and memory, measured on the machine at hand: against transformers' SegGPT, and against the machine's limits."""

from incontext.bench.benchmark import Plan, Results, run
from incontext.bench.report import markdown, save

__all__ = ["Plan", "Results", "markdown", "run", "save"]
