"""The exact flow: outputs of a model on which two independent methods agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, nan

from torch import Tensor

from trueode.evaluation.course import Course
from trueode.evaluation.draft import Draft
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.refinement import SAMPLED, Refinement, levels
from trueode.evaluation.runnable import Runnable
from trueode.solvers import FixedStep, Solver

PRECISE = 2  # from this level on, errors of solvers can be measured against the exact flow
ROUNDS = 5  # of solves with the features found before
DOPRI5 = (
    150.0  # field evaluations of dopri5 for a sample on which the two agree at once, at most about
)


@dataclass(frozen=True)
class ExactFlow:
    """Outputs of a model under the exact flow.

    Attributes:
        outputs: ``(n, …)`` by rk4, each row of the finest solve that it took part in.
        states: final states of the last ODE block ``(n, d)``, likewise; None where they are not
            known.
        settled: ``(n, predictions)`` of bool: rk4 and dopri5 agree on the prediction.
        blown_up: ``(n,)`` of bool: the solution ceases to exist before the end, for both methods.
        allowed: by how much numbers may move, for each component; see `Task.allowed`.
        complete: whether unsettled rows were refined to the end, rather than until the budget was
            spent.
        n_steps: steps of rk4 in the finest solve.
        tolerance: of dopri5 in the finest solve.
        floor: RMS difference of the two methods, relative to the outputs' deviation from their
            mean.
        double: whether it was computed in double precision.
        evaluations: field evaluations spent, counted in samples.
        width: features of the field in time that are narrower than this part of the interval may be
            missed.
        sensitive: ``(n,)`` of bool: rows whose prediction moves with a change of their initial
            state by 1e-9.
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
    sensitive: Tensor | None = None
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
    """A solver to refer to while a model trains, quick and much finer than ``solver`` with its
    ``n_steps`` steps.

    It is rk4 with as many steps, twice as many where the solver's order is rk4's or higher. It
    shows; it never decides.
    """
    return FixedStep("rk4", n_steps=max(16, ceil(n_steps) * (2 if solver.order >= 4 else 1)))


def least_cost(n_steps: float, order: int) -> float:
    """Field evaluations for a sample on which the two methods agree at once, about."""
    return 4 * next(levels(n_steps, order))[0] + DOPRI5 + SAMPLED


def exact_flow(
    runnable: Runnable, own: Evaluation, *, level: int = 0, budget: float = float("inf")
) -> ExactFlow:
    """Solve by rk4 and by dopri5, finer each time, the rows on which they do not agree yet, and
    look for what both step over.

    They agree on a prediction where it is the same, and the outputs differ by less than a twentieth
    (in later solves: a tenth) of what decides: of the margin between the two largest logits, or of
    the tolerance. A row is settled where they agree and no defect, looked for at random times,
    could change the prediction by as much. Where a defect shows a feature that is shorter than
    steps, ends of steps are put around it and all rows are solved again. A row is refined until the
    predictions that are drawn of it have settled. The model's own precision is enough for
    predictions that are a hundred times as far from changing as it changes outputs. Implicit
    methods of SciPy have the last word on rows that are left. Rows that move with their initial
    state are not settled.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver; its first rows are those of ``runnable``.
        level: begin so many refinements later: ``PRECISE`` where errors are to be measured.
        budget: field evaluations, counted in samples, that may be spent.
    """
    course, spent, alone = Course(coupled=not runnable.separable), 0.0, runnable.n == 1
    level = max(
        level, int(alone)
    )  # a trajectory of many output times is followed from some steps between these on
    for left in reversed(range(ROUNDS)):
        draft = Draft(runnable, own, course, budget, spent)
        refinement = Refinement(draft, last=not left)
        again = refinement.climb(level)
        spent, level = draft.spent, refinement.reached if alone else level
        if not again:
            break
    good = draft.settled.any(1)
    floor = _relative(draft.apart[good], draft.outputs[good])
    return ExactFlow(
        draft.outputs, draft.states, draft.settled, draft.blown_up, draft.allowed, refinement.complete, *refinement.finest,
        floor, runnable.double, round(spent), draft.width, draft.sensitive, course,
    )  # fmt: skip


def _relative(apart: Tensor, outputs: Tensor) -> float:
    known = outputs.double().flatten(1)
    if len(known) < 2:
        return nan
    spread = (known - known.nanmean(0)).square().nanmean().sqrt()
    return float(apart.square().nanmean().sqrt() / spread.clamp(min=1e-30))
