"""One model under many solvers: the table of the paper's Figure 4."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trueode.catalog import METHODS
from trueode.data import Samples
from trueode.errors import SolveError
from trueode.evaluation.metrics import Evaluation, evaluate
from trueode.evaluation.statistics import percent
from trueode.evaluation.tasks import Task
from trueode.evaluation.verdict import shown
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep, Solver
from trueode.solvers.clock import seconds

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SwapRow:
    """A model under one solver.

    Attributes:
        solver: name of the method.
        kind: ``"fixed"`` or ``"adaptive"``.
        factors: on the training step or tolerance; several where the steps taken are the same.
        setting: step size, or tolerance.
        n_steps: realised steps, mean over samples.
        nfe: field evaluations for a sample.
        metric_name: accuracy or mse.
        metric: its value; NaN where the solve failed.
        loss: mean loss.
        flips: share of predictions that differ from those under the training solver.
        is_training: whether this is the training solver.
        status: ``"success"``, or why the solve failed.
    """

    solver: str
    kind: str
    factors: tuple[float, ...]
    setting: float
    n_steps: float
    nfe: float
    metric_name: str
    metric: float
    loss: float
    flips: float
    is_training: bool
    status: str = "success"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the setting and the metric under their names."""
        return {
            "solver": self.solver,
            "kind": self.kind,
            "factors": list(self.factors),
            "step_size" if self.kind == "fixed" else "tol": self.setting,
            "n_steps": self.n_steps,
            "nfe": self.nfe,
            self.metric_name: self.metric,
            "loss": self.loss,
            "flips": self.flips,
            "is_training": self.is_training,
            "status": self.status,
        }


@dataclass(frozen=True)
class SwapTable:
    """A model under many solvers.

    Attributes:
        training: the training solver.
        rows: the training solver first, then solver by solver.
        basis: what the factors multiply, in words.
    """

    training: Solver
    rows: tuple[SwapRow, ...]
    basis: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"training": str(self.training), "basis": self.basis, "rows": [row.to_dict() for row in self.rows]}

    def to_csv(self) -> str:
        """One line for each row; several factors are separated by blanks."""
        dicts = [row.to_dict() for row in self.rows]
        columns = list(dict.fromkeys(name for row in dicts for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "factors": " ".join(f"{factor:g}" for factor in row["factors"])} for row in dicts)
        return text.getvalue()

    def to_rich(self) -> Table:
        """A table for the terminal."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, caption=self.basis, caption_justify="left")
        metric = self.rows[0].metric_name
        for column in ("solver", "factor", "step or tol", "steps", "NFE", metric, "loss", "changed"):
            table.add_column(column, justify="left" if column == "solver" else "right")
        for row in self.rows:
            failed = row.status != "success"
            values = (
                (row.status, "", "") if failed else (shown(metric, row.metric), f"{row.loss:.4g}", percent(row.flips))
            )
            table.add_row(
                row.solver + (" (training)" if row.is_training else ""),
                " ".join(f"{factor:g}" for factor in row.factors),
                f"{row.setting:.6g}",
                f"{row.n_steps:.4g}",
                f"{row.nfe:.4g}",
                *values,
                style="bold" if row.is_training else None,
            )
        return table


def swap_table(
    model: NeuralODE,
    split: Samples,
    task: Task,
    training: Solver,
    solvers: Sequence[str],
    factors: Sequence[float],
    *,
    tol: float,
) -> SwapTable:
    """Evaluate a model under other solvers.

    The step of a fixed solver is factor x the training step (under adaptive training: x the mean step), a step above the
    interval being one step; the tolerance of an adaptive one is factor x the training tolerance (under fixed training:
    x ``tol``).

    Args:
        model: the trained model.
        split: the samples.
        task: what is learned.
        training: the solver that training ended with.
        solvers: names of methods.
        factors: see above.
        tol: tolerance of adaptive solvers where training took fixed steps.

    Raises:
        SolveError: the training solver fails on these samples; other solvers that fail have a row that says so.
    """
    own = evaluate(model, split, task, training, keep_outputs=True)
    length = abs(seconds(model.t[1]) - seconds(model.t[0]))
    adaptive = isinstance(training, Adaptive)
    mean_step = length / max(own.n_steps, 1.0)
    step = training.step_size if isinstance(training, FixedStep) and training.step_size else mean_step
    base_tol = training.rtol if isinstance(training, Adaptive) else tol

    def candidate(name: str, factor: float) -> Solver:
        if METHODS[name].kind == "fixed":
            return FixedStep(name, step_size=factor * step)
        if isinstance(training, Adaptive):
            return replace(training.scaled(factor), method=name)
        return Adaptive(name, factor * tol, factor * tol)

    merged: dict[Any, tuple[Solver, list[float], bool]] = {_key(training, length): (training, [1.0], True)}
    for name in solvers:
        for factor in factors:
            solver = candidate(name, factor)
            entry = merged.setdefault(_key(solver, length), (solver, [], False))
            if factor not in entry[1]:
                entry[1].append(factor)
    rows = [
        _row(model, split, task, solver, tuple(sorted(found)), own, is_training, mean_step)
        for solver, found, is_training in merged.values()
    ]
    kinds = {row.kind for row in rows}
    basis = []
    if "fixed" in kinds:
        basis.append(f"Steps: factor x {'the mean step of the training solve, ' if adaptive else ''}{step:.6g}.")
    if "adaptive" in kinds:
        basis.append(f"Tolerances: factor x {base_tol:.6g}{'' if adaptive else ' (--tol)'}.")
    return SwapTable(training, tuple(rows), " ".join([*basis, "Changed: predictions unlike the training solver's."]))


def _key(solver: Solver, length: float) -> Any:
    """Equal for solvers that take the same steps of the same method."""
    if not isinstance(solver, FixedStep):
        return solver
    return solver.name, tuple(round(x, 12) for x in solver.fractions(length))


def _row(
    model: NeuralODE,
    split: Samples,
    task: Task,
    solver: Solver,
    factors: tuple[float, ...],
    own: Evaluation,
    is_training: bool,
    mean_step: float,
) -> SwapRow:
    status, nan = "success", float("nan")
    try:
        found = own if is_training else evaluate(model, split, task, solver, keep_outputs=True)
    except SolveError as failure:
        status, found = failure.status, Evaluation(own.n, nan, nan, nan, nan)
    flips = nan
    if own.outputs is not None and found.outputs is not None:
        flips = float(task.flipped(found.outputs, own.outputs).double().mean())
    if isinstance(solver, Adaptive):
        kind, setting = "adaptive", solver.rtol
    else:
        kind = "fixed"
        setting = (isinstance(solver, FixedStep) and solver.step_size) or mean_step
    return SwapRow(
        solver.name,
        kind,
        factors,
        setting,
        found.n_steps,
        found.nfe,
        task.metric_name,
        found.metric,
        found.loss,
        flips,
        is_training,
        status,
    )
