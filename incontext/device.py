"""Which device computes, and when it is done."""

from __future__ import annotations

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Turns a user's choice of device into one that is there.

    Args:
        device: "auto" (CUDA if there is one, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:1", "mps",
            or a torch device.

    Raises:
        ValueError: for another name, or a device that this machine or this torch lacks.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device(_available()[0])
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', got {device!r}") from error
    names = _available()
    if chosen.type not in names:
        known = chosen.type in ("cpu", "cuda", "mps")
        what = "which torch cannot use here" if known else "which is not supported"
        raise ValueError(f"device: got {str(chosen)!r}, {what}; choose one of {['auto', *names]}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {str(chosen)!r}, but torch finds {torch.cuda.device_count()} CUDA devices (counted from 0)"
        )
    return chosen


def synchronise(device: torch.device) -> None:
    """Waits until a device has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _available() -> list[str]:
    """Device types that torch can use here, the fastest first. The CPU is always the last."""
    names = []
    if torch.cuda.is_available():
        names.append("cuda")
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]
