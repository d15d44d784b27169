"""One model under many solvers, each cell compared with the training solver and with the exact flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, inf, nan
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.ran import Ran
from trueode.auditing.reference import Reference
from trueode.auditing.scores import Metric, losses_of, metric_of
from trueode.catalog import METHODS
from trueode.evaluation import clopper_pearson
from trueode.solvers import Adaptive, FixedStep, get_tableau

LOOSEST, TIGHTEST = 1e-1, 1e-6  # tolerances of adaptive methods; float32 can keep no tighter one
LEAST_NFE = 256  # methods are tried up to so many evaluations, or four times those of the training solver
AT_REST = 2  # rows without a flip after which finer ones are not tried
ASYMPTOTIC, TELLING = 0.3, 3  # an order is told by so many rows of an error below this share of the outputs' scale


@dataclass(frozen=True)
class Row:
    """A model under one solver.

    Attributes:
        method: name of the method; for the training solver as the model's library names it, if it is unknown here.
        kind: ``"fixed"`` or ``"adaptive"``.
        setting: number of steps asked for in each ODE block, or tolerance.
        n_steps: realised steps, mean over samples.
        n_rejected: rejected steps.
        nfe: field evaluations for a sample.
        metric: mean over the samples; NaN without targets.
        loss: mean over the samples; NaN without targets.
        output_error: RMS of the difference of outputs from the reference, relative to the reference's deviation from its
            mean.
        state_error: the same of the final states of the last ODE block; NaN where they are not known.
        changed: predictions that differ from those under the training solver.
        flips: predictions that differ from the reference.
        upper: bound of the share of flips; it is smaller with 95 % confidence.
        is_training: whether this is the training solver.
        status: ``"success"``, or why the solve failed.
    """

    method: str
    kind: str
    setting: float
    n_steps: float
    n_rejected: float
    nfe: float
    metric: float
    loss: float
    output_error: float
    state_error: float
    changed: int
    flips: int
    upper: float
    is_training: bool
    status: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def solver(self) -> str:
        """The solver in words."""
        return (
            f"{self.method} x {self.setting:g}" if self.kind == "fixed" else f"{self.method}, tol = {self.setting:.2g}"
        )


@dataclass
class Swaps:
    """Runs a model under other solvers, each once.

    Attributes:
        subject: the model and the samples.
        own: the model under its training solver.
        reference: the model under its exact flow.
        metric: of one's own, if any.
        rows: what has been run.
    """

    subject: ModelUnderTest
    own: Ran
    reference: Reference
    metric: Metric | None = None
    rows: dict[tuple[str, float], Row] = field(default_factory=dict)

    def training(self, method: str, kind: str, setting: float) -> Row:
        """The row of the training solver."""
        return self._judge(method, kind, setting, self.own, True)

    def row(self, method: str, setting: float) -> Row:
        """The row of a method of ours: with a number of steps, or a tolerance."""
        key = method, setting
        if key not in self.rows:
            fixed = METHODS[method].kind == "fixed"
            solver = FixedStep(method, n_steps=int(setting)) if fixed else Adaptive(method, setting, setting)
            row = self._judge(method, "fixed" if fixed else "adaptive", setting, self.subject.run(solver), False)
            if fixed:
                self._unite(row)
        return self.rows[key]

    def _unite(self, row: Row) -> None:
        """Let numbers of steps that lead to the same solve, for the times of a model's states, have one row."""
        for key, other in list(self.rows.items()):
            same = (other.method, other.n_steps, other.nfe) == (row.method, row.n_steps, row.nfe)
            if same and other is not row and not other.is_training:
                named, alias = (row, key) if row.setting == row.n_steps else (other, (row.method, row.setting))
                self.rows[alias] = named
                row = named

    def realised(self, row: Row) -> Row:
        """The same solve of fixed steps by the number of steps that it took, where the times of a model's states made it more."""
        if row.is_training or row.kind != "fixed" or not row.n_steps > row.setting or row.n_steps % 1:
            return row
        same = self.row(row.method, row.n_steps)
        return same if same.nfe == row.nfe else row

    def of(self, method: str) -> list[Row]:
        """The rows of a method, the coarsest first."""
        rows = {id(row): row for row in self.rows.values() if row.method == method}.values()
        return sorted(rows, key=lambda row: row.setting if row.kind == "fixed" else -row.setting)

    def flipped(self, ran: Ran) -> Tensor:
        """Which predictions differ from the reference: ``(n,)`` of bool; those without a reference count as differing."""
        task, exact = self.subject.task, self.reference.outputs
        return task.flipped(ran.outputs.double(), exact.double(), task.scale(exact)) | ~self.reference.settled

    def _judge(self, method: str, kind: str, setting: float, ran: Ran, is_training: bool) -> Row:
        subject, reference = self.subject, self.reference
        task = subject.task
        changed = task.flipped(ran.outputs.double(), self.own.outputs.double(), task.scale(self.own.outputs.double()))
        flips = int(self.flipped(ran).sum())
        metric, loss = metric_of(subject, ran, self.metric), losses_of(subject, ran)
        row = Row(
            method,
            kind,
            setting,
            ran.n_steps,
            ran.n_rejected,
            ran.nfe,
            nan if metric is None else float(metric.mean()),
            nan if loss is None else float(loss.mean()),
            error(ran.outputs, reference.outputs),
            nan if ran.states is None or reference.states is None else error(ran.states, reference.states),
            int(changed.sum()),
            flips,
            clopper_pearson(flips, subject.n)[1],
            is_training,
            ran.status,
        )
        self.rows[method, setting] = row
        return row


