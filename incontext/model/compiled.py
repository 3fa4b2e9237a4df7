"""Attention compiled for this very CPU, for those who ask for it: about twice as fast as torch's operations can be.

`attention.cpp` is compiled by g++ against the installed torch (`incontext compile`), and kept in the user's cache
under a name made of its source, torch's version and the CPU, so that what was compiled for others is never loaded.
Without it everything works the same, slower. Linux and CPUs with AVX-512 only: elsewhere nobody has measured a gain.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from incontext.atomic import replacing

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
"""What it computes in."""

_hidden = False
_SOURCE = Path(__file__).with_name("attention.cpp")
_FLAGS = (
    *("-O3", "-std=c++20", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC", "-shared", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)


def compiled_attention(dtype: torch.dtype) -> Callable | None:
    """Returns the operation `attention` of attention.cpp, or None where it was not compiled or has not this type."""
    return _load() if dtype in DTYPES and not _hidden else None


@contextmanager
def without_compiled() -> Iterator[None]:
    """Hides what was compiled within a `with` block, for comparisons, from all threads."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


def compiled_path() -> Path:
    """Where the compiled attention of this torch and this CPU is, or would be."""
    what = (_SOURCE.read_text(encoding="utf-8"), *_FLAGS, torch.__version__, platform.platform(), _cpu())
    return _folder() / f"attention-{hashlib.sha256('|'.join(what).encode()).hexdigest()[:16]}.so"


def compile_attention() -> Path:
    """Compiles the attention for this CPU, unless that has been done; models of this process use it from now on.

    Returns:
        Where it is.

    Raises:
        ValueError: if this machine is of another kind, or has no compiler, or the compiler fails; with what to do.
    """
    if platform.system() != "Linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise ValueError(
            f"expected Linux on a CPU with AVX-512, got {platform.system()} with "
            f"{torch.backends.cpu.get_cpu_capability()}; everything works without compiling"
        )
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise ValueError("expected a C++ compiler, found none; install one (apt install g++), or name it in CXX")
    path = compiled_path()
    if not path.exists():
        with replacing(path) as draft:
            _compile(compiler, draft)
    _load.cache_clear()
    if _load() is None:
        path.unlink(missing_ok=True)
        raise ValueError("what was compiled cannot be loaded; see the warning above")
    return path


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "incontext"


def _compile(compiler: str, output: Path) -> None:
    root = Path(torch.__path__[0])
    # torch's own OpenMP library, under whatever name: a second one would bring threads of its own.
    openmp = [str(each) for each in sorted((root / "lib").glob("libgomp*.so*"))[:1]]
    command = [
        *(compiler, *_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        *(f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"),
        *(str(_SOURCE), "-o", str(output), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", *openmp),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        told = "\n".join(done.stderr.strip().splitlines()[:12])
        raise ValueError(f"{' '.join(command)}\nfailed with status {done.returncode}:\n{told}")


@functools.cache
def _load() -> Callable | None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not (path := compiled_path()).exists():
        return None
    try:
        torch.ops.load_library(path)
        return torch.ops.incontext.attention.default
    except (OSError, RuntimeError, AttributeError) as error:
        logger.warning("%s: cannot be loaded, attention stays slower (%s)", path, str(error).splitlines()[0])
        return None


def _cpu() -> str:
    """What the CPU calls itself, and the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "|".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))
