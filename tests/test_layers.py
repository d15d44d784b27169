"""The floors of the package: a file imports only from its folder and from lower floors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "trueode"
FLOORS = {
    "errors": 0,
    "catalog": 0,
    "layers": 0.25,  # of the same floor, above the names
    "files": 0,
    "transfer": 0,
    "seeds": 0,
    "interrupts": 0,
    "console": 0,
    "options": 0.5,  # of the same floor, above its single files
    "solvers": 1,
    "fields": 1.5,  # of the same floor, above the solvers
    "drop_in": 1.5,  # likewise
    "runs": 1,
    "distributed": 1,
    "precision": 0.75,  # of torch
    "gpus": 0.8,  # likewise, above the precision
    "data": 2,
    "models": 2,
    "figures": 2,
    "evaluation": 3,
    "report": 3.5,  # of the same floor, above evaluation: those above write its pages
    "adaptation": 4,
    "auditing": 4,
    "build": 5.5,  # of the same floor, above training
    "training": 5,
    "experiment": 6,
    "sweeps": 7,
    "reproduction": 7.5,  # of the same floor, above sweeps
    "cli": 8,
    "__init__": 8,
    "__main__": 9,
}
TORCHLESS = (
    "errors",
    "catalog",
    "console",
    "files",
    "layers",
    "seeds",
    "interrupts",
    "options",
    "figures",
    "cli",
    "__init__",
    "__main__",
)
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, top_level: bool) -> list[str]:
    """The modules that a file imports, except for type checking.

    Imports inside functions are included on request.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if (isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING")
        or (top_level and isinstance(branch, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    for module in imports(path, top_level=False):
        parts = module.split(".")
        if parts[0] != "trueode" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        target = parts[1]
        assert target == room(path) or FLOORS[target] < FLOORS[room(path)], (
            f"{path.name} imports {module}"
        )


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in TORCHLESS], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_no_torch_where_start_up_must_be_quick(path: Path) -> None:
    assert not [
        module
        for module in imports(path, top_level=True)
        if module.split(".")[0] in ("torch", "torchvision")
    ]


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    allowed = {
        "matplotlib": "figures",
        "torchvision": "",
        "tensorboard": "",
        "scipy": "",
        "torchdiffeq": "",
        "torchdyn": "",
        "torchode": "",
        "lightning": "",
        "pytorch_lightning": "",
        "pyarrow": "",
        "distributed": "sweeps",
    }
    for path in FILES:
        for module in imports(path, top_level=True):
            library = module.split(".")[0]
            assert allowed.get(library, room(path)) == room(path), (
                f"{path} imports {module} at its top"
            )


def test_no_file_imports_itself_by_way_of_others() -> None:
    names = {
        ".".join(("trueode", *path.relative_to(SOURCE).with_suffix("").parts)): path
        for path in FILES
    }
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = imports(path, top_level=False)
        found += [module.rpartition(".")[0] for module in found]
        graph[name] = {module for module in found if module in names and module != name}
    left = dict(graph)
    while done := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in done:
            del left[name]
    assert not left, {name: sorted(needed & left.keys()) for name, needed in left.items()}
