"""The log of a run: a CSV that can be plotted, pictures of fixed episodes and, where asked for, TensorBoard."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from incontext.atomic import replacing

log = logging.getLogger(__name__)


class RunLog:
    """Writes `log.csv`, `pictures/STEP.png` and `tensorboard/` in the folder of a run."""

    def __init__(self, out: Path, step: int, tensorboard: bool) -> None:
        """Opens the log.

        Args:
            out: the folder of the run.
            step: where the run goes on; what an interrupted run has logged of later steps is replaced.
            tensorboard: also write for TensorBoard.

        Raises:
            ValueError: if TensorBoard is asked for and not installed.
        """
        self.out, self._board = out, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("logging for TensorBoard takes the package: pip install tensorboard") from error
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def add(self, row: Mapping[str, Any], picture: np.ndarray | None) -> None:
        """Adds the numbers of an evaluation, with "step" among them, and the picture: uint8 (H, W, 3), or None."""
        append(self.out / "log.csv", row)
        log.info("%s", "  ".join(f"{name} {value}" for name, value in row.items()))
        if picture is not None:
            with replacing(self.out / "pictures" / f"{row['step']:07}.png") as draft:
                Image.fromarray(picture).save(draft)
        if self._board:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])
            if picture is not None:
                self._board.add_image("episodes", picture, row["step"], dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """Ends the log; the files stay."""
        if self._board:
            self._board.close()


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file, in place of those from the same step on that an interrupted run left."""
    rows: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["step"]) < row["step"]]
    rows.append(row)
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for each in rows for name in each)))
        writer.writeheader()
        writer.writerows(rows)
