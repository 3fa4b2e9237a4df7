"""Which images this process works on, while other processes work on the same folder.

A claim is a lock on one byte of the file OUT/.claims, at a place that the image's name decides. The kernel gives it
back when its process ends, however it ends: no claim goes stale, and there is nothing to clean up. Network file
systems pass such locks on to their server.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_log = logging.getLogger(__name__)

_FILE = ".claims"
_FINISHING = 0  # the byte that whoever writes the whole dataset's files holds
_FIRST = 1  # images begin here

_open_folders: set[tuple[int, int]] = set()


class Claims:
    """Claims on the images of one output folder. Where there are no locks, every claim is granted.

    Raises:
        ValueError: this process has claims open on that folder already: locks belong to processes, and could not
            keep two jobs of one process apart.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        info = os.fstat(self._file)
        self._identity = (info.st_dev, info.st_ino)
        if self._identity in _open_folders:
            # The descriptor stays open: closing any one of a file's drops all locks that the process has on it.
            raise ValueError(f"{folder}: a job of this process is at work on it; wait for its end")
        _open_folders.add(self._identity)
        self._has_locks = fcntl is not None
        if not self._has_locks:
            _log.warning("this system has no file locks: let only one process at a time work on %s", folder)

    def take(self, image: str) -> bool:
        """Claims an image; False where another process has it."""
        return self._lock(_place(image), 1)

    def release(self, image: str) -> None:
        """Gives a claim back."""
        self._unlock(_place(image), 1)

    def take_all(self) -> bool:
        """Claims all that there can be; False where another process has an image, or writes the dataset's files."""
        return self._lock(_FINISHING, 0)

    def release_all(self) -> None:
        """Gives all claims back."""
        self._unlock(_FINISHING, 0)

    def finishing(self) -> _Finishing:
        """A context in which no other process writes the whole dataset's files; waits for its turn."""
        return _Finishing(self)

    def close(self) -> None:
        """Gives everything back."""
        _open_folders.discard(self._identity)
        os.close(self._file)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, start: int, length: int, wait: bool = False) -> bool:
        if not self._has_locks:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)
        except (BlockingIOError, PermissionError):  # POSIX allows both answers
            return False
        except OSError as error:
            self._has_locks = False
            _log.warning("this file system has no locks (%s): let only one process at a time work on it", error)
        return True

    def _unlock(self, start: int, length: int) -> None:
        if self._has_locks:
            fcntl.lockf(self._file, fcntl.LOCK_UN, length, start)


class _Finishing:
    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def __enter__(self) -> None:
        self._claims._lock(_FINISHING, 1, wait=True)

    def __exit__(self, *_: object) -> None:
        self._claims._unlock(_FINISHING, 1)


def _place(image: str) -> int:
    """A byte's number from 1 to 2^62: the same name, the same byte."""
    return _FIRST + int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") % ((1 << 62) - 1)
