"""The adaptation of the paper: compare accuracies with a more accurate solver; halve or grow.

Source: Ott, Katiyar, Hennig & Tiemann, *ResNet After All? Neural ODEs and Their Numerical
Solution*, ICLR 2021, section 4 and supplement.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from trueode.adaptation.rule import Comparison, Inspection, Progress, Signal
from trueode.catalog import METHODS
from trueode.solvers import Adaptive, FixedStep
from trueode.solvers.control import starting_step, trial_step

HALVE, GROW = 0.5, 1.1
FINER = 50.0  # ratio of the errors of training solver and test solver
RECENT = 5  # training solves


class PaperStepRule:
    """Adapts the step size of a fixed-step solver.

    The test solver of Euler is midpoint; that of midpoint and rk4 is rk4. For all other methods it
    is rk4, too (our extension).

    Args:
        method: the training method.
        length: length of the interval.
        step_size: the first step size; see `paper_starting_step`.
        threshold: the difference above which the step is halved.
        max_steps: the largest number of steps.
    """

    def __init__(
        self,
        method: str,
        length: float,
        step_size: float,
        *,
        threshold: float = 0.1,
        max_steps: int = 500,
    ) -> None:
        self._method = method
        self._length = length
        self._threshold = threshold
        self._max_steps = max_steps
        self._step = step_size
        self.signal: Signal | None = None
        self.notice = ""

    @property
    def solver(self) -> FixedStep:
        """The training solver with the current step."""
        return self._with(self._step)

    def propose(self, measure: Comparison, progress: Progress) -> FixedStep:
        """Halve the step if the check fails, else grow it by a tenth if a check allows that."""
        self.notice = ""
        test = self.test_solver
        difference = measure(self.solver, test).difference
        self.signal = Signal(difference, self._threshold)
        if difference > self._threshold:
            self._step = self._finer()
        else:
            larger = min(GROW * self._step, self._length)
            if (
                larger != self._step
                and measure(self._with(larger), test).difference <= self._threshold
            ):
                self._step = larger
        return self.solver

    @property
    def test_solver(self) -> FixedStep:
        """A solver whose error is 50 times smaller, with a step of at most the training step."""
        p = METHODS[self._method].order
        name, q = ("midpoint", 2) if self._method == "euler" else ("rk4", 4)
        return FixedStep(name, step_size=min(self._step, (self._step**p / FINER) ** (1 / q)))

    def _finer(self) -> float:
        """Half the step; or, if that takes too many steps, half the way to the limit."""
        n = self.solver.count(self._length)
        if self._with(HALVE * self._step).count(self._length) <= self._max_steps:
            return HALVE * self._step
        if n >= self._max_steps:
            self.notice = (
                f"the step cannot be refined: max_steps = {self._max_steps} is reached, and the "
                "accuracy still depends on the solver; --max_steps raises the limit."
            )
            return self._step
        return self._length / (n + -(-(self._max_steps - n) // 2))

    def _with(self, step: float) -> FixedStep:
        return FixedStep(self._method, step_size=step, max_steps=self._max_steps)

    def certify(self, inspection: Inspection) -> None:
        """Return None: the rule of the paper gives no certificate."""

    def state_dict(self) -> dict[str, Any]:
        """The step size."""
        return {"step_size": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved step size."""
        self._step = state["step_size"]


class PaperToleranceRule:
    """Adapts the tolerance of an adaptive solver; the test solver is dopri5.

    Args:
        method: the training method.
        tol: the tolerance to start with, relative and absolute.
        threshold: the difference above which the tolerance is halved.
        floor: the tightest tolerance; below it, rounding would dominate (our extension).
        per_sample: whether to control the error of each sample separately.
    """

    def __init__(
        self,
        method: str,
        tol: float,
        *,
        threshold: float = 0.1,
        floor: float = 1e-7,
        per_sample: bool = False,
    ) -> None:
        self._method = method
        self._tol = tol
        self._threshold = threshold
        self._floor = floor
        self._per_sample = per_sample
        self.signal: Signal | None = None
        self.notice = ""

    @property
    def solver(self) -> Adaptive:
        """The training solver with the current tolerance."""
        return self._with(self._tol)

    def propose(self, measure: Comparison, progress: Progress) -> Adaptive:
        """Halve the tolerance if the check fails, else grow it by a tenth.

        It grows only if a check allows that and it saves field evaluations.
        """
        self.notice = ""
        own = self.solver
        test = self._tested_at(self._tol / (5 if self._method == "fehlberg2" else 10))
        found = measure(own, test)
        while found.reference_nfe <= found.candidate_nfe and test.rtol > self._floor:
            test = self._tested_at(test.rtol / 10)
            found = measure(own, test)
        self.signal = Signal(found.difference, self._threshold)
        if found.difference > self._threshold:
            if HALVE * self._tol >= self._floor:
                self._tol *= HALVE
            else:
                self.notice = (
                    f"the tolerance cannot be refined: it is {self._tol:.3g}, rounding dominates "
                    f"below {self._floor:.3g}, and the accuracy still depends on the solver; "
                    "--precision float64 lowers the limit."
                )
            return self.solver
        larger = self._with(GROW * self._tol)
        grown = measure(larger, test)
        recent = progress.recent_nfe[-RECENT:]
        idle = len(recent) == RECENT and all(nfe == grown.candidate_nfe for nfe in recent)
        if grown.difference <= self._threshold and not idle:
            self._tol *= GROW
        return self.solver

    def _with(self, tol: float) -> Adaptive:
        return Adaptive(self._method, tol, tol, per_sample=self._per_sample)

    def _tested_at(self, tol: float) -> Adaptive:
        tol = max(tol, min(self._floor, self._tol))
        return Adaptive("dopri5", tol, tol, per_sample=self._per_sample)

    def certify(self, inspection: Inspection) -> None:
        """Return None: the rule of the paper gives no certificate."""

    def state_dict(self) -> dict[str, Any]:
        """The tolerance."""
        return {"tol": self._tol}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved tolerance."""
        self._tol = state["tol"]


@torch.no_grad()
def paper_starting_step(
    field: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    length: float,
    *,
    start: float = 0.0,
    order: int,
    max_steps: int,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> float:
    """The first step size of the paper's adaptation, from two field evaluations.

    The rule is that of Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*,
    p. 169, with unscaled norms: no tolerance enters. Norms are Euclidean over the whole state of a
    sample, averaged over the samples.

    Args:
        field: the vector field.
        z0: states ``(batch, …)`` at the start of the interval.
        length: length of the interval; the step lies between ``length / max_steps`` and ``length``.
        start: start of the interval.
        order: order of the training method.
        max_steps: the largest number of steps.
        total: sums over the ranks that share the batch.
    """
    count = float(total(torch.tensor(float(len(z0)), device="cpu")))

    def mean_norm(x: Tensor) -> float:
        return float(total(x.flatten(1).double().norm(dim=1).sum())) / count

    f0 = field(z0.new_tensor(start), z0)
    d0, d1 = mean_norm(z0), mean_norm(f0)
    h0 = trial_step(d0, d1)
    f1 = field(z0.new_tensor(start + h0), z0 + h0 * f0)
    step = starting_step(h0, d1, mean_norm(f1 - f0) / h0, order + 1)
    least = length / max_steps
    return min(max(step, least), length) if isfinite(step) else least
