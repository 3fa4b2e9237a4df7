"""The command must answer at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from incontext.cli.main import COMMANDS

HEAVY = ("torch", "numpy", "PIL", "scipy", "transformers", "matplotlib", "huggingface_hub", "av", "ray", "onnx")


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["onnx", "--help"], ["segment", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom incontext.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "usage: incontext" in done.stdout


def test_loading_the_bundled_model_imports_no_other_framework():
    """The first mask waits for what is imported on the way to it."""
    code = (
        "import sys, incontext\nincontext.Predictor(incontext.load_model())\n"
        "print([name for name in ('transformers', 'matplotlib', 'av', 'ray', 'onnx', 'sympy', 'torch._dynamo') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_commands_of_this_test_exist():
    assert {"bench", "onnx", "segment"} <= set(COMMANDS)
