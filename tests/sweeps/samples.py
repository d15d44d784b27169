"""A small sweep, and helpers that inspect one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console

from trueode.sweeps.table import TIMINGS

BASE = {
    "niter": 24,
    "lr": 0.01,
    "model_checkpoint_freq": 4,
    "evaluate_with_dif_solver": True,
    "test_solver_list": ["euler", "rk4"],
    "test_factor_list": [0.5, 1, 2],
}
SOURCE = {"name": "grid", "base": BASE, "axes": {"step_size": [1, 0.25], "random_seed": [0, 1]}}


def told() -> Console:
    return Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table(folder: Path, name: str = "grid") -> list[dict[str, str]]:
    """The table without wall times."""
    with (folder / "tables" / f"{name}.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key not in TIMINGS}
            for row in csv.DictReader(file)
        ]
