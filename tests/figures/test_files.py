"""Properties of every figure: file, bytes, empty and broken inputs, no torch, no global state."""

import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from tests.figures.samples import density, history, portrait, rows
from trueode import figures

T = np.linspace(0, 10, 21)
SERIES = np.sin(T)[None, :, None] * np.ones((3, 1, 2))
NAN = np.full(5, np.nan)
NO_PORTRAIT = portrait() | {
    "paths": np.empty((5, 0, 2)),
    "output": np.empty((0, 2)),
    "labels": np.empty(0, int),
    "predictions": np.empty(0, int),
    "accuracy": float("nan"),
}
BROKEN_PORTRAIT = portrait() | {
    "paths": np.full((5, 30, 2), np.nan),
    "output": np.full((30, 2), np.inf),
}

FULL = {
    "loss": lambda: figures.loss(history()),
    "accuracy": lambda: figures.metric(history(), "accuracy"),
    "mse": lambda: figures.metric(history(), "mse"),
    "effort": lambda: figures.effort(history(adaptive=True)),
    "solver_swap": lambda: figures.solver_swap(rows() + rows(kind="adaptive"), "euler, h = 1/64"),
    "trajectories": lambda: figures.trajectories(portrait()),
    "regions": lambda: figures.regions(portrait(n_classes=10)),
    "time_series": lambda: figures.time_series(T, SERIES, SERIES),
    "density": lambda: figures.density(density()),
}
DEGENERATE = {
    "no columns": lambda: figures.loss({}),
    "no rows": lambda: figures.effort({name: np.empty(0) for name in history()}),
    "one row": lambda: figures.metric(
        {name: column[:1] for name, column in history().items()}, "accuracy"
    ),
    "one row, effort": lambda: figures.effort(
        {name: column[:1] for name, column in history(adaptive=True).items()}
    ),
    "only NaN": lambda: figures.loss({"iteration": np.arange(5.0), "loss": NAN, "test_loss": NAN}),
    "some NaN and infinity": lambda: figures.loss(
        {"iteration": np.arange(4.0), "loss": np.array([1, np.nan, np.inf, 2])}
    ),
    "constant": lambda: figures.metric(
        {"iteration": np.arange(5.0), "accuracy": np.ones(5)}, "accuracy"
    ),
    "zero mse": lambda: figures.metric({"iteration": np.arange(5.0), "mse": np.zeros(5)}, "mse"),
    "no swaps": lambda: figures.solver_swap([], "euler"),
    "one swap": lambda: figures.solver_swap(rows()[1:2], "euler"),
    "swaps of NaN": lambda: figures.solver_swap(
        [row | {"metric": np.nan, "changed": None} for row in rows()], "euler"
    ),
    "swaps without error": lambda: figures.solver_swap(
        [row | {"metric": 0.0} for row in rows()], "euler", name="mse"
    ),
    "an unknown solver": lambda: figures.solver_swap(
        [row | {"method": "mine"} for row in rows()], "mine"
    ),
    "no paths": lambda: figures.trajectories(NO_PORTRAIT),
    "no output": lambda: figures.regions(NO_PORTRAIT),
    "paths of NaN": lambda: figures.trajectories(BROKEN_PORTRAIT),
    "infinite output": lambda: figures.regions(BROKEN_PORTRAIT),
    "one sample": lambda: figures.trajectories(portrait(1)),
    "one grid point": lambda: figures.regions(
        portrait() | {"grid_x": np.zeros(1), "grid_y": np.zeros(1), "regions": np.zeros((1, 1))}
    ),
    "no series": lambda: figures.time_series(T, np.empty((0, 21, 2)), np.empty((0, 21, 2))),
    "series of NaN": lambda: figures.time_series(T, SERIES * np.nan, SERIES),
    "one time": lambda: figures.time_series(T[:1], SERIES[:, :1], SERIES[:, :1]),
}


@pytest.mark.parametrize("draw", [*FULL.values(), *DEGENERATE.values()], ids=[*FULL, *DEGENERATE])
def test_every_figure_is_written_whole(draw, tmp_path):
    path = figures.save(draw(), tmp_path / "new" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(path.parent) == ["figure.png"]  # no temporary file is left


@pytest.mark.parametrize("name", FULL)
def test_equal_input_gives_equal_bytes(name, tmp_path):
    first, second = (
        figures.save(FULL[name](), tmp_path / f"{k}.png").read_bytes() for k in range(2)
    )
    assert first == second


def test_saving_replaces_the_file_or_leaves_it_alone(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("before")
    figure = FULL["loss"]()
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(figure, path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["figure.png"]
    figures.save(FULL["loss"](), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(mpl.rcParams)
    figures.save(FULL["loss"](), tmp_path / "figure.png")
    assert dict(mpl.rcParams) == before


def test_neither_torch_nor_pyplot_is_imported():
    code = (
        "import sys, trueode.figures; print([m for m in ('torch', 'matplotlib.pyplot') if m in "
        "sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
