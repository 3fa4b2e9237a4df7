"""Writing files whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a new path beside `path` to write to; afterwards that file takes `path`'s place in one step.

    Whoever reads `path` sees the old file or the new one, never half of it. If the block fails, the old file
    stays and the new one goes. Missing folders are made.

    Args:
        path: the file to write. The path to write to has the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem[:64]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
