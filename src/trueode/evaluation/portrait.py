"""The contents of portraits as plain arrays, which ``figures/portrait.py`` and
``figures/density.py`` draw.
"""

from __future__ import annotations

from copy import deepcopy
from math import prod
from typing import Any

import numpy as np
import torch

from trueode.data import Samples
from trueode.evaluation.metrics import batches_of, evaluating
from trueode.evaluation.task import Task
from trueode.models import ContinuousFlow, NeuralODE
from trueode.solvers import Adaptive, Solver, solve
from trueode.solvers.clock import seconds

SAMPLES, TIMES, GRID = 400, 129, 200
SERIES = 4
POINTS, CELLS = 2000, 100
EXACT = Adaptive("dopri5", rtol=1e-6, atol=1e-6, per_sample=True)


def phase_portrait(model: NeuralODE, split: Samples, solver: Solver) -> dict[str, Any] | None:
    """Paths of samples through the ODE block, and the classifier's regions around its output.

    Args:
        model: a classifier.
        split: samples; the first 400 are taken.
        solver: the solver.

    Returns:
        ``times``, ``paths (times, n, 2)`` at the ends of the steps, ``labels``, ``predictions``,
        ``output (n, 2)``, ``grid_x``, ``grid_y``, ``regions (grid_y, grid_x)``, ``solver``,
        ``accuracy`` (on these samples); None unless the state has two components.
    """
    n = min(SAMPLES, len(split))
    with evaluating(model):
        batch = next(batches_of(split.first(n), n, model))
        z0 = batch.x if model.upstream is None else model.upstream(batch.x)
        if prod(z0.shape[1:]) != 2 or model.downstream is None:
            return None
        start, end = seconds(model.t[0]), seconds(model.t[1])
        grid = solve(model.field, z0, model.t, solver=solver).grid
        if grid.dim() == 1:
            times = some_times(grid, TIMES)
        else:
            times = torch.linspace(start, end, TIMES, dtype=torch.float64, device="cpu")
        solution = solve(model.field, z0, model.t, solver=solver, save_at=times)
        assert solution.zs is not None
        paths = solution.zs.flatten(2)
        output = solution.z
        predictions = model.downstream(output).argmax(1)
        flat = output.flatten(1)
        low, high = flat.amin(0), flat.amax(0)
        margin = 0.15 * (high - low).clamp(min=1e-6)
        ends = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
        axes = [torch.linspace(a, b, GRID, device="cpu") for a, b in ends]
        points = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).view(
            -1, *output.shape[1:]
        )
        regions = model.downstream(points.to(output)).argmax(1).view(GRID, GRID)
    return {
        "times": times.numpy(),
        "paths": _numpy(paths),
        "labels": _numpy(batch.y),
        "predictions": _numpy(predictions),
        "output": _numpy(flat),
        "grid_x": axes[0].numpy(),
        "grid_y": axes[1].numpy(),
        "regions": _numpy(regions),
        "solver": str(solver),
        "accuracy": float((predictions == batch.y).double().mean()),
    }


def some_times(grid: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many ends of steps ``(n,)``: between them there is only interpolation."""
    if len(grid) <= most:
        return grid
    return grid[torch.linspace(0, len(grid) - 1, most, device="cpu").round().long()]


def series_portrait(
    model: NeuralODE, split: Samples, task: Task, solver: Solver
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Times ``(times,)``, true and predicted states ``(n, times, d)`` of the first four series.

    If the series have different times, each is predicted at the times of all. The truth is NaN
    where it was not observed.
    """
    n = min(SERIES, len(split))
    with evaluating(model):
        batch = next(batches_of(split.first(n), n, model))
        assert batch.t is not None
        t, truth = batch.t, batch.y.flatten(2).cpu()
        if t.dim() == 2:
            t = torch.unique(batch.t[~batch.t.isnan()])
            spread = truth.new_full((n, len(t), truth.shape[2]), torch.nan)
            for row, times, states in zip(spread, batch.t, truth, strict=True):
                known = ~times.isnan()
                row[torch.searchsorted(t, times[known])] = states[known]
            truth = spread
        predicted, _ = task.predict(model, batch._replace(t=t), solver)
    return _numpy(t), _numpy(truth), _numpy(predicted.flatten(2))


def density_portrait(
    model: ContinuousFlow, split: Samples, solver: Solver
) -> dict[str, Any] | None:
    """A density in the plane, and samples, under a solver and under the exact flow.

    Args:
        model: the flow.
        split: samples of the data; the first 2000 are taken.
        solver: the solver.

    Returns:
        ``data (n, 2)``, ``grid_x``, ``grid_y``, and for ``own`` and ``exact`` (dopri5 at a
        tolerance of 1e-6 in double precision) a mapping with ``solver``,
        ``log_density (grid_y, grid_x)`` and ``mean`` log density of the data in nats, ``mass`` of
        the density on the grid, and ``samples (n, 2)``; None unless samples have two numbers.

    Raises:
        SolveError: a solver failed.
    """
    if prod(model.shape) != 2:
        return None
    n = min(POINTS, len(split))
    x = next(batches_of(split.first(n), n, model)).x
    flat = x.flatten(1)
    low, high = flat.amin(0), flat.amax(0)
    margin = 0.15 * (high - low).clamp(min=1e-6)
    ends = zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    axes = [torch.linspace(a, b, CELLS, dtype=torch.float64, device="cpu") for a, b in ends]
    points = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).view(-1, *x.shape[1:])
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))

    def under(flow: ContinuousFlow, solver: Solver, name: str) -> dict[str, Any]:
        like = next(flow.parameters(), x)
        with evaluating(flow):
            grid = flow.log_prob(points.to(like), solver).double()
            mean = flow.log_prob(x.to(like), solver).double().mean()
            drawn = flow.sample(n, solver, torch.Generator("cpu").manual_seed(0))
        return {
            "solver": name,
            "log_density": _numpy(grid.view(CELLS, CELLS)),
            "mean": float(mean),
            "mass": float(grid.exp().sum() * cell),
            "samples": _numpy(drawn.flatten(1)),
        }

    return {
        "data": _numpy(flat),
        "grid_x": axes[0].numpy(),
        "grid_y": axes[1].numpy(),
        "own": under(model, solver, str(solver)),
        "exact": under(deepcopy(model).double(), EXACT, "the exact flow"),
    }


def _numpy(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return x.cpu().numpy()
