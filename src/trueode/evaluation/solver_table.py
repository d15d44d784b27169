"""One model under many solvers, each compared with the training solver and with the exact flow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trueode.catalog import METHODS
from trueode.evaluation.decision import Status, decide
from trueode.evaluation.flips import Flips, count_flips, mean_share
from trueode.evaluation.flow import ExactFlow
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Runnable
from trueode.evaluation.statistics import percent
from trueode.evaluation.wording import shown
from trueode.solvers import Adaptive, FixedStep, Solver

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A model under one solver.

    Attributes:
        solver: the solver, of fixed steps with the number that was really taken; as its library
            names it, if it is not one of ours.
        n_steps: accepted steps, mean over samples.
        n_rejected: rejected steps.
        nfe: field evaluations for a sample.
        metric: mean over the samples; NaN without targets, and where the solver failed.
        loss: mean over the samples, likewise.
        changed: share of predictions unlike those under the training solver.
        flips: share of predictions unlike those under the exact flow; NaN without one.
        upper: bound of the share of samples that flip, blow up or are unresolved.
        safe: whether the solver changes no more predictions than are allowed, with confidence.
        output_error: RMS of the difference of outputs from the exact flow's, relative to the
            deviation of those from their mean.
        state_error: the same of the final states of the last ODE block; NaN where they are not
            known.
        is_training: whether this is the training solver.
        status: ``"success"``, or why the solve failed.
        factors: on the training step or tolerance, where such were asked for; several where the
            steps taken are the same.
    """

    solver: Any
    n_steps: float
    n_rejected: float
    nfe: float
    metric: float
    loss: float
    changed: float
    flips: float
    upper: float
    safe: bool
    output_error: float
    state_error: float
    is_training: bool
    status: str
    factors: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """``"fixed"`` or ``"adaptive"``."""
        return (
            "adaptive"
            if isinstance(self.solver, Adaptive) or getattr(self.solver, "adaptive", False)
            else "fixed"
        )

    @property
    def method(self) -> str:
        """Name of the method; for one that is not known here as its library names it."""
        return str(getattr(self.solver, "label", None) or self.solver.name)

    @property
    def setting(self) -> float:
        """Number of steps in each ODE block, or tolerance."""
        return self.n_steps if self.kind == "fixed" else float(self.solver.rtol)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {**vars(self), "solver": str(self.solver), "factors": list(self.factors)}
        return {"method": self.method, "kind": self.kind, "setting": self.setting, **own}


