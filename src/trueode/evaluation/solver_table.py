"""One model under many solvers, each compared with the training solver and with the exact flow."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
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
from trueode.evaluation.statistics import percent, rough_percent
from trueode.evaluation.wording import shown
from trueode.solvers import Adaptive, FixedStep, Solver

if TYPE_CHECKING:
    from rich.table import Table

Column = Callable[["Row"], str]


@dataclass(frozen=True)
class Row:
    """A model under one solver.

    Attributes:
        solver: the solver, with the number of fixed steps that it really took; a description if it
            is another library's.
        n_steps: accepted steps, mean over samples.
        n_rejected: rejected steps, mean over samples.
        nfe: field evaluations per sample.
        metric: mean over samples; NaN without targets, or if the solver failed.
        loss: mean over samples, likewise.
        changed: share of predictions unlike those under the training solver.
        flips: share of predictions unlike those under the exact flow; NaN without one.
        upper: upper bound of the share of samples that flip, blow up or are unresolved. For
            densities and samplers, of the size of the mean that decides.
        safe: whether the verdict under this solver would be ``ode``.
        output_error: RMS difference of the outputs from the exact flow's, relative to the standard
            deviation of the exact outputs.
        state_error: the same for the final states of the last ODE block; NaN if unknown.
        is_training: whether this is the training solver.
        status: ``"success"``, or why the solve failed.
        factors: the requested factors on the training step or tolerance; several if they lead to
            the same steps.
        change: for densities, the mean log density minus that under the exact flow, in bits per
            dimension; NaN for other tasks.
        sliced: for samplers, the sliced distance to the exact samples, relative to their spread;
            NaN for other tasks.
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
    change: float = nan
    sliced: float = nan

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
        """The name of the method; for an unknown one, the name in its library."""
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
    """Runs a model under many solvers. Solvers with the same steps share a row.

    Args:
        runnable: the model and the samples.
        own: the model under its training solver.
        exact: the exact flow of the first samples, if known.
        counts: the counts of the training solver, if known.
        how: ``margin``, ``level`` and ``population``, as in `decide`.

    Attributes:
        rows: one row for each solver so far, the training solver first.
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
        self._rows: dict[Any, Row] = {}  # by the time grid
        self._asked: dict[Any, Any] = {}  # the key in `_rows` of each requested solver
        self.training = self._judged(own.solver, own, counts, is_training=True)
        key = self._key(own.solver, self.training)
        self._rows[key] = self.training
        self._asked[runnable.grid(own.solver) or own.solver] = key

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order of the requests."""
        return tuple(self._rows.values())

    def row(
        self, solver: Solver, factor: float | None = None, ran: Evaluation | None = None
    ) -> Row:
        """Run the model under a solver, unless the row exists already.

        Args:
            solver: the solver.
            factor: its factor on the training step or tolerance, which the row records.
            ran: the model under the solver, if it was run already.
        """
        asked = self.runnable.grid(solver) or solver
        if asked not in self._asked:
            row = self._judged(solver, ran or self.runnable.run(solver), None)
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
        """The rows of a method, from coarse to fine."""
        rows = [row for row in self.rows if row.method == method]
        return sorted(rows, key=lambda row: row.setting if row.kind == "fixed" else -row.setting)

    def _key(self, solver: Any, row: Row) -> Any:
        """A key that solvers share if they took the same steps of the same method."""
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
        change = sliced = nan
        if exact is not None:
            counts = counts or count_flips(runnable, None if is_training else solver, ran, exact)
            decision = decide(counts, **self._how)
            flips, upper, safe = (
                counts.changed / counts.n,
                decision.most,
                decision.status is Status.ODE,
            )
            change = nan if counts.likelihood is None else counts.likelihood.estimate
            sliced = nan if counts.discrepancy is None else counts.discrepancy.sliced
        if (
            isinstance(solver, FixedStep)
            and (solver.n_steps or ran.n_steps) < ran.n_steps
            and ran.n_steps % 1 == 0
        ):
            # output times added steps
            solver = FixedStep(solver.tableau, n_steps=int(ran.n_steps))
        output_error = state_error = nan
        if exact is not None:
            output_error = error(ran.outputs, exact.outputs)
            if ran.states is not None and exact.states is not None:
                state_error = error(ran.states, exact.states)
        return Row(
            solver, ran.n_steps, ran.n_rejected, ran.nfe, ran.metric, ran.loss,
            mean_share(runnable, changed), flips, upper, safe, output_error, state_error,
            is_training, ran.status, change=change, sliced=sliced,
        )  # fmt: skip


