"""The refinement of rows until two methods agree on them."""

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

COARSEST = 17  # rk4 steps of the first level; each further level has twice as many and one more
# Tolerances of dopri5: the first one, the factor between levels, the limit in double precision or
# not.
LOOSEST, TIGHTER, TIGHTEST = 1e-4, 1e-2, {True: 1e-12, False: 1e-6}
AT_FIRST = 0.05  # `SHARE` of the first, coarse solves
# The same share for rounding in single precision, and the rows on which rounding is measured.
ROUNDED, COMPARED = 0.01, 16
ALONE = 3  # the level from which failed dopri5 batches are split to single rows, not `TOGETHER`
# The step limit of dopri5: at least this many, or this multiple of the rk4 steps; tighter
# tolerances multiply it, at most by the last number.
LEAST_STEPS, PATIENT, MOST_TIMES = 1000, 4, 8
# Sampled defects: least of each row, of all rows together, most of a row, most of a single row.
SAMPLED, LEAST_SAMPLED, MOST, FIRST_SAMPLED = 40, 20_000, 400, 2000
SPARED = 0.02  # share of the budget for more defects than the least of each row
LOCATED = 128  # largest defects that are searched for features
LAG = 4  # rk4 steps from a blow-up to infinite numbers
SAME_TIME = 0.01  # both methods lose a row that blows up within this part of the interval
STIFF = 2  # levels before implicit methods are tried on many rows; one if dopri5 reaches no end


def levels(
    n_steps: float, order: int, double: bool = True, level: int = 0
) -> Iterator[tuple[int, float]]:
    """The rk4 steps and dopri5 tolerances of the levels, from coarse to fine.

    The numbers of steps are no multiples of ``n_steps``, because equal nodes hide equal errors. For
    an order of 4 or more, they are at least four times ``n_steps``.

    Args:
        n_steps: steps of the training solver; may be NaN.
        order: order of the training solver.
        double: whether to compute in double precision.
        level: the first level.
    """
    training = ceil(n_steps) if n_steps == n_steps else 1
    steps = max(COARSEST, 4 * training + 1 if order >= 4 else 0)
    most = max(FINEST, 8 * steps)
    for number in range(64):
        steps += training > 1 and steps % training == 0
        if number >= level:
            # if rk4 takes many steps anyway, an equally fine tolerance is cheap
            fine = number and max(number, int(log2(steps / COARSEST) / 2))
            yield steps, max(LOOSEST * TIGHTER**fine, TIGHTEST[double])
        steps = 2 * steps + 1
        if steps > most:
            return


class Refinement:
    """The refinement of the rows of a draft, until two methods agree on them.

    Args:
        draft: the results of the rows.
        last: whether this is the last round, which does not search for features.

    Attributes:
        complete: whether the budget was sufficient.
        finest: rk4 steps and dopri5 tolerance of the finest solve.
        reached: the level of that solve.
    """

    def __init__(self, draft: Draft, *, last: bool = False) -> None:
        self.draft, self.last = draft, last
        self.complete, self.finest, self.reached = True, (0, nan), 0
        self._arrived = True  # whether dopri5 reached the end for some row
        self._each = 0.0  # field evaluations of dopri5 per row

    def climb(self, begin: int) -> bool:
        """Refine from a level on. Return whether features were found: all rows must be solved again
        then.
        """
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
            draft.pace(f"exact flow: {len(left)} of {runnable.n} samples left", cost)
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
        """Solve rows by both methods. Return whether features were found."""
        draft, share = self.draft, AT_FIRST if first else SHARE
        noise = None if self.reached else self._rounding()
        double = draft.runnable.double and noise is None
        witness, ran, robust = self._witnessed(left, sampled, double, share)
        if first or draft.runnable.n == 1:
            draft.width = 2 / max(witness.times, 1)
        finite = draft.finite(left)
        if self._shows(witness, left[finite & draft.differ(left, robust)]):
            return True
        second = self._dopri5(ran, finite, left, first, witness.ended, double)
        self._arrived = bool(second.isfinite().any())
        same = draft.same(second, ran.outputs, share) & finite[:, None] & robust
        if noise is not None:
            same &= draft.same(ran.outputs + noise, ran.outputs, ROUNDED)
        draft.settle(left, same, second, ran.outputs)
        return False

    def _look_closely(self, row: Tensor, first: bool) -> bool:
        """Sample many more defects of a single trajectory on which both methods agree.

        Returns:
            Whether features were found.
        """
        draft = self.draft
        if len(draft.left(row)):
            return False
        sampled = max(SAMPLED, ceil(min(LEAST_SAMPLED, SPARED * draft.budget)))
        witness, _, robust = self._witnessed(
            row, sampled, draft.runnable.double, AT_FIRST if first else SHARE
        )
        draft.width = 2 / max(witness.times, 1)
        draft.settled[row] &= robust
        return self._shows(witness, draft.left(row))

    def _witnessed(
        self, rows: Tensor, sampled: int, double: bool, share: float
    ) -> tuple[Witnessed, Evaluation, Tensor]:
        """Solve rows by rk4 and keep the results.

        Returns:
            The witness, the results, and which predictions no sampled defect could change.
        """
        draft, (count, _) = self.draft, self.finest
        rk4 = FixedStep("rk4", n_steps=count)
        witness = Witnessed(draft.course, count, self.reached, rows, sampled=sampled)
        ran = draft.run(rk4, rows, witness, double)
        moved = draft.runnable.run(rk4, Part(rows, double, solving=witness.moved()))
        draft.keep(rows, ran.outputs, ran.states, self.reached)
        return witness, ran, draft.same(moved.outputs, ran.outputs, share)

    def _sampled(self, rows: int) -> int:
        """The number of defects to sample in each of ``rows`` rows.

        Few rows get more, as far as a part of the budget allows.
        """
        most = MOST if self.draft.runnable.n > 1 else FIRST_SAMPLED
        return max(
            SAMPLED, ceil(min(LEAST_SAMPLED / rows, most, SPARED * self.draft.budget / rows))
        )

    def _rounding(self) -> Tensor | None:
        """The largest rounding error of the model's own precision in each number of the outputs.

        It is measured on a few rows. None if the model's own precision cannot be used, or would
        save nothing.
        """
        draft, (count, _) = self.draft, self.finest
        runnable, n = draft.runnable, draft.runnable.n
        # around features, ends of steps lie too close for single precision
        known = any(draft.course.features.values())
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
        """Locate features at the largest defects of the rows ``hits``; whether some are new."""
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
        """Solve rows by dopri5, and mark those that blow up.

        A row blows up if both methods lose it, at the same time and well before the end.
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
