"""Peak memory of one side, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from incontext.bench.models import build_model, make_inputs
from incontext.bench.sides import Side, prepare, warm_up


def measure_peak(size: str, side: Side, queries: int, examples: int, device: torch.device, threads: int) -> int | None:
    """Returns the most memory that a process held while it painted, weights, libraries and inputs included.

    Args:
        size: of the model.
        side: what to run.
        queries, examples: B and N.
        device: on a GPU its own memory counts, else the process's resident memory.
        threads: of torch.

    Returns:
        Bytes; None where the process failed, as for lack of memory.
    """
    task = [size, side.way, side.precision, queries, examples, str(device), threads]
    command = [sys.executable, "-m", "incontext.bench.memory", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _peak(size: str, way: str, precision: str, queries: int, examples: int, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    device = torch.device(device)
    model = build_model(size, device)
    inputs = make_inputs(model, queries, examples)
    paint = prepare(Side(way, precision), model, inputs)
    del model  # what the side does not share with it may go
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        warm_up(paint, device)  # what a replayed graph uses counts while it is captured
        return torch.cuda.max_memory_allocated(device)
    _forget_peak()
    paint()
    return _resident_peak()


def _forget_peak() -> None:
    """Starts the peak anew, where the system can: that of building the model is none of the side's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # macOS, or a locked container; the peak is then that of the whole process


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(_peak(*json.loads(sys.argv[1])))