def error(found: Tensor, exact: Tensor) -> float:
    """The RMS difference, relative to the standard deviation of the exact values over samples."""
    found, exact = found[: len(exact)].double().flatten(1), exact.double().flatten(1)
    there = exact.isfinite()
    if not bool(there.any()):
        return nan
    if not bool(found[there].isfinite().all()):
        return inf
    exact = exact.masked_fill(~there, nan)
    spread = (exact - exact.nanmean(0)).square().nanmean().sqrt()
    # samples that are equal differ by no more than this
    rounding = torch.finfo(torch.float32).eps * exact[there].abs().amax()
    return float((found - exact).square().nanmean().sqrt() / spread) if spread > rounding else nan


def by_factors(
    table: SolverTable,
    solvers: Sequence[str],
    factors: Sequence[float],
    *,
    length: float,
    tol: float,
) -> None:
    """Run a model under other methods, with multiples of the training step and tolerance.

    This is the experiment of the paper's Figure 4. The step of a fixed-step solver is a factor
    times the training step (after adaptive training: times the mean step). A step longer than the
    interval means one step. The tolerance of an adaptive solver is a factor times the training
    tolerance (after training with fixed steps: times ``tol``).

    Args:
        table: the table that receives the rows.
        solvers: names of methods.
        factors: the factors.
        length: length of the interval.
        tol: the tolerance to scale if training took fixed steps.
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
    """The rows as CSV, one line each; several factors are separated by blanks."""
    text = io.StringIO()
    dicts = [row.to_dict() for row in rows]
    writer = csv.DictWriter(text, list(dicts[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {**row, "factors": " ".join(f"{factor:g}" for factor in row["factors"])} for row in dicts
    )
    return text.getvalue()


def to_rich(rows: Sequence[Row], metric_name: str, caption: str = "") -> Table:
    """The rows as a table for the terminal."""
    from rich import box
    from rich.table import Table

    def number(name: str, digits: int = 4) -> Column:
        return lambda row: _text(getattr(row, name), lambda value: f"{value:.{digits}g}")

    def two_digits(name: str) -> Column:
        return lambda row: _text(getattr(row, name), rough_percent)

    def share(name: str) -> Column:
        return lambda row: _text(getattr(row, name), percent)

    columns: dict[str, Column] = {"steps": number("n_steps"), "NFE": number("nfe")}
    known = [row for row in rows if row.metric == row.metric]
    scores: dict[str, Column] = {
        metric_name: lambda row: _text(row.metric, lambda value: shown(metric_name, value)),
        "loss": number("loss"),
    }
    if any(row.sliced == row.sliced for row in rows):
        note = (
            "Error: RMS difference from the exact samples, relative to their spread; at most: its "
            "upper bound; sliced: Wasserstein distance, relative likewise."
        )
        scores = {metric_name: scores[metric_name]} if known else {}
        for title, name in (("error", "output_error"), ("at most", "upper"), ("sliced", "sliced")):
            scores[title] = two_digits(name)
    elif any(row.change == row.change for row in rows):
        note = (
            "Change: mean log density minus that under the exact flow, in bits per dimension; at "
            "most: the upper bound of its size."
        )
        scores |= {"error": number("output_error", 2), "change": number("change", 2)}
        scores |= {"at most": number("upper", 2)}
    else:
        note = (
            "Changed: predictions unlike the training solver's. Flips: predictions unlike the "
            "exact flow's; at most: the upper bound of their share."
        )
        scores |= {"error": number("output_error", 2), "changed": share("changed")}
        scores |= {"flips": share("flips"), "at most": share("upper")}
    table = Table(box=box.SIMPLE_HEAD, caption=f"{caption} {note}".strip(), caption_justify="left")
    factors = any(row.factors for row in rows)
    for column in ("solver", *(["factor"] if factors else []), *columns, *scores):
        table.add_column(column, justify="left" if column == "solver" else "right")
    for row in rows:
        values = [str(row.solver) + (" (training)" if row.is_training else "")]
        values += [" ".join(f"{factor:g}" for factor in row.factors)] if factors else []
        values += [value(row) for value in columns.values()]
        if row.status == "success":
            values += [value(row) for value in scores.values()]
        else:
            values += [row.status, *[""] * (len(scores) - 1)]
        table.add_row(*values, style="bold" if row.is_training else None)
    return table


def _text(value: float, shape: Callable[[float], str]) -> str:
    return shape(value) if value == value else "-"
