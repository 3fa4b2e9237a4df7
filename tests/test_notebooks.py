"""The notebooks run from top to bottom, and are kept without what they put out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from incontext.model.zoo import DEFAULT as BUNDLED
from incontext.model.zoo import MODELS, describe

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert ROOT / "notebooks" / "quickstart.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_kept(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"clear the outputs of {path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    if describe(MODELS[BUNDLED]).place == "missing":
        pytest.skip("the bundled model's file is not in incontext/weights")
    # The kernel of this interpreter, wherever pytest was started from; and this checkout, installed or not.
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix, "share", "jupyter")))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nprint(sys.prefix)"))
    folder = tmp_path / "work"
    folder.mkdir()
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()  # raises at the first cell that fails
    finally:  # a command that fails does not stop its cell; what it said is shown if the test fails
        print(*(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output))
    *cells, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert last.outputs[0].text.strip() == sys.prefix
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert not list(folder.iterdir())  # it leaves nothing where it was started
