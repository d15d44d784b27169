"""Paths of samples through an ODE block, and the plane in which they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trueode.evaluation.course import Course, Guided
from trueode.evaluation.portrait import some_times
from trueode.evaluation.runnable import Runnable
from trueode.solvers import Adaptive, Solution
from trueode.solvers.problem import Problem

SAMPLES, POINTS = 150, 65
AFFINE = 1e-3  # largest relative residual of outputs that are affine in the final states


class Recorder:
    """Solves the problems of a model, and keeps the paths of its first rows through the last block.

    With fixed steps, points are ends of steps; with adaptive ones they are equidistant in time.

    Args:
        course: the constraints on steps.
        points: the most points of a path.
        rows: the number of rows whose paths are kept.
        stepped: whether fixed steps also end at the times that a model of another library asks
            for, as they do without a recorder.
    """

    def __init__(
        self, course: Course, points: int = POINTS, rows: int = SAMPLES, stepped: bool = False
    ) -> None:
        self.stepped = stepped
        self._solving, self._again = Guided(course), Guided(course)
        self._points, self._most = points, rows
        self._first = torch.empty(0, dtype=torch.bool, device="cpu")
        self._kept: list[tuple[Tensor, Tensor] | None] = []

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self._first = rows < self._most
        self._kept.append(None)
        self._solving.begin(rows)
        self._again.begin(rows)

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        self._kept[-1] = None
        z0, wanted = problem.z0, problem.save_at
        if not samples or not isinstance(z0, Tensor) or len(z0) != len(self._first):
            return self._solving(problem, samples)
        times = self._times(problem)
        solution = self._solving(replace(problem, save_at=times), samples)
        zs = solution.zs
        assert isinstance(zs, Tensor)
        self._kept[-1] = times, zs[:, self._first.to(zs.device)].flatten(2).double().cpu()
        if wanted is None:
            return replace(solution, zs=None)
        if len(wanted) == 1:  # the end
            return replace(solution, zs=zs[-1:])
        return self._again(problem, samples)

    def _times(self, problem: Problem) -> Tensor:
        clock, solver = problem.clock, problem.solver
        if not isinstance(solver, Adaptive):
            ends = torch.tensor(solver.fractions(clock.length), dtype=torch.float64, device="cpu")
            return some_times(clock.t0 + ends * clock.length, self._points)
        return torch.linspace(clock.t0, clock.t1, self._points, dtype=torch.float64, device="cpu")

    @property
    def paths(self) -> tuple[Tensor, Tensor] | None:
        """Times ``(points,)`` and states ``(points, rows, d)`` in double precision; None if a batch
        has no state with a row for each sample.
        """
        known = [each for each in self._kept if each is not None]
        same = len({zs.shape[::2] for _, zs in known}) == 1
        if not same or len(known) < len(self._kept):
            return None
        return known[0][0], torch.cat([zs for _, zs in known], dim=1)


@dataclass(frozen=True)
class Plane:
    """The plane in which states are drawn.

    Attributes:
        directions: ``(d, 2)``, orthonormal; None: states of two numbers as they are, or a state of
            one number over time.
        labels: names of the two coordinates.
        note: what the plane is, in words.
    """

    directions: Tensor | None
    labels: tuple[str, str]
    note: str

    def of(self, times: Tensor, states: Tensor) -> Tensor:
        """Coordinates ``(points, n, 2)`` of states ``(points, n, d)``."""
        if states.shape[2] == 1:
            return torch.cat([times[:, None, None].expand_as(states), states], dim=2)
        return states if self.directions is None else states @ self.directions


def plane_of(runnable: Runnable, states: Tensor, outputs: Tensor) -> Plane:
    """The plane of a model's states: their own, that of its classifier, or that of their spread.

    The classifier's plane is spanned by the two leading right singular vectors of the weights of
    its linear head, without their mean over the classes, which changes no prediction. Two classes
    have one such direction; the second is then that of the largest spread of the states across it.

    Args:
        runnable: the model.
        states: final states of the ODE block ``(n, d)``.
        outputs: outputs that belong to them ``(n, …)``.
    """
    states = states.double()
    if states.shape[1] < 3:
        names = ("time", "z") if states.shape[1] == 1 else ("z1", "z2")
        return Plane(None, names, "the states of the ODE block themselves")
    good = states.isfinite().all(1) & outputs.flatten(1).isfinite().all(1)
    states = states[good]
    centred = states - states.mean(0)
    weights = _head(runnable, states, outputs[good].double())
    if weights is None:
        directions = _leading(centred, 2)
        note = "the two principal components of the states at the end of the ODE block"
    else:
        directions = _leading(weights - weights.mean(0), min(2, len(weights) - 1))
        if directions.shape[1] < 2:
            across = centred - centred @ directions @ directions.T
            directions = torch.cat([directions, _leading(across, 2 - directions.shape[1])], dim=1)
        note = "the plane of the classifier: the leading directions of the weights of its head"
    names = ("direction 1", "direction 2")
    return Plane(directions, names, f"{states.shape[1]}-dimensional states, projected onto {note}")


def _leading(rows: Tensor, n: int) -> Tensor:
    """The leading right singular vectors ``(d, n)`` of a matrix ``(rows, d)``."""
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[:n].T  # type: ignore[no-any-return]


def _head(runnable: Runnable, states: Tensor, outputs: Tensor) -> Tensor | None:
    """The weights ``(classes, d)`` of a classifier's linear head; None if it has none.

    Of models of other libraries only states and outputs are known: these are fitted.
    """
    if runnable.task.name != "classification" or outputs.dim() != 2 or outputs.shape[1] < 2:
        return None
    head = getattr(getattr(runnable, "model", None), "downstream", None)
    if isinstance(head, nn.Module):
        layers = [layer for layer in head.modules() if not next(layer.children(), None)]
        layers = [layer for layer in layers if not isinstance(layer, nn.Flatten | nn.Identity)]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear):
            return layers[0].weight.detach().double().cpu()
        return None
    n, d = states.shape
    if n < 2 * (d + 1):
        return None
    inputs, values = states - states.mean(0), outputs - outputs.mean(0)
    fitted = torch.linalg.lstsq(inputs, values, driver="gelsd").solution
    left = (inputs @ fitted - values).square().mean().sqrt()
    return fitted.T if float(left) <= AFFINE * float(values.square().mean().sqrt()) else None
