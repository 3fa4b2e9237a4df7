"""How far a job is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

_log = logging.getLogger(__name__)

_LINE_EVERY = 30.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Images per second, time left and failures.

    Attributes:
        done, failed: how many images so far.
    """

    def __init__(self, total: int) -> None:
        """
        Args:
            total: how many images there are to do.
        """
        self.total, self.done, self.failed = total, 0, 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, unit="image", disable=None, file=sys.stderr, smoothing=0.1)

    def advance(self, error: str | None = None) -> None:
        """Counts one image.

        Args:
            error: why it failed, if it did.
        """
        self.done += 1
        self.failed += error is not None
        if self._bar.disable:
            if error is not None:
                _log.warning("failed: %s", error)
            if time.monotonic() - self._last_line >= _LINE_EVERY:
                self._last_line = time.monotonic()
                _log.info("%s", self)
            return
        if error is not None:
            self._bar.write(f"failed: {error}", file=sys.stderr)
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / seconds
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        return f"{self.done} of {self.total} images, {rate:.1f} images/s, {left} left, {self.failed} failed"
