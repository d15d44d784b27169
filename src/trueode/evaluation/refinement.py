"""The refinement of samples until two methods agree on them."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log2, nan
from typing import Any

import torch
from torch import Tensor

from trueode.evaluation.conditioning import chaotic, perturb
from trueode.evaluation.course import FINEST, Guided
from trueode.evaluation.draft import SHARE, TOGETHER, Draft, sizes
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Part
from trueode.evaluation.stiff import confirm_blow_ups, settle_implicitly
from trueode.evaluation.witness import Witnessed
from trueode.solvers import Adaptive, FixedStep

COARSEST = 17  # steps of rk4, the number of which is doubled and one added
LOOSEST, TIGHTER, TIGHTEST = (
    1e-4,
    1e-2,
    {True: 1e-12, False: 1e-6},
)  # tolerances of dopri5, in double precision or not
AT_FIRST = 0.05  # share of what could change a prediction by which two coarse solves may differ
# The same share for rounding in single precision, and the rows on which rounding is measured.
ROUNDED, COMPARED = 0.01, 16
ALONE = 3  # from this level on rows that rk4 keeps finite are solved again by themselves, before that so few together
# most steps of dopri5: so many, or so many times those of rk4, and for finer tolerances up to so
# many times as many
LEAST_STEPS, PATIENT, MOST_TIMES = 1000, 4, 8
# defects looked at: of each row, of all together, most of a row of many, of a single row at first
SAMPLED, LEAST_SAMPLED, MOST, FIRST_SAMPLED = 40, 20_000, 400, 2000
SPARED = 0.02  # of the budget, for more defects than those of each row
LOCATED = 128  # of the largest defects are followed up
LAG = 4  # steps of rk4 from a blow-up to infinite numbers
SAME_TIME = 0.01  # of the interval: both methods lose a row that blows up within so much of another
STIFF = 2  # levels after which implicit methods are tried, if many rows are left; one where dopri5 does not arrive


def levels(
    n_steps: float, order: int, double: bool = True, level: int = 0
) -> Iterator[tuple[int, float]]:
    """Steps of rk4 and tolerances of dopri5, finer each time, for a training solver of ``n_steps``
    steps and an order.

    Steps are at least four times as many where the order is four or more, and no multiples: equal
    nodes hide equal errors.
    """
    training = ceil(n_steps) if n_steps == n_steps else 1
    steps = max(COARSEST, 4 * training + 1 if order >= 4 else 0)
    most = max(FINEST, 8 * steps)
    for number in range(64):
        steps += training > 1 and steps % training == 0
        if number >= level:
            # where many steps are needed anyway, a tolerance that is as fine is cheap
            fine = number and max(number, int(log2(steps / COARSEST) / 2))
            yield steps, max(LOOSEST * TIGHTER**fine, TIGHTEST[double])
        steps = 2 * steps + 1
        if steps > most:
            return


class Refinement:
    """The refinement of the rows of a draft, until two methods agree on them.

    Args:
        draft: what is known of the rows.
        last: whether no further features of the field are looked for.

    Attributes:
        complete: whether the budget was enough.
        finest: steps of rk4 and tolerance of dopri5 of the finest solve.
        reached: its level.
    """

    def __init__(self, draft: Draft, *, last: bool = False) -> None:
        self.draft, self.last = draft, last
        self.complete, self.finest, self.reached = True, (0, nan), 0
        self._arrived = True  # whether dopri5 came to the end for some row
        self._each = 0.0  # evaluations of dopri5 for a row

    def climb(self, begin: int) -> bool:
        """Refine from a level on; whether features were found, so that all is to be solved again."""
        draft, runnable, own = self.draft, self.draft.runnable, self.draft.own
        order = 0 if _adaptive(own.solver) else getattr(own.solver, "order", 4) or 4
        steps = dict(enumerate(levels(own.n_steps, order, runnable.double, begin), begin))
        left, implicit = torch.arange(runnable.n, device="cpu"), False
        for level, (count, tolerance) in steps.items():
            sampled = self._sampled(len(left))
            cost = (4 * count + 2 * self._each + sampled) * len(left)
            self.complete = not draft.spent or draft.spent + cost <= draft.budget
            if not self.complete:
                break
            self.reached, self.finest = level, (count, tolerance)
            first = level == begin
            if self._settle(left, sampled, first) or (
                runnable.n == 1 and self._look_closely(left, first)
            ):
                return True
            left = draft.left(left)
            hopeless = level - begin > STIFF and not self._arrived
            if (
                not implicit
                and draft.many(left)
                and level - begin >= (STIFF if self._arrived else 1)
            ):
                implicit = True
                settle_implicitly(draft, left)
                left = draft.left(left)
                hopeless |= draft.many(left) and chaotic(draft, left)
            if hopeless or not len(left):
                break
        if self.complete and not bool(draft.sensitive.any()):
            confirm_blow_ups(draft)
            settle_implicitly(draft, left)
        perturb(draft, {level: count for level, (count, _) in steps.items()}, left)
        return False

    def _settle(self, left: Tensor, sampled: int, first: bool) -> bool:
        """Solve rows by both methods; whether features were found."""
        draft, share = self.draft, AT_FIRST if first else SHARE
        noise = None if self.reached else self._rounding()
        double = draft.runnable.double and noise is None
        witness, ran, calm = self._witnessed(left, sampled, double, share)
        if first or draft.runnable.n == 1:
            draft.width = 2 / max(witness.times, 1)
        finite = draft.finite(left)
        if self._shows(witness, left[finite & draft.differ(left, calm)]):
            return True
        second = self._dopri5(ran, finite, left, first, witness.ended, double)
        self._arrived = bool(second.isfinite().any())
        same = draft.same(second, ran.outputs, share) & finite[:, None] & calm
        if noise is not None:
            same &= draft.same(ran.outputs + noise, ran.outputs, ROUNDED)
        draft.settle(left, same, second, ran.outputs)
        return False

    def _look_closely(self, row: Tensor, first: bool) -> bool:
        """Look at many more defects of a single trajectory on which both methods agree; whether
        features were found.
        """
        draft = self.draft
        if len(draft.left(row)):
            return False
        sampled = max(SAMPLED, ceil(min(LEAST_SAMPLED, SPARED * draft.budget)))
        witness, _, calm = self._witnessed(
            row, sampled, draft.runnable.double, AT_FIRST if first else SHARE
        )
        draft.width = 2 / max(witness.times, 1)
        draft.settled[row] &= calm
        return self._shows(witness, draft.left(row))

    def _witnessed(
        self, rows: Tensor, sampled: int, double: bool, share: float
    ) -> tuple[Witnessed, Evaluation, Tensor]:
        """Solve rows by rk4, and keep what they give; which of their predictions no defect could
        change.
        """
        draft, (count, _) = self.draft, self.finest
        rk4, witness = (
            FixedStep("rk4", n_steps=count),
            Witnessed(draft.course, count, self.reached, rows, sampled=sampled),
        )
        ran = draft.run(rk4, rows, witness, double)
        moved = draft.runnable.run(rk4, Part(rows, double, solving=witness.moved()))
        draft.keep(rows, ran.outputs, ran.states, self.reached)
        return witness, ran, draft.same(moved.outputs, ran.outputs, share)

    def _sampled(self, rows: int) -> int:
        """Defects to be looked at in each of some rows: more of few, as far as a part of the budget
        allows.
        """
        most = MOST if self.draft.runnable.n > 1 else FIRST_SAMPLED
        return max(
            SAMPLED, ceil(min(LEAST_SAMPLED / rows, most, SPARED * self.draft.budget / rows))
        )

    def _rounding(self) -> Tensor | None:
        """The largest difference that the model's own precision makes in each number of the outputs
        of some rows.

        None where there is nothing to gain, or nothing to compare.
        """
        draft, runnable, n, (count, _) = (
            self.draft,
            self.draft.runnable,
            self.draft.runnable.n,
            self.finest,
        )
        known = any(
            draft.course.features.values()
        )  # ends of steps lie as close as double precision allows
        if known or not (runnable.double and runnable.separable) or n < 4 * COMPARED:
            return None
        if draft.own.outputs.dtype == torch.float64:
            return None
        rows = torch.linspace(0, n - 1, COMPARED, device="cpu").long()
        rk4 = FixedStep("rk4", n_steps=count)
        one, other = (
            draft.run(rk4, rows, Witnessed(draft.course, count, 0, rows), double).outputs
            for double in (False, True)
        )
        noise = (one.double() - other).abs()
        return None if not bool(noise.isfinite().all()) else noise.amax(0, keepdim=True)

    def _shows(self, witness: Witnessed, hits: Tensor) -> bool:
        """Whether the largest of the defects of some rows show features that were not known."""
        if self.last or not len(hits):
            return False
        hit = set(hits.tolist())
        largest = sorted(
            (pair for pair in witness.largest if pair[1].row in hit), key=lambda pair: -pair[0]
        )
        targets = [target for _, target in largest[:LOCATED]]
        rows = torch.tensor(
            sorted({target.row for target in targets}), dtype=torch.long, device="cpu"
        )
        if not len(rows):
            return False
        search = witness.towards(targets)
        self.draft.run(FixedStep("rk4", n_steps=witness.n_steps), rows, search)
        found = False
        for block, features in search.located.items():
            largest_first = [feature for _, feature in sorted(features, key=lambda pair: -pair[0])]
            found = self.draft.course.add(block, largest_first) or found
        return found

    def _dopri5(
        self,
        ran: Evaluation,
        finite: Tensor,
        left: Tensor,
        first: bool,
        ended: dict[int, float],
        double: bool,
    ) -> Tensor:
        """Outputs by dopri5, and which rows blow up: both methods lose them, at the same time, well
        before the end.
        """
        draft, (count, tolerance) = self.draft, self.finest
        finer = min((LOOSEST / tolerance) ** 0.2, MOST_TIMES)
        most = max(
            finer * LEAST_STEPS,
            min(finer / draft.course.longest, FINEST) * PATIENT,
            PATIENT * count,
        )
        solver = Adaptive("dopri5", tolerance, tolerance, max_steps=ceil(most))
        second, size = torch.full_like(ran.outputs, nan), sizes(ran.outputs)
        for rows in (finite, ~finite):
            if bool(rows.any()) and (not first or rows is finite):
                least = 1 if self.reached >= ALONE and rows is finite else TOGETHER
                guided, before = Guided(draft.course), draft.spent
                second[rows] = draft.run_by_parts(
                    solver, left[rows], size[rows], least, guided, double
                ).outputs
                if rows is finite:
                    self._each = (draft.spent - before) / int(rows.sum())
                    continue
                within = max(SAME_TIME, LAG / count)
                for row in set(left[rows].tolist()) & guided.ended.keys():
                    one, other = ended.get(row, nan), guided.ended[row]
                    same = other != other or (
                        abs(one - other) <= within and one % 1 <= 1 - SAME_TIME
                    )
                    draft.blown_up[row] = same and not bool(second[left == row].isfinite().all())
                    draft.ended[row] = one, within
        return second


def _adaptive(solver: Any) -> bool:
    return bool(getattr(solver, "adaptive", isinstance(solver, Adaptive)))
