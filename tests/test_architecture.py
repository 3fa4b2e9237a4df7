"""The layers: a file imports only from layers below its own, read from the imports with `ast`.

L0  values        types, palette, image, canvas and their parts; no torch.nn modules.
    value code    export/ and scenes/ make pictures, files and scenes of values. They stand on L0 alone;
                  applications and front ends stand on them, and L0 does not.
L1  model/        imports L0.
L2  inference     predictor, pack and their parts; imports L0 and L1.
L3  applications  labeling/, video/, interactive/, training/, evaluation/; import L0 to L2, never each other.
L4  front ends    cli/, web/.

Imports inside functions and under TYPE_CHECKING count too. `incontext/__init__.py` is the list of what the
package offers, and may name anything; front ends may read it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "incontext"

VALUES = {
    "atomic",
    "canvas",
    "clicks",
    "colour_masks",
    "device",
    "image",
    "labelled_folders",
    "palette",
    "picture_file",
    "shades",
    "types",
}
VALUE_CODE = {"export", "scenes"}
MODEL = {"model"}
INFERENCE = {
    "appearance",
    "appearance_cache",
    "decoding",
    "example_crops",
    "geodesic",
    "pack",
    "painter",
    "predictor",
    "prefetch",
    "prompt",
    "refinement",
    "tiling",
}
APPLICATIONS = {"bench", "evaluation", "interactive", "labeling", "training", "video"}
FRONT_ENDS = {"cli", "web"}

BELOW = {
    **dict.fromkeys(VALUES, VALUES),
    **{name: VALUES | {name} for name in VALUE_CODE},
    **dict.fromkeys(MODEL, VALUES | MODEL),
    **dict.fromkeys(INFERENCE, VALUES | MODEL | INFERENCE),
    **{name: VALUES | VALUE_CODE | MODEL | INFERENCE | {name} for name in APPLICATIONS},
    **dict.fromkeys(FRONT_ENDS, VALUES | VALUE_CODE | MODEL | INFERENCE | APPLICATIONS | FRONT_ENDS | {"__init__"}),
}
FACADES = {"__init__", "__main__"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """A file's dotted name: "incontext.model.config"."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(path: Path) -> str:
    """The file or folder right inside the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, within_functions: bool = True) -> Iterator[str]:
    """Dotted names that a file imports. `from a import b` yields "a.b"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if within_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module(path).split(".")
                package = here if path.stem == "__init__" else here[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield from (f"{base}.{name.name}" for name in node.names)


def own_imports(path: Path, within_functions: bool = True) -> set[str]:
    return {name for name in imports(path, within_functions) if name.split(".")[0] == "incontext"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_only_from_below(path):
    if part(path) in FACADES:
        return
    assert part(path) in BELOW, f"give {part(path)} a layer in {Path(__file__).name}"
    for name in own_imports(path):
        target = name.split(".")[1] if "." in name else "__init__"
        assert target in BELOW[part(path)], f"{module(path)} imports {name}, which is not on a layer below it"


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in VALUES | VALUE_CODE], ids=module)
def test_values_hold_no_network(path):
    """Pure functions of torch.nn.functional are mathematics; modules and parameters are not values."""
    for name in imports(path):
        assert not (name + ".").startswith("torch.nn.") or name.startswith("torch.nn.functional"), name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.nn":
            assert node.attr == "functional", f"torch.nn.{node.attr}"


def test_no_import_cycles():
    """Between files, counting what is imported when they are loaded."""
    names = {module(path) for path in FILES}

    def owner(name: str) -> str:
        while name not in names:
            name = name.rpartition(".")[0]
        return name

    graph = {
        module(path): {owner(name) for name in own_imports(path, within_functions=False)} - {module(path)}
        for path in FILES
        if part(path) not in FACADES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_is_one_noun(path):
    assert not {"utils", "helpers", "common", "misc"} & {path.stem, *path.relative_to(PACKAGE).parts}
    assert len(path.read_text(encoding="utf-8").splitlines()) < 500, "split it"


def test_the_reader_of_imports_reads_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "incontext")
    folder = tmp_path / "incontext" / "model"
    folder.mkdir(parents=True)
    file = folder / "layers.py"
    file.write_text(
        "import torch.nn as nn\nfrom . import config\nfrom ..canvas import split as cut\nfrom .zoo import "
        "load_model\ndef late():\n    from incontext.cli import main\n"
    )
    found = {"torch.nn", "incontext.model.config", "incontext.canvas.split", "incontext.model.zoo.load_model"}
    assert set(imports(file)) == found | {"incontext.cli.main"}
    assert set(imports(file, within_functions=False)) == found
    (folder / "__init__.py").write_text("from .layers import Block\n")
    assert set(imports(folder / "__init__.py")) == {"incontext.model.layers.Block"}
