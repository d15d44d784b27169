"""The path into a solve, as described in CONTRIBUTING.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trueode import solvers
from trueode.solvers.backends import BACKENDS, generic

FOLDER = Path(solvers.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_no_function_takes_more_than_five_arguments(path: Path) -> None:
    """Except the public `solve`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not (
            path.name == "solving.py" and node.name == "solve"
        ):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [each.arg for each in arguments if each.arg not in ("self", "cls", "ctx")]
            assert len(names) <= 5, f"{path.name}: {node.name}({', '.join(names)})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_no_state_lies_in_modules(path: Path) -> None:
    """Except in `RUNTIME`: no module rebinds its names or holds a list."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        listed = isinstance(node, ast.Assign) and any(
            isinstance(x, ast.Name) and x.id == "__all__" for x in node.targets
        )
        assert listed or not isinstance(value, ast.List | ast.ListComp | ast.Set), ast.unparse(node)


def test_backends_are_a_list_that_ends_with_the_one_for_all() -> None:
    assert BACKENDS[-1] is generic
    assert all(callable(backend.accepts) and callable(backend.solve) for backend in BACKENDS)