def error(found: Tensor, exact: Tensor) -> float:
    """RMS of the difference, relative to the RMS deviation of the exact values from their mean over the samples."""
    exact = exact.double().flatten(1)
    found = found.double().flatten(1)
    there = exact.isfinite()
    if not bool(there.any()):
        return nan
    if not bool(found[there].isfinite().all()):
        return inf
    exact = exact.masked_fill(~there, nan)
    spread = (exact - exact.nanmean(0)).square().nanmean().sqrt()
    rounding = torch.finfo(torch.float32).eps * exact[there].abs().amax()  # equal samples differ by no more than this
    return float((found - exact).square().nanmean().sqrt() / spread) if spread > rounding else nan


def swap_grid(
    swaps: Swaps, methods: Sequence[str], own: Row, *, note: Callable[[str], None] = lambda text: None
) -> None:
    """Run all methods from one step, or a loose tolerance, up to where nothing changes any more.

    The steps double; those of the training method are the training steps halved and doubled, to four times as many at
    least. Steps end at all times at which a model asks for states: there are no fewer than that. Methods go on until two
    rows in turn have no flip and three tell of their order, or until their evaluations exceed four times those of the
    training solver and 256.

    Args:
        swaps: where the rows go.
        methods: names of methods.
        own: the row of the training solver.
        note: told of what is being run.
    """
    most = max(LEAST_NFE, 4 * own.nfe)
    for method in methods:
        calm, telling = 0, 0
        for setting in _from_least(swaps, method, _ladder(method, own)):
            fixed = METHODS[method].kind == "fixed"
            wanted = method == own.method and fixed and setting <= 4 * own.setting
            too_dear = fixed and setting * get_tableau(method).advancing_stages > most
            at_rest = calm >= AT_REST and (telling >= TELLING or not fixed)
            if not wanted and (at_rest or too_dear):
                break
            note(f"{method} x {setting:g}" if fixed else f"{method}, tol = {setting:g}")
            row = swaps.row(method, setting)
            calm = calm + 1 if row.status == "success" and not row.flips else 0
            telling += row.output_error < ASYMPTOTIC
            if row.nfe > most and not wanted:
                break


def _from_least(swaps: Swaps, method: str, ladder: list[float]) -> list[float]:
    """A ladder from the number of steps that the times of a model's states leave as the least."""
    if METHODS[method].kind == "adaptive":
        return ladder
    coarsest = swaps.row(method, ladder[0])
    least = swaps.realised(coarsest)
    if least is coarsest:
        return ladder
    del swaps.rows[method, ladder[0]]  # the same solve by another name
    return [least.setting, *(setting for setting in ladder if setting > least.setting)]


def _ladder(method: str, own: Row) -> list[float]:
    """Numbers of steps, or tolerances, from coarse to fine."""
    if METHODS[method].kind == "adaptive":
        ladder = [LOOSEST]
        while ladder[-1] > 1.5 * TIGHTEST:
            ladder.append(float(f"{ladder[-1] / 10:.1g}"))
        if method == own.method and own.kind == "adaptive":
            ladder = sorted({*ladder, own.setting}, reverse=True)
        return ladder
    if method == own.method and own.kind == "fixed":
        base = int(own.setting)
        coarser = {ceil(base / 2**k) for k in range(base.bit_length() + 1)}
        return sorted({*map(float, coarser), *(float(base * 2**k) for k in range(1, 12))})
    return [float(2**k) for k in range(16)]


def paired(own: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean of the paired differences of two values for each sample, and its standard error."""
    difference = own - exact
    n = len(difference)
    return float(difference.mean()), float(difference.std() / n**0.5) if n > 1 else inf
