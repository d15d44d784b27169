"""Made-up results in the form that figures take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def history(n: int = 50, *, adaptive: bool = False) -> dict[str, Array]:
    """A run of ``n`` logged rows; test metrics in every tenth."""
    random = np.random.default_rng(0)
    iteration = 10.0 * np.arange(1, n + 1)
    tested = np.arange(n) % 10 == 9
    columns = {
        "iteration": iteration,
        "loss": np.exp(-iteration / 300 + 0.1 * random.normal(size=n)),
        "accuracy": np.clip(0.5 + iteration / 900 + 0.02 * random.normal(size=n), 0, 1),
        "mse": np.exp(-iteration / 300),
        "nfe": random.integers(6, 30, n).astype(float),
        "nfe_backward": random.integers(6, 30, n).astype(float),
        "n_steps": random.integers(1, 5, n).astype(float),
        "tolerance" if adaptive else "step_size": 10.0 ** -random.integers(2, 5, n),
    }
    columns |= {
        f"test_{name}": np.where(tested, columns[name], np.nan)
        for name in ("loss", "accuracy", "mse")
    }
    return columns


def rows(*, kind: str = "fixed") -> list[dict[str, Any]]:
    """Rows of three solvers at three factors; the first solver at factor 1 is the training one."""
    solvers = ("euler", "midpoint", "rk4") if kind == "fixed" else ("dopri5", "fehlberg2", "bosh3")
    return [
        {
            "method": solver,
            "solver": f"{solver} at {factor}",
            "factors": [factor],
            "kind": kind,
            "n_steps": round(64 / factor),
            "setting": round(64 / factor) if kind == "fixed" else 1e-3 * factor,
            "metric": 0.9 if place == 0 else 0.5 + 0.01 * place,
            "loss": 0.3,
            "nfe": 64.0,
            "changed": 0.0 if place == 0 and factor == 1 else 0.4,
            "flips": 0.2,
            "status": "success",
            "is_training": place == 0 and factor == 1,
        }
        for place, solver in enumerate(solvers)
        for factor in (0.5, 1.0, 2.0)
    ]


def portrait(n: int = 30, *, n_classes: int = 2) -> dict[str, Any]:
    """Straight paths of ``n`` samples and a grid cut in vertical stripes."""
    random = np.random.default_rng(1)
    start = random.normal(size=(n, 2))
    times = np.linspace(0, 1, 5)
    paths = start + times[:, None, None] * np.array([1.0, 0.5])
    grid_x, grid_y = np.linspace(-3, 3, 40), np.linspace(-2, 2, 30)
    return {
        "times": times,
        "paths": paths,
        "labels": np.arange(n) % n_classes,
        "predictions": np.arange(n) % n_classes,
        "output": paths[-1],
        "grid_x": grid_x,
        "grid_y": grid_y,
        "regions": np.broadcast_to((np.arange(40) * n_classes // 40), (30, 40)),
        "solver": "euler, h = 1",
        "accuracy": 0.996,
    }


def density(cells: int = 20, n: int = 40) -> dict[str, Any]:
    """A density in the plane; its solver doubles the density everywhere."""
    random = np.random.default_rng(0)
    x, y = np.linspace(-2, 2, cells), np.linspace(-3, 3, cells + 5)
    logs = -(x**2 + y[:, None] ** 2) / 2 - np.log(2 * np.pi)
    return {
        "data": random.normal(size=(n, 2)),
        "grid_x": x,
        "grid_y": y,
        "own": {
            "solver": "euler, h = 1/2",
            "log_density": logs + np.log(2),
            "mean": -2.15,
            "mass": 2.0,
            "samples": random.normal(size=(n, 2)),
        },
        "exact": {
            "solver": "the exact flow",
            "log_density": logs,
            "mean": -2.84,
            "mass": 1.0,
            "samples": random.normal(size=(n, 2)),
        },
    }
