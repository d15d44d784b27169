"""The refinement of samples until two methods agree on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, log2, nan
from typing import Any

import torch
from torch import Tensor

from trueode.evaluation.course import FINEST, Course, Guided, Takes
from trueode.evaluation.implicit import LONGEST, Implicit
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Part, Runnable, Solving
from trueode.evaluation.witness import Witnessed
from trueode.solvers import Adaptive, FixedStep, Solver

COARSEST = 17  # steps of rk4, the number of which is doubled and one added
LOOSEST, TIGHTER, TIGHTEST = 1e-4, 1e-2, {True: 1e-12, False: 1e-6}  # tolerances of dopri5, in double precision or not
AT_FIRST, LATER = 0.05, 0.1  # share of what could change a prediction by which the two may differ
# The same share for rounding in single precision, and the rows on which rounding is measured.
ROUNDED, COMPARED = 0.01, 16
TOGETHER, ALONE = 8, 3  # so few rows are solved again together; from this level on those that rk4 keeps finite are not
# most steps of dopri5: so many, or so many times those of rk4, and for finer tolerances up to so many times as many
LEAST_STEPS, PATIENT, MOST_TIMES = 1000, 4, 8
# defects looked at: of each row, of all together, most of a row of many, of a single row at first
SAMPLED, LEAST_SAMPLED, MOST, FIRST_SAMPLED = 40, 20_000, 400, 2000
SPARED = 0.1  # of the budget, for more defects than those of each row
LOCATED = 128  # of the largest defects are followed up
LAG = 4  # steps of rk4 from a blow-up to infinite numbers
SAME_TIME = 0.01  # of the interval: both methods lose a row that blows up within so much of another
IMPLICIT, COSTLY = 1e-7, 2000  # tolerance of implicit methods, and field evaluations of a row, about
STIFF = 2  # level at which they are tried, if many rows are left
# Blow-ups: the tolerance of Radau, the growth of a state that counts as infinite, and the rows that are checked.
ROUGH, GROWN, FEW = 1e-5, 1e6, 3
# Conditioning: the rows, the relative change of their initial state, the tolerance of dopri5, and a growth that means chaos.
NUDGED, NUDGE, CLOSE, GROWTH = 10, 1e-9, 1e-10, 1e5


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
            # where many steps are needed anyway, a tolerance that is as fine is cheap
            fine = number and max(number, int(log2(steps / COARSEST) / 2))
            yield steps, max(LOOSEST * TIGHTER**fine, TIGHTEST[double])
        steps = 2 * steps + 1
        if steps > most:
            return


class Ladder:
    """The refinement of rows until they have settled, for a course that ends of steps keep to.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver.
        course: what steps keep to.
        budget: field evaluations, counted in samples, that may be spent.
        spent: those that are spent already.

    Attributes:
        outputs, states, settled, blown_up, allowed, complete: see `ExactFlow`.
        sensitive: ``(n,)`` of bool: rows whose prediction moves with their initial state.
        apart: of each row the RMS difference of the two methods.
        finest: steps of rk4 and tolerance of dopri5 of the finest solve.
        width: of features that may be missed, a part of the interval.
        reached: the last level.
    """

    def __init__(self, runnable: Runnable, own: Evaluation, course: Course, budget: float, spent: float) -> None:
        self.runnable, self.own, self.course, self.budget, self.spent = runnable, own, course, budget, spent
        n, double = runnable.n, runnable.double
        dtype = torch.float64 if double else own.outputs.dtype
        self.outputs = torch.full_like(own.outputs[:n], nan, dtype=dtype)
        self.states = None if own.states is None else torch.full_like(own.states[:n], nan, dtype=dtype)
        self.settled = torch.zeros_like(runnable.task.flipped(own.outputs[:n], own.outputs[:n]))
        self.blown_up, self.sensitive = self.settled.any(1), self.settled.any(1)
        self.apart = torch.full((n,), nan, dtype=torch.float64, device="cpu")
        self.allowed: Tensor | None = None
        self.complete, self.finest, self.width, self.reached = True, (0, nan), 2.0, 0
        self._residual = runnable.residual(own.outputs[:n])
        self._needed = torch.zeros_like(self.settled)
        self._needed.view(-1)[runnable.drawn(*self._needed.shape)] = True
        self._last = False
        self._arrived = True  # whether dopri5 came to the end for some row
        self._each = 0.0  # evaluations of dopri5 for a row
        # the level that each row has reached; -1: an implicit method
        self._at = torch.zeros(n, dtype=torch.long, device="cpu")
        self._ended: dict[int, tuple[float, float]] = {}  # where rows that blow up end, and how exactly that is known

    def climb(self, level: int, *, last: bool = False) -> bool:
        """Refine; whether features were found, so that all is to be solved again. The ``last`` time none are looked for."""
        self._last = last
        order = 0 if _adaptive(self.own.solver) else getattr(self.own.solver, "order", 4) or 4
        steps = list(levels(self.own.n_steps, order, self.runnable.double, level))
        left = torch.arange(self.runnable.n, device="cpu")
        for number, (count, tolerance) in enumerate(steps):
            sampled = self._sampled(len(left))
            cost = (4 * count + 2 * self._each + sampled) * len(left)
            self.complete = not self.spent or self.spent + cost <= self.budget
            if not self.complete:
                break
            self.finest = count, tolerance
            found, after = self._climb(number, level, left, sampled)
            if not found and not len(after) and self.runnable.n == 1:
                found, after = self._look_closely(number, level, left)
            self.reached, left = level + number, after
            if found:
                return True
            hopeless = number > STIFF and not self._arrived
            if number == STIFF and self._many(left):
                self._agree(left)
                left = left[(self._needed[left] & ~self.settled[left]).any(1)]
                hopeless = self._many(left) and self._chaotic(left)
            if hopeless or not len(left):
                break
        if self.complete and not bool(self.sensitive.any()):
            self._implicit(left)
        self._perturb([count for count, _ in steps], level, left)
        return False

    def _climb(self, number: int, level: int, left: Tensor, sampled: int) -> tuple[bool, Tensor]:
        """Solve rows by both methods; whether features were found, and the rows that are left."""
        task, share = self.runnable.task, LATER if number else AT_FIRST
        noise = None if number or level else self._rounding(self.finest[0])
        double = self.runnable.double and noise is None
        witness, first, calm = self._witnessed(level + number, left, sampled, double, share)
        if not number or self.runnable.n == 1:
            self.width = 2 / max(witness.times, 1)
        self._at[left] = number
        finite = self.runnable.finite(self.outputs)[left]
        if self._shows(witness, left[finite & (self._needed[left] & ~calm).any(1)]):
            return True, left
        second = self._dopri5(first, finite, left, number, witness.ended, double)
        self._arrived = bool(second.isfinite().any())
        agree = task.settled(second, first.outputs, self.allowed, share) & finite[:, None] & calm
        if noise is not None:
            agree &= task.settled(first.outputs + noise, first.outputs, self.allowed, ROUNDED)
        self.settled[left] = agree
        self.apart[left] = (second - first.outputs).double().flatten(1).square().nanmean(1).sqrt()
        return False, left[(self._needed[left] & ~agree).any(1) & ~self.blown_up[left]]

    def _look_closely(self, number: int, level: int, left: Tensor) -> tuple[bool, Tensor]:
        """Look at many more defects of a single trajectory, on which both methods agree; see `_climb`."""
        sampled = max(SAMPLED, ceil(min(LEAST_SAMPLED, SPARED * self.budget)))
        share = LATER if number else AT_FIRST
        witness, _, calm = self._witnessed(level + number, left, sampled, self.runnable.double, share)
        self.width = 2 / max(witness.times, 1)
        self.settled[left] &= calm
        again = left[(self._needed[left] & ~calm).any(1)]
        return self._shows(witness, again), again

    def _witnessed(
        self, level: int, left: Tensor, sampled: int, double: bool, share: float
    ) -> tuple[Witnessed, Evaluation, Tensor]:
        """Solve rows by rk4, and keep what they give; which of their predictions no defect could change."""
        runnable, count = self.runnable, self.finest[0]
        rk4, witness = FixedStep("rk4", n_steps=count), Witnessed(self.course, count, level, left, sampled=sampled)
        ran = self._run(rk4, left, witness, double)
        moved = runnable.run(rk4, Part(left, double, solving=witness.moved()))
        self._keep(left, ran.outputs, ran.states)
        self.allowed = runnable.task.allowed(self.outputs, self._residual)
        return witness, ran, runnable.task.settled(moved.outputs, ran.outputs, self.allowed, share)

    def _many(self, left: Tensor) -> bool:
        return len(left) > max(TOGETHER, self.runnable.n / 4)

    def _sampled(self, rows: int) -> int:
        """Defects to be looked at in each of some rows: more of few, as far as a part of the budget allows."""
        most = MOST if self.runnable.n > 1 else FIRST_SAMPLED
        wanted = min(LEAST_SAMPLED / rows, most, SPARED * self.budget / rows)
        return max(SAMPLED, ceil(wanted))

    def _run(self, solver: Solver, rows: Tensor, solving: Solving, double: bool | None = None) -> Evaluation:
        precise = self.runnable.double if double is None else double
        ran = self.runnable.run(solver, Part(rows, precise, solving=solving))
        self.spent += ran.nfe * len(rows)
        return ran

    def _keep(self, rows: Tensor, outputs: Tensor, states: Tensor | None) -> None:
        self.outputs[rows] = outputs.to(self.outputs)
        if self.states is not None and states is not None:
            self.states[rows] = states.to(self.states)

    def _rounding(self, count: int) -> Tensor | None:
        """The largest difference that the model's own precision makes in each number of the outputs of some rows.

        None where there is nothing to gain, or nothing to compare.
        """
        runnable, n = self.runnable, self.runnable.n
        known = any(self.course.features.values())  # ends of steps lie as close as double precision allows
        if known or not (runnable.double and runnable.separable) or n < 4 * COMPARED:
            return None
        if self.own.outputs.dtype == torch.float64:
            return None
        rows = torch.linspace(0, n - 1, COMPARED, device="cpu").long()
        rk4 = FixedStep("rk4", n_steps=count)
        one, other = (
            self._run(rk4, rows, Witnessed(self.course, count, 0, rows), double).outputs for double in (False, True)
        )
        noise = (one.double() - other).abs()
        return None if not bool(noise.isfinite().all()) else noise.amax(0, keepdim=True)

    def _shows(self, witness: Witnessed, hits: Tensor) -> bool:
        """Whether the largest of the defects of some rows show features that were not known."""
        if self._last or not len(hits):
            return False
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

    def _dopri5(
        self, first: Evaluation, finite: Tensor, left: Tensor, number: int, ended: dict[int, float], double: bool
    ) -> Tensor:
        """Outputs by dopri5, and which rows blow up: both methods lose them, at the same time, well before the end."""
        count, tolerance = self.finest
        finer = min((LOOSEST / tolerance) ** 0.2, MOST_TIMES)
        most = max(finer * LEAST_STEPS, min(finer / self.course.longest, FINEST) * PATIENT, PATIENT * count)
        solver = Adaptive("dopri5", tolerance, tolerance, max_steps=ceil(most))
        second = torch.full_like(first.outputs, nan)
        size = first.outputs.double().abs().nan_to_num(torch.inf).flatten(1).amax(1)
        for rows in (finite, ~finite):
            if bool(rows.any()) and (number or rows is finite):
                least = 1 if number >= ALONE and rows is finite else TOGETHER
                guided = Guided(self.course)
                before = self.spent
                second[rows] = self._by_parts(solver, left[rows], size[rows], least, guided, double).outputs
                if rows is finite:
                    self._each = (self.spent - before) / int(rows.sum())
                    continue
                within = max(SAME_TIME, LAG / count)
                for row in set(left[rows].tolist()) & guided.ended.keys():
                    one, other = ended.get(row, nan), guided.ended[row]
                    same = other != other or (abs(one - other) <= within and one % 1 <= 1 - SAME_TIME)
                    self.blown_up[row] = same and not bool(second[left == row].isfinite().all())
                    self._ended[row] = one, within
        return second

    def _by_parts(
        self, solver: Adaptive, rows: Tensor, size: Tensor, least: int, solving: Guided | Implicit, double: bool
    ) -> Evaluation:
        """What rows give under a solver.

        Those whose solution ends early are solved again, each by itself or in halves by their ``size`` down to the ``least``
        number: those that blow up are large, and are not to take others along.
        """
        runnable, takes = self.runnable, self.course.takes.values()
        ran = self._run(solver, rows, solving, double)
        again = torch.tensor([row in solving.ended for row in rows.tolist()], device="cpu").nonzero()[:, 0]
        alone = all(each is Takes.ROWS for each in takes) if takes else runnable.per_sample
        alone &= isinstance(solving, Guided)
        if not runnable.separable or not len(again) or (solver.per_sample if alone else len(rows) <= least):
            return ran
        for half in again[size[again].argsort()].chunk(1 if alone else 2):
            part = half.sort().values
            for row in rows[part].tolist():
                del solving.ended[row]
            single = replace(solver, per_sample=alone)
            found = self._by_parts(single, rows[part], size[part], least, solving, double)
            ran.outputs[part] = found.outputs
            if ran.states is not None and found.states is not None:
                ran.states[part] = found.states
        return ran

    def _implicit(self, left: Tensor) -> None:
        """Solve the rows that are left by two implicit methods, and doubt blow-ups that these do not see."""
        lost = self.blown_up.nonzero()[:FEW, 0]
        seen = [self._ends(row) for row in lost.tolist()]
        if not all(seen):
            self.blown_up[:] = False
            self.blown_up[lost] = torch.tensor(seen, device="cpu")
        self._agree(left)

    def _ends(self, row: int) -> bool:
        """Whether an implicit method, too, loses a row that blows up, and at the same time, as far as that can be told."""
        radau, (known, within) = Implicit(self.course, "Radau", ROUGH, GROWN), self._ended[row]
        if self._implicitly(torch.tensor([row], device="cpu"), radau) is None or radau.refused:
            return True
        return row in radau.ended and not abs(radau.ended[row] - known) > within

    def _agree(self, left: Tensor) -> None:
        """Settle rows on which two implicit methods agree. Where these fail for the first rows, they do so for all."""
        for rows in (left[:TOGETHER], left[TOGETHER:]):
            if not len(rows):
                return
            one = self._implicitly(rows, Implicit(self.course, "Radau", IMPLICIT), TOGETHER)
            if one is None or not bool(self.runnable.finite(one.outputs).any()):
                return
            other = self._implicitly(rows, Implicit(self.course, "LSODA", IMPLICIT), TOGETHER)
            if other is None:
                return
            seen = self.runnable.finite(self.outputs)[rows]  # by the witness, of rk4
            self.outputs[rows[~seen]] = one.outputs[~seen].to(self.outputs)
            self.allowed = self.runnable.task.allowed(self.outputs, self._residual)
            finite = self.runnable.finite(one.outputs)[:, None]
            self.settled[rows] = agree = (
                self.runnable.task.settled(other.outputs, one.outputs, self.allowed, LATER) & finite
            )
            good = agree.any(1)
            self._at[rows[good | ~seen]] = -1
            self._keep(rows[good], one.outputs[good], None if one.states is None else one.states[good])
            self.apart[rows] = (one.outputs - other.outputs).double().flatten(1).square().nanmean(1).sqrt()
            if not bool(good.any()):
                return
            if not bool(seen[good].all()):
                self.width = max(self.width, LONGEST)

    def _implicitly(self, rows: Tensor, solving: Implicit, least: int = 1) -> Evaluation | None:
        """Solve rows by an implicit method; None where the budget does not allow it."""
        if self.spent + COSTLY * len(rows) > self.budget:
            return None
        size = self.own.outputs[rows].double().abs().nan_to_num(torch.inf).flatten(1).amax(1)
        solver = Adaptive("dopri5", solving.tolerance, solving.tolerance)  # `solving` replaces it
        return self._by_parts(solver, rows, size, least, solving, self.runnable.double)

    def _chaotic(self, left: Tensor) -> bool:
        """Whether most of some rows move that are solved with a start that is a little off: no refinement helps then."""
        left = left[self.apart[left].isfinite()]  # both methods arrive
        if not self.runnable.double or self.runnable.n == 1 or not len(left):
            return False
        rows = left[torch.linspace(0, len(left) - 1, min(NUDGED, len(left)), device="cpu").long()]
        dopri5 = Adaptive("dopri5", CLOSE, CLOSE, max_steps=PATIENT * FINEST)
        plain, nudged = (self._run(dopri5, rows, Guided(self.course, nudge)).outputs for nudge in (0.0, NUDGE))
        same = self.runnable.task.settled(nudged, plain, self.allowed, LATER)
        moves = (self._needed[rows] & ~same).any(1) & self.runnable.finite(plain) & self.runnable.finite(nudged)
        if 2 * int(moves.sum()) <= len(rows):
            return False
        self.sensitive[rows] = moves
        return True

    def _perturb(self, counts: list[int], level: int, left: Tensor) -> None:
        """Solve some rows again from a start that is a little off; where one of them moves, all: those that move are not settled.

        Rows that are left may have moved, too: that is why.
        """
        if self.runnable.n == 1:  # a trajectory is followed from such a start in any case
            return
        settled = (self._needed & self.settled).any(1).nonzero()[:, 0]
        unsettled = left[~self.settled[left].all(1)][:NUDGED]
        order = torch.randperm(len(settled), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        for rows in (unsettled, *(settled[part].sort().values for part in (order[:NUDGED], order[NUDGED:]))):
            moved = False
            for number, count in enumerate(counts):
                here = rows[self._at[rows] == number]
                moved |= len(here) > 0 and self._moves(here, count, level + number)
            if not moved and rows is not unsettled:
                return

    def _moves(self, rows: Tensor, count: int, level: int) -> bool:
        """Whether some of the rows move that are solved again with the steps of a level."""
        nudge = max(NUDGE, 8 * torch.finfo(self.outputs.dtype).eps)
        ran = self._run(FixedStep("rk4", n_steps=count), rows, Witnessed(self.course, count, level, rows, nudge=nudge))
        known = self.outputs[rows]
        same = self.runnable.task.settled(ran.outputs, known, self.allowed, LATER)
        moves = (self._needed[rows] & ~same).any(1) & self.runnable.finite(self.outputs)[rows]
        # an unsettled prediction may just lie close to another one: its change must have grown, too
        change, size = ((x.flatten(1).abs().amax(1)) for x in (ran.outputs - known, known))
        moves &= self.settled[rows].any(1) | (change > GROWTH * nudge * size)
        self.settled[rows] &= same
        self.sensitive[rows] |= moves
        return bool(moves.any())


def _adaptive(solver: Any) -> bool:
    return bool(getattr(solver, "adaptive", isinstance(solver, Adaptive)))
