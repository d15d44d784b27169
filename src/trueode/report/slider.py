"""The slider of a page: a model under solvers from coarse to fine, and under the exact flow."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.evaluation import Evaluation, ExactFlow, Flips, Row, SolverTable
from trueode.evaluation.course import Course
from trueode.evaluation.runnable import Part, Runnable
from trueode.evaluation.tasks import Classification
from trueode.evaluation.wording import spoken
from trueode.files import plain
from trueode.precision import ieee
from trueode.report.paths import POINTS, SAMPLES, Plane, Recorder, plane_of
from trueode.solvers import Adaptive, FixedStep, Solver

FINER, LEAST = 4, 16  # the finest stop: so many times the training steps, and at least so many
STOPS = 11  # most stops before the exact flow, without the training solver
TOLERANCES = tuple(10.0**-k for k in range(1, 7))
SECONDS = 6.0  # about the time for a kind of solves: on all samples, and on the grid of regions
NUMBERS = 45_000  # most points of all paths: half a megabyte
GRID = 120  # points of a side of the grid of regions
SERIES, TIMES = 4, 200  # lines of a time series, and their points
LABELLED = 256  # most classes that a byte can number


@dataclass(frozen=True)
class Stop:
    """A model under one solver.

    Attributes:
        solver: the solver; None: the training solver of another library.
        outputs: outputs ``(n, …)``.
        row: the row of the solver in the table; None for the exact flow.
    """

    solver: Solver | None
    outputs: Tensor
    row: Row | None


def ladder(own: Evaluation) -> list[Solver]:
    """Solvers from coarse to fine: the training method with 1, 2, 4, … steps up to four times those
    of training (at least 16), or with tolerances 1e-1 … 1e-6.
    """
    training = ours(own)
    if isinstance(training, Adaptive):
        return [replace(training, rtol=tol, atol=tol) for tol in TOLERANCES]
    method = "rk4" if training is None else training.tableau
    finest = max(FINER * round(own.n_steps), LEAST)
    counts = [2**k for k in range(finest.bit_length()) if 2**k <= finest][-STOPS:]
    return [FixedStep(method, n_steps=count) for count in counts]


def ours(own: Evaluation) -> Solver | None:
    """The training solver as one of this package; an adaptive one of another library is replaced
    by the same method with its tolerances. None if the method is not known.
    """
    found = own.solver
    if not hasattr(found, "ours"):
        return found  # type: ignore[no-any-return]
    solver: Solver | None = found.ours(own.n_steps)
    if solver is None and found.adaptive and found.name and found.rtol == found.rtol:
        return Adaptive(found.name, found.rtol, found.settings.get("atol", found.rtol))
    return solver


class Slider:
    """A model under solvers from coarse to fine, with the training solver among them, and last
    under the exact flow.

    Stops finer than training are left out where they take too long.

    Args:
        runnable: the model and its samples.
        own: results under the training solver.
        exact: the exact flow of the first samples.
        counts: the comparison of the two.
        names: names of the classes.
        how: ``margin``, ``level`` and ``population``, as in `decide`.

    Attributes:
        rows: the table of these solvers, the training solver first.
        stops: from coarse to fine.
        gaps: what is left out and why, in sentences.
        plain: the slider as plain values: numbers of each stop, paths, predictions and regions.
    """

    @ieee()
    def __init__(
        self,
        runnable: Runnable,
        own: Evaluation,
        exact: ExactFlow,
        counts: Flips,
        names: Sequence[str] = (),
        **how: Any,
    ) -> None:
        self.runnable, self.own, self.exact = runnable, own, exact
        table = SolverTable(runnable, own, exact, counts, **how)
        self.training = Stop(ours(own), own.outputs, table.training)
        self.gaps: list[str] = []
        coarser, finer = list[Stop](), list[Stop]()
        begin, took = time.perf_counter(), 0.0
        for solver in ladder(own):
            fine = _finer(solver, own)
            if fine is None:
                continue
            start = time.perf_counter()
            if fine and start - begin + 2 * took > SECONDS:  # it has about twice the steps
                self.gaps.append(f"No stop for {solver}: it would take too long.")
                continue
            ran = runnable.run(solver)
            row, side = table.row(solver, ran=ran), finer if fine else coarser
            took = time.perf_counter() - start
            if row.is_training:  # intermediate times force it to the steps of training
                continue
            if side and str(side[-1].row and side[-1].row.solver) == str(row.solver):
                side.pop()  # likewise
            side.append(Stop(solver, ran.outputs, row))
        self.rows = table.rows
        last = Stop(FixedStep("rk4", n_steps=max(exact.n_steps, POINTS // 2)), exact.outputs, None)
        self.stops = [*coarser, self.training, *finer, last]
        self.plain: dict[str, Any] = plain(self._drawn(names))

    def _drawn(self, names: Sequence[str]) -> dict[str, Any]:
        task, y = self.runnable.task, self.runnable.y
        classes = self._classified
        labels = y.reshape(len(y), -1)[:, 0].tolist() if classes and y is not None else []
        series = self._series() if task.name == "timeseries" else None
        plane, paths = (None, []) if series else self._paths()
        n_classes = max((stop.outputs.shape[1] for stop in self.stops), default=0) if classes else 0
        names = [*names, *(f"class {k}" for k in range(len(names), n_classes))][:n_classes]
        return {
            "stops": [self._numbers(stop) for stop in self.stops],
            "metric_name": spoken(self.runnable.metric_name),
            "n_samples": len(self.exact.outputs),
            "plane": None if plane is None else _plane(plane, paths),
            "paths": [_coded(each.transpose(0, 1), np.float32) for each in paths] or None,
            "n_paths": paths[0].shape[1] if paths else 0,
            "n_points": [len(each) for each in paths],
            "classes": labels,
            "predicted": [self._predicted(stop).tolist() for stop in self.stops] if classes else [],
            "changed": [self._changed(stop) for stop in self.stops],
            "regions": self._regions(paths, n_classes)
            if n_classes > 1 or task.name == "density"
            else None,
            "class_names": names,
            "series": series,
        }

    @property
    def _classified(self) -> bool:
        """Whether a sample has one prediction, a class."""
        task = self.runnable.task
        one = self.own.outputs.dim() == 2 and self.own.outputs.shape[1] > 1
        return isinstance(task, Classification) and task.decision is None and one

    def _numbers(self, stop: Stop) -> dict[str, Any]:
        n, row = len(self.exact.outputs), stop.row
        accuracy = self.runnable.metric_name == "accuracy"
        if row is None:
            values = self.runnable.metrics(stop.outputs)
            known = values is not None and bool(self.runnable.finite(stop.outputs).all())
            metric = self.runnable.mean(values) if values is not None and known else nan
            told = {
                "label": "exact flow",
                "short": "exact",
                "mark": "exact",
                "nfe": self.exact.evaluations / n,
            }
            flips = 0.0
        else:
            metric, flips = row.metric, row.flips
            told = {
                "label": str(row.solver),
                "short": _short(row),
                "mark": "training" if stop is self.training else "",
                "nfe": row.nfe,
            }
        scores = (metric, None) if accuracy else (None, metric)
        return {**told, **dict(zip(("accuracy", "metric"), scores, strict=True)), "flips": flips}

    def _predicted(self, stop: Stop) -> Tensor:
        return stop.outputs.argmax(1)

    def _changed(self, stop: Stop) -> list[int]:
        """The rows whose predictions differ from those under the training solver."""
        own = self.own.outputs[: len(stop.outputs)]
        task, allowed = self.runnable.task, self.exact.allowed
        changed = task.flipped(stop.outputs.double(), own.double(), allowed).any(1)
        found: list[int] = changed.nonzero()[:, 0].tolist()
        return found

    def _paths(self) -> tuple[Plane | None, list[Tensor]]:
        """The plane, and the paths ``(points, n, 2)`` of each stop; none where some are unknown."""
        n = min(SAMPLES, self.runnable.n)
        unknown = (
            "No trajectories: the training solver, or a state of the ODE block with a row for each "
            "sample, is not known."
        )
        found = list[tuple[Tensor, Tensor]]()
        for stop in self.stops:
            if stop.solver is None:
                self.gaps.append(unknown)
                return None, []
            last = stop.row is None
            course = self.exact.course if last else Course()
            recorder = Recorder(course, POINTS, n, stepped=not last)
            rows = torch.arange(n, device="cpu")
            # batches as a whole, whose samples share their steps; in the model's own precision
            part = Part(rows, whole=not last, solving=recorder)
            self.runnable.run(stop.solver, part)
            if recorder.paths is None:
                self.gaps.append(unknown)
                return None, []
            found.append(recorder.paths)
        if self.runnable.task.name == "density" and (x := self.runnable.inputs) is not None:
            # the last number of a state is the change of the log density
            found = [(times, zs[..., : x[0].numel()]) for times, zs in found]
        states = self.own.states if self._classified else None
        ends, outputs = (found[-1][1][-1], self.exact.outputs[:n])
        if states is not None:
            ends, outputs = states, self.own.outputs
        plane = plane_of(self.runnable, ends, outputs)
        if (found_solver := self.own.solver) != ours(self.own) and isinstance(
            self.training.solver, Adaptive
        ):
            plane = replace(
                plane,
                note=f"{plane.note}; paths of {found_solver} are those of {self.training.solver} "
                "of this library, whose steps may differ",
            )
        kept = min(n, NUMBERS // sum(len(times) for times, _ in found))
        return plane, [plane.of(times, zs)[:, :kept] for times, zs in found]

    def _regions(self, paths: list[Tensor], n_classes: int) -> dict[str, Any] | None:
        """The predicted class, or the density, at each point of the input plane, for each stop;
        None unless paths start at the inputs, so that both have one plane.
        """
        x = self.runnable.inputs
        if x is None or not paths or x[0].numel() != 2 or not x.is_floating_point():
            return None
        starts = paths[0][0]
        if not torch.allclose(starts, x[: len(starts)].flatten(1).to(starts)):
            return None
        if n_classes > LABELLED:
            self.gaps.append(f"No map of the inputs: it has room for {LABELLED} classes.")
            return None
        low, high = x.flatten(1).double().amin(0), x.flatten(1).double().amax(0)
        margin = 0.1 * (high - low).clamp(min=1e-6)
        (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
        axes = (
            torch.linspace(a, b, GRID, dtype=torch.float64, device="cpu")
            for a, b in ((x0, x1), (y0, y1))
        )
        points = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
        there = self.runnable.at(points.view(-1, *x.shape[1:]).to(x))
        begin, found = time.perf_counter(), list[Tensor]()
        for stop in self.stops[::-1]:
            late = time.perf_counter() - begin > SECONDS
            if there is None or late:
                why = "it would take too long" if late else "a batch holds more than inputs"
                self.gaps.append(f"No map of the inputs: {why}.")
                return None
            # in the model's own precision, for the exact flow too: no eye sees the difference
            found.append(there.run(stop.solver, Part(torch.arange(there.n, device="cpu"))).outputs)
        shaded = self.runnable.task.name == "density"
        if shaded:  # shades end at the largest density of the exact flow
            values = [out.double().view(len(points) ** 2, -1).mean(1) for out in found]
            most = values[0].nan_to_num(-inf, -inf, -inf).max()
            maps = [255 * (log_p - most).exp().nan_to_num(0.0).clamp(0, 1) for log_p in values]
        else:
            maps = [out.argmax(1) for out in found]
        return {
            "width": GRID,
            "height": GRID,
            "bounds": [x0, x1, y0, y1],
            "shaded": shaded,
            "maps": [_coded(each.view(GRID, GRID), np.uint8) for each in maps[::-1]],
        }

    def _series(self) -> dict[str, Any]:
        """The first component of the first series over time, under each stop."""
        n = min(SERIES, len(self.exact.outputs))
        t = self.runnable.t
        shown = self.own.outputs[:n]
        own = t.expand(n, -1) if t is not None and t.dim() == 1 else t
        if own is None or own.shape[1] != shown.shape[1]:
            own = torch.arange(shown.shape[1], device="cpu").double().expand(n, -1)
        own = own[:n]
        times = torch.unique(own[~own.isnan()])
        every = np.unique(np.linspace(0, len(times) - 1, min(len(times), TIMES)).round())

        def lines(states: Tensor) -> list[Any]:
            values = states[:n].double().flatten(2)[..., 0]
            spread = values.new_full((n, len(times)), nan)
            for row, at, value in zip(spread, own, values, strict=True):
                known = ~at.isnan()
                row[torch.searchsorted(times, at[known])] = value[known]
            found: list[Any] = spread[:, every.astype(int)].tolist()
            return found

        y = self.runnable.y
        measured = y is not None and y[0].numel() == self.own.outputs[0].numel()
        return {
            "t": times[every.astype(int)].tolist(),
            "lines": [lines(stop.outputs) for stop in self.stops],
            "exact": lines(self.exact.outputs),
            "measured": lines(y.view(len(y), *self.own.outputs.shape[1:]))
            if y is not None and measured
            else None,
            "labels": ["time", "first component"],
        }


def _short(row: Row) -> str:
    """A solver in a few letters: its steps or its tolerance."""
    tolerance = getattr(row.solver, "rtol", nan)  # NaN for fixed steps of another library
    return f"{tolerance:.0e}" if tolerance == tolerance else f"x {row.n_steps:.4g}"


def _finer(solver: Solver, own: Evaluation) -> bool | None:
    """Whether a solver is finer than that of training; None: it is the same."""
    training = own.solver
    if isinstance(solver, Adaptive):
        tolerance = float(training.rtol)
        return None if abs(solver.rtol / tolerance - 1) < 1e-6 else solver.rtol < tolerance
    assert isinstance(solver, FixedStep)
    same = getattr(training, "adaptive", False) is False and ours(own) is not None
    if same and solver.n_steps == round(own.n_steps):
        return None
    return (solver.n_steps or 0) > own.n_steps


def _plane(plane: Plane, paths: list[Tensor]) -> dict[str, Any]:
    """The plane, with bounds of all starts and of the bulk of the ends: a few distant ends must not
    shrink the others to a dot.
    """
    first = paths[0][0]
    ends = torch.cat([each[-1] for each in paths])
    ends = ends[ends.isfinite().all(1)]
    share = torch.tensor([0.01, 0.99], dtype=torch.float64, device="cpu")
    parts = [first[first.isfinite().all(1)], *([ends.quantile(share, 0)] if len(ends) else [])]
    seen = torch.cat(parts)
    low, high = seen.amin(0), seen.amax(0)
    margin = 0.08 * (high - low).clamp(min=1e-9)
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    return {
        "bounds": [x0, x1, y0, y1],
        "labels": list(plane.labels),
        "projected": plane.directions is not None,
        "note": plane.note,
    }


def _coded(values: Tensor, kind: Any) -> str:
    array = np.ascontiguousarray(values.cpu().numpy(), dtype=np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()
