"""The exact flow: outputs of a model on which two independent methods agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, nan

from torch import Tensor

from trueode.evaluation.course import Course
from trueode.evaluation.draft import Draft
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.pace import Pace
from trueode.evaluation.refinement import SAMPLED, Refinement, levels
from trueode.evaluation.runnable import Runnable
from trueode.precision import ieee
from trueode.solvers import FixedStep, Solver

PRECISE = 2  # from this level on, errors of solvers can be measured against the exact flow
ROUNDS = 5  # most rounds of solves; each uses the features found before
DOPRI5 = 150.0  # about the most field evaluations of dopri5 for a sample that converges at once


@dataclass(frozen=True)
class ExactFlow:
    """Outputs of a model under the exact flow.

    Attributes:
        outputs: outputs by rk4 ``(n, …)``, from the finest solve of each row.
        states: final states of the last ODE block ``(n, d)``, likewise; None if unknown.
        settled: whether a prediction has converged, i.e. rk4 and dopri5 agree on it,
            ``(n, predictions)`` of bool.
        blown_up: whether the solution ceases to exist before the end, for both methods, ``(n,)`` of
            bool.
        allowed: how far each output component may move; see `Task.allowed`.
        complete: whether refinement ended before the budget was spent.
        n_steps: steps of rk4 in the finest solve.
        tolerance: tolerance of dopri5 in the finest solve.
        floor: RMS difference of the two methods, relative to the standard deviation of the outputs.
        double: whether the flow was computed in double precision.
        evaluations: field evaluations spent, counted in samples.
        width: features of the field in time that are narrower than this part of the interval may be
            missed.
        sensitive: whether a change of the initial state by 1e-9 moves the row's prediction,
            ``(n,)`` of bool.
        course: the constraints on steps.
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
        """The number of rows without an exact flow, without those that blow up."""
        return int((~self.settled.all(1) & ~self.blown_up).sum())

    @property
    def converged(self) -> bool:
        """Whether all rows that do not blow up have an exact flow."""
        return not self.disagreeing

    def __str__(self) -> str:
        precision = "double" if self.double else "the model's own"
        return (
            f"rk4 with up to {self.n_steps} steps and dopri5 with a tolerance down to "
            f"{self.tolerance:.3g}, in {precision} precision"
        )


def finer_solver(solver: Solver, n_steps: float) -> FixedStep:
    """A quick reference solver for use during training, much more accurate than ``solver``.

    It is rk4 with ``n_steps`` steps, those of ``solver``, or twice as many if the order of
    ``solver`` is 4 or higher; at least 16. Its results are shown, and decide nothing.
    """
    return FixedStep("rk4", n_steps=max(16, ceil(n_steps) * (2 if solver.order >= 4 else 1)))


def least_cost(n_steps: float, order: int) -> float:
    """About the field evaluations for a sample that converges at once."""
    return 4 * next(levels(n_steps, order))[0] + DOPRI5 + SAMPLED


@ieee()
def exact_flow(
    runnable: Runnable,
    own: Evaluation,
    *,
    level: int = 0,
    budget: float = float("inf"),
    pace: Pace | None = None,
) -> ExactFlow:
    """Compute the exact flow: refine rk4 and dopri5 until both agree on each row.

    They agree on a prediction if it is the same and the outputs differ by less than a twentieth (in
    later solves a tenth) of the change that flips it: of the margin between the two largest logits,
    or of the tolerance. A row has converged if they agree, and if no defect at random times could
    change the prediction by as much. If a defect shows a feature shorter than the steps, ends of
    steps are placed around it, and all rows are solved again. A row is refined until its drawn
    predictions have converged. The model's own precision suffices for predictions whose distance
    from a flip is a hundred times its rounding error. Two implicit methods of SciPy solve the rows
    that remain. A row that moves with a tiny change of its initial state has not converged.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver; its first rows are those of ``runnable``.
        level: the refinement to begin with, counted from 0; ``PRECISE`` to measure errors.
        budget: field evaluations that may be spent, counted in samples.
        pace: reports the solves.
    """
    pace = pace or Pace()
    course, spent, alone = Course(coupled=not runnable.separable), 0.0, runnable.n == 1
    level = max(level, int(alone))  # a single trajectory needs steps between its output times
    for left in reversed(range(ROUNDS)):
        draft = Draft(runnable, own, course, budget, spent, pace)
        refinement = Refinement(draft, last=not left)
        again = refinement.climb(level)
        spent, level = draft.spent, refinement.reached if alone else level
        if not again:
            break
    good = draft.settled.any(1)
    floor = _relative(draft.apart[good], draft.outputs[good])
    return ExactFlow(
        draft.outputs, draft.states, draft.settled, draft.blown_up, draft.allowed,
        refinement.complete, *refinement.finest, floor, runnable.double, round(spent), draft.width,
        draft.sensitive, course,
    )  # fmt: skip


def _relative(apart: Tensor, outputs: Tensor) -> float:
    known = outputs.double().flatten(1)
    if len(known) < 2:
        return nan
    spread = (known - known.nanmean(0)).square().nanmean().sqrt()
    return float(apart.square().nanmean().sqrt() / spread.clamp(min=1e-30))