class SolverTable:
    """Runs a model under other solvers, each grid of steps once.

    Args:
        runnable: the model and the samples.
        own: the model under its training solver.
        exact: the exact flow of the first samples, if it is known.
        counts: of the training solver, if they are known.
        how: ``margin``, ``level`` and ``population``, as in `decide`.

    Attributes:
        rows: of what has been run, the training solver first.
        training: the row of the training solver.
    """

    def __init__(
        self,
        runnable: Runnable,
        own: Evaluation,
        exact: ExactFlow | None = None,
        counts: Flips | None = None,
        **how: Any,
    ) -> None:
        self.runnable, self.own, self.exact, self._how = runnable, own, exact, how
        self._allowed = exact.allowed if exact is not None else self._allowed_by_own()
        self._rows: dict[Any, Row] = {}  # by the grid stepped through
        self._asked: dict[Any, Any] = {}  # the grid of each solver that was asked for
        self.training = self._judged(own.solver, own, counts, is_training=True)
        key = self._key(own.solver, self.training)
        self._rows[key] = self.training
        self._asked[runnable.grid(own.solver) or own.solver] = key

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order in which they were asked for."""
        return tuple(self._rows.values())

    def row(self, solver: Solver, factor: float | None = None) -> Row:
        """The model under a solver of ours.

        Args:
            solver: the solver.
            factor: on the training step or tolerance, to be noted.
        """
        asked = self.runnable.grid(solver) or solver
        if asked not in self._asked:
            row = self._judged(solver, self.runnable.run(solver), None)
            key = self._key(solver, row)
            self._asked[asked] = key
            known = self._rows.get(key)
            if known is None or (not known.is_training and row.solver == solver):
                self._rows[key] = replace(row, factors=() if known is None else known.factors)
        key = self._asked[asked]
        if factor is not None and factor not in self._rows[key].factors:
            self._rows[key] = replace(
                self._rows[key], factors=tuple(sorted((*self._rows[key].factors, factor)))
            )
            self.training = next(iter(self._rows.values()))
        return self._rows[key]

    def of(self, method: str) -> list[Row]:
        """The rows of a method, the coarsest first."""
        rows = [row for row in self.rows if row.method == method]
        return sorted(rows, key=lambda row: row.setting if row.kind == "fixed" else -row.setting)

    def _key(self, solver: Any, row: Row) -> Any:
        """Equal for solvers that took the same steps of the same method."""
        if row.kind == "adaptive":
            return solver
        return self.runnable.grid(solver) or (row.method, row.n_steps, row.nfe)

    def _allowed_by_own(self) -> Tensor | None:
        return self.runnable.task.allowed(
            self.own.outputs.double(), self.runnable.residual(self.own.outputs)
        )

    def _judged(
        self, solver: Any, ran: Evaluation, counts: Flips | None, *, is_training: bool = False
    ) -> Row:
        runnable, exact = self.runnable, self.exact
        changed = runnable.task.flipped(
            ran.outputs.double(), self.own.outputs.double(), self._allowed
        )
        flips, upper, safe = nan, nan, False
        if exact is not None:
            counts = counts or count_flips(runnable, None if is_training else solver, ran, exact)
            decision = decide(counts, **self._how)
            flips, upper, safe = (
                counts.changed / counts.n,
                decision.upper,
                decision.status is Status.ODE,
            )
        if (
            isinstance(solver, FixedStep)
            and (solver.n_steps or ran.n_steps) < ran.n_steps
            and ran.n_steps % 1 == 0
        ):
            solver = FixedStep(
                solver.tableau, n_steps=int(ran.n_steps)
            )  # the times of the outputs made them more
        return Row(
            solver, ran.n_steps, ran.n_rejected, ran.nfe, ran.metric, ran.loss, mean_share(runnable, changed), flips, upper, safe,
            nan if exact is None else error(ran.outputs, exact.outputs),
            nan if exact is None or ran.states is None or exact.states is None else error(ran.states, exact.states),
            is_training, ran.status,
        )  # fmt: skip


def error(found: Tensor, exact: Tensor) -> float:
    """RMS of the difference, relative to the RMS deviation of the exact values from their mean over
    the samples.
    """
    found, exact = found[: len(exact)].double().flatten(1), exact.double().flatten(1)
    there = exact.isfinite()
    if not bool(there.any()):
        return nan
    if not bool(found[there].isfinite().all()):
        return inf
    exact = exact.masked_fill(~there, nan)
    spread = (exact - exact.nanmean(0)).square().nanmean().sqrt()
    rounding = (
        torch.finfo(torch.float32).eps * exact[there].abs().amax()
    )  # equal samples differ by no more than this
    return float((found - exact).square().nanmean().sqrt() / spread) if spread > rounding else nan


def by_factors(
    table: SolverTable,
    solvers: Sequence[str],
    factors: Sequence[float],
    *,
    length: float,
    tol: float,
) -> None:
    """Run a model under other methods, with multiples of the training step and tolerance: the
    paper's Figure 4.

    The step of a fixed solver is factor x the training step (under adaptive training: x the mean
    step), a step above the interval being one step; the tolerance of an adaptive one is factor x
    the training tolerance (under fixed training: x ``tol``).

    Args:
        table: where the rows go.
        solvers: names of methods.
        factors: see above.
        length: of the interval.
        tol: tolerance of adaptive solvers where training took fixed steps.
    """
    training: Solver = table.own.solver
    step = length / max(table.own.n_steps, 1.0)
    step = training.step_size if isinstance(training, FixedStep) and training.step_size else step
    table.row(training, 1.0)
    for name in solvers:
        for factor in factors:
            if METHODS[name].kind == "fixed":
                table.row(FixedStep(name, step_size=factor * step), factor)
            elif isinstance(training, Adaptive):
                table.row(replace(training.scaled(factor), method=name), factor)
            else:
                table.row(Adaptive(name, factor * tol, factor * tol), factor)


def to_csv(rows: Sequence[Row]) -> str:
    """One line for each row; several factors are separated by blanks."""
    text = io.StringIO()
    dicts = [row.to_dict() for row in rows]
    writer = csv.DictWriter(text, list(dicts[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {**row, "factors": " ".join(f"{factor:g}" for factor in row["factors"])} for row in dicts
    )
    return text.getvalue()


def to_rich(rows: Sequence[Row], metric_name: str, caption: str = "") -> Table:
    """A table for the terminal."""
    from rich import box
    from rich.table import Table

    note = "Changed: predictions unlike the training solver's; flips: unlike the exact flow's, at most the share with confidence."
    table = Table(box=box.SIMPLE_HEAD, caption=f"{caption} {note}".strip(), caption_justify="left")
    factors = any(row.factors for row in rows)
    columns = [
        "solver",
        *(["factor"] if factors else []),
        "steps",
        "NFE",
        metric_name,
        "loss",
        "error",
        "changed",
        "flips",
        "at most",
    ]
    for column in columns:
        table.add_column(column, justify="left" if column == "solver" else "right")

    def text(value: float, shape: Any = lambda value: f"{value:.4g}") -> str:
        return shape(value) if value == value else "-"

    for row in rows:
        values = [str(row.solver) + (" (training)" if row.is_training else "")]
        values += [" ".join(f"{factor:g}" for factor in row.factors)] if factors else []
        values += [text(row.n_steps), text(row.nfe)]
        if row.status != "success":
            values += [row.status, *[""] * 5]
        else:
            values += [text(row.metric, lambda value: shown(metric_name, value)), text(row.loss)]
            values += [text(row.output_error, lambda value: f"{value:.2g}")]
            values += [text(share, percent) for share in (row.changed, row.flips, row.upper)]
        table.add_row(*values, style="bold" if row.is_training else None)
    return table
