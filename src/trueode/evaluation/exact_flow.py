"""The exact flow: outputs of a model on which two independent methods agree, in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil, nan
from typing import Any

import torch
from torch import Tensor

from trueode.evaluation.course import FINEST, Course, Guided, Takes
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Part, Runnable, Solving
from trueode.evaluation.witness import Witnessed
from trueode.solvers import Adaptive, FixedStep, Solver

COARSEST = 17  # steps of rk4, the number of which is doubled and one added
LOOSEST, TIGHTER, TIGHTEST = 1e-4, 1e-2, {True: 1e-12, False: 1e-6}  # tolerances of dopri5, in double precision or not
AT_FIRST, LATER = 0.05, 0.1  # share of what could change a prediction by which the two may differ
TOGETHER, ALONE = 8, 3  # so few rows are solved again together; from this level on those that rk4 keeps finite are not
PRECISE = 2  # from this level on, errors of solvers can be measured against the exact flow
LEAST_STEPS, PATIENT = 1000, 4  # most steps of dopri5: so many, and so many times those of rk4
SAMPLED, LEAST_SAMPLED, MOST = 40, 20_000, 400  # defects looked at: of each row, of all together, most of a row of many
SPARED = 0.1  # of the budget, for more defects than those of each row
LOCATED = 128  # of the largest defects are followed up
ROUNDS = 5  # of solves with the features found before
LAG = 4  # steps of rk4 from a blow-up to infinite numbers
SAME_TIME = 0.01  # of the interval: both methods lose a row that blows up within so much of another
DOPRI5 = 150.0  # field evaluations of dopri5 for a sample on which the two agree at once, at most about


@dataclass(frozen=True)
class ExactFlow:
    """Outputs of a model under the exact flow.

    Attributes:
        outputs: ``(n, …)`` by rk4, each row of the finest solve that it took part in.
        states: final states of the last ODE block ``(n, d)``, likewise; None where they are not known.
        settled: ``(n, predictions)`` of bool: rk4 and dopri5 agree on the prediction.
        blown_up: ``(n,)`` of bool: the solution ceases to exist before the end, for both methods.
        allowed: by how much numbers may move, for each component; see `Task.allowed`.
        complete: whether unsettled rows were refined to the end, rather than until the budget was spent.
        n_steps: steps of rk4 in the finest solve.
        tolerance: of dopri5 in the finest solve.
        floor: RMS difference of the two methods, relative to the outputs' deviation from their mean.
        double: whether it was computed in double precision.
        evaluations: field evaluations spent, counted in samples.
        width: features of the field in time that are narrower than this part of the interval may be missed.
        course: what ends of steps keep to.
    """

    outputs: Tensor
    states: Tensor | None
    settled: Tensor
    blown_up: Tensor
    allowed: Tensor | None
    complete: bool
    n_steps: int
    tolerance: float
    floor: float
    double: bool
    evaluations: int
    width: float = nan
    course: Course = field(default_factory=Course, repr=False, compare=False)

    @property
    def disagreeing(self) -> int:
        """Rows for which there is no exact flow, those that blow up left out."""
        return int((~self.settled.all(1) & ~self.blown_up).sum())

    @property
    def converged(self) -> bool:
        """Whether there is an exact flow for all rows that do not blow up."""
        return not self.disagreeing

    def __str__(self) -> str:
        precision = "double" if self.double else "the model's own"
        return f"rk4 with up to {self.n_steps} steps and dopri5 with a tolerance down to {self.tolerance:.3g}, in {precision} precision"


def finer_solver(solver: Solver, n_steps: float) -> FixedStep:
    """A solver to refer to while a model trains, quick and much finer than ``solver`` with its ``n_steps`` steps.

    It is rk4 with as many steps, twice as many where the solver's order is rk4's or higher. It shows; it never decides.
    """
    return FixedStep("rk4", n_steps=max(16, ceil(n_steps) * (2 if solver.order >= 4 else 1)))


def least_cost(n_steps: float, order: int) -> float:
    """Field evaluations for a sample on which the two methods agree at once, about."""
    return 4 * next(levels(n_steps, order))[0] + DOPRI5 + SAMPLED


def levels(n_steps: float, order: int, double: bool = True, level: int = 0) -> Iterator[tuple[int, float]]:
    """Steps of rk4 and tolerances of dopri5, finer each time, for a training solver of ``n_steps`` steps and an order.

    Steps are at least four times as many where the order is four or more, and no multiples: equal nodes hide equal errors.
    """
    training = ceil(n_steps) if n_steps == n_steps else 1
    steps = max(COARSEST, 4 * training + 1 if order >= 4 else 0)
    most = max(FINEST, 8 * steps)
    for number in range(64):
        steps += training > 1 and steps % training == 0
        if number >= level:
            yield steps, max(LOOSEST * TIGHTER**number, TIGHTEST[double])
        steps = 2 * steps + 1
        if steps > most:
            return


def exact_flow(runnable: Runnable, own: Evaluation, *, level: int = 0, budget: float = float("inf")) -> ExactFlow:
    """Solve by rk4 and by dopri5, finer each time, the rows on which they do not agree yet, and look for what both step over.

    They agree on a prediction where it is the same, and the outputs differ by less than a twentieth (in later solves: a tenth) of
    what decides: of the margin between the two largest logits, or of the tolerance. A row is settled where they agree and no
    defect, looked for at random times, could change the prediction by as much. Where a defect shows a feature that is shorter
    than steps, ends of steps are put around it and all rows are solved again. A row is refined until the predictions that are
    drawn of it have settled.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver; its first rows are those of ``runnable``.
        level: begin so many refinements later: `PRECISE` where errors are to be measured.
        budget: field evaluations, counted in samples, that may be spent.
    """
    course, spent = Course(coupled=not runnable.separable), 0.0
    for _ in range(ROUNDS):
        ladder = _Ladder(runnable, own, course, budget, spent)
        again = ladder.climb(level)
        spent = ladder.spent
        if not again:
            break
    else:
        ladder.settled[:] = False
    return ladder.flow()


class _Ladder:
    """The refinement of rows until they have settled, for a course that ends of steps keep to."""

    def __init__(self, runnable: Runnable, own: Evaluation, course: Course, budget: float, spent: float) -> None:
        self.runnable, self.own, self.course, self.budget, self.spent = runnable, own, course, budget, spent
        n, double = runnable.n, runnable.double
        dtype = torch.float64 if double else own.outputs.dtype
        self.outputs = torch.full_like(own.outputs[:n], nan, dtype=dtype)
        self.states = None if own.states is None else torch.full_like(own.states[:n], nan, dtype=dtype)
        self.settled = torch.zeros_like(runnable.task.flipped(own.outputs[:n], own.outputs[:n]))
        self.blown_up = self.settled.any(1)
        self.apart = torch.full((n,), nan, dtype=torch.float64, device="cpu")
        self.residual = runnable.residual(own.outputs[:n])
        self.allowed: Tensor | None = None
        self.complete, self.each, self.done, self.looked = True, 0.0, (0, nan), 0

    def climb(self, level: int) -> bool:
        """Refine; whether features were found, so that all is to be solved again."""
        runnable, needed = self.runnable, torch.zeros_like(self.settled)
        needed.view(-1)[runnable.drawn(*needed.shape)] = True
        left = torch.arange(runnable.n, device="cpu")
        order = 0 if _adaptive(self.own.solver) else getattr(self.own.solver, "order", 4) or 4
        steps = levels(self.own.n_steps, order, runnable.double, level)
        for number, (count, tolerance) in enumerate(steps):
            sampled = self._sampled(len(left))
            cost = (4 * count + 2 * self.each + sampled) * len(left)
            self.complete = not self.spent or self.spent + cost <= self.budget
            if not self.complete:
                return False
            self.done = count, tolerance
            witness = Witnessed(self.course, count, level + number, left, sampled=sampled)
            first = self._run(FixedStep("rk4", n_steps=count), left, witness)
            moved = runnable.run(FixedStep("rk4", n_steps=count), Part(left, runnable.double, solving=witness.moved()))
            if not number:
                self.looked = witness.times
            self.outputs[left] = first.outputs
            if self.states is not None and first.states is not None:
                self.states[left] = first.states
            finite = runnable.finite(self.outputs)[left]
            self.allowed = runnable.task.allowed(self.outputs, self.residual)
            share = LATER if number else AT_FIRST
            calm = runnable.task.settled(moved.outputs, first.outputs, self.allowed, share)
            hits = left[finite & (needed[left] & ~calm).any(1)]
            if len(hits) and self._locate(witness, hits):
                return True
            second = self._dopri5(first, finite, left, number, witness.ended)
            agree = runnable.task.settled(second, first.outputs, self.allowed, share) & finite[:, None] & calm
            self.settled[left] = agree
            self.apart[left] = (second - first.outputs).double().flatten(1).square().nanmean(1).sqrt()
            left = left[(needed[left] & ~agree).any(1) & ~self.blown_up[left]]
            if not len(left):
                return False
        return False

    def _sampled(self, rows: int) -> int:
        """Defects to be looked at in each of some rows: more of few, as far as a part of the budget allows."""
        most = LEAST_SAMPLED if self.runnable.n == 1 else MOST
        wanted = min(LEAST_SAMPLED / rows, most, SPARED * self.budget / rows)
        return max(SAMPLED, ceil(wanted))

    def _run(self, solver: Solver, rows: Tensor, solving: Solving) -> Evaluation:
        ran = self.runnable.run(solver, Part(rows, self.runnable.double, solving=solving))
        self.spent += ran.nfe * len(rows)
        return ran

    def _locate(self, witness: Witnessed, hits: Tensor) -> bool:
        """Whether the largest of the defects that matter show features that were not known."""
        hit = set(hits.tolist())
        largest = sorted((pair for pair in witness.largest if pair[1].row in hit), key=lambda pair: -pair[0])
        targets = [target for _, target in largest[:LOCATED]]
        rows = torch.tensor(sorted({target.row for target in targets}), dtype=torch.long, device="cpu")
        if not len(rows):
            return False
        search = witness.towards(targets)
        self._run(FixedStep("rk4", n_steps=witness.n_steps), rows, search)
        found = False
        for block, features in search.located.items():
            largest_first = [feature for _, feature in sorted(features, key=lambda pair: -pair[0])]
            found = self.course.add(block, largest_first) or found
        return found

    def _dopri5(self, first: Evaluation, finite: Tensor, left: Tensor, number: int, ended: dict[int, float]) -> Tensor:
        """Outputs by dopri5, and which rows blow up: both methods lose them, at the same time, well before the end."""
        count, tolerance = self.done
        solver = Adaptive("dopri5", tolerance, tolerance, max_steps=max(LEAST_STEPS, PATIENT * count))
        second = torch.full_like(first.outputs, nan)
        size = first.outputs.double().abs().nan_to_num(torch.inf).flatten(1).amax(1)
        for rows in (finite, ~finite):
            if bool(rows.any()) and (number or rows is finite):
                least = 1 if number >= ALONE and rows is finite else TOGETHER
                guided = Guided(self.course)
                before = self.spent
                second[rows] = self._each(solver, left[rows], size[rows], least, guided)
                if rows is finite:
                    self.each = (self.spent - before) / int(rows.sum())
                    continue
                within = max(SAME_TIME, LAG / count)
                for row in set(left[rows].tolist()) & guided.ended.keys():
                    one, other = ended.get(row, nan), guided.ended[row]
                    same = other != other or (abs(one - other) <= within and one % 1 <= 1 - SAME_TIME)
                    self.blown_up[row] = same and not bool(second[left == row].isfinite().all())
        return second

    def _each(self, solver: Adaptive, rows: Tensor, size: Tensor, least: int, guided: Guided) -> Tensor:
        """Outputs of a solver.

        Rows whose solution ends early are solved again, each by itself or in halves by their ``size`` down to the ``least``
        number: those that blow up are large, and are not to take others along.
        """
        runnable, takes = self.runnable, self.course.takes.values()
        outputs = self._run(solver, rows, guided).outputs
        again = torch.tensor([row in guided.ended for row in rows.tolist()], device="cpu").nonzero()[:, 0]
        alone = all(each is Takes.ROWS for each in takes) if takes else runnable.per_sample
        if not runnable.separable or not len(again) or (solver.per_sample if alone else len(rows) <= least):
            return outputs
        for half in again[size[again].argsort()].chunk(1 if alone else 2):
            part = half.sort().values
            for row in rows[part].tolist():
                del guided.ended[row]
            single = replace(solver, per_sample=alone)
            outputs[part] = self._each(single, rows[part], size[part], least, guided)
        return outputs

    def flow(self) -> ExactFlow:
        """What was found."""
        good = self.settled.any(1)
        floor = _relative(self.apart[good], self.outputs[good])
        return ExactFlow(
            self.outputs, self.states, self.settled, self.blown_up, self.allowed, self.complete, *self.done, floor,
            self.runnable.double, round(self.spent), 2 / max(self.looked, 1), self.course,
        )  # fmt: skip


def _adaptive(solver: Any) -> bool:
    return bool(getattr(solver, "adaptive", isinstance(solver, Adaptive)))


def _relative(apart: Tensor, outputs: Tensor) -> float:
    known = outputs.double().flatten(1)
    if len(known) < 2:
        return nan
    spread = (known - known.nanmean(0)).square().nanmean().sqrt()
    return float(apart.square().nanmean().sqrt() / spread.clamp(min=1e-30))
