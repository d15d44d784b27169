"""What the model would predict if its ODE were solved exactly: converged by two independent methods."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.evaluation.reference import COARSEST, settle
from trueode.solvers import Adaptive, FixedStep

TOLERANCES = {True: (1e-6, 1e-9, 1e-12), False: (1e-4, 1e-5, 1e-6)}  # of dopri5, in double precision or not
DISAGREEING = 0.001  # share of the samples on which the two methods may differ


@dataclass(frozen=True)
class Reference:
    """Outputs under the exact flow.

    Attributes:
        outputs: ``(n, …)`` by rk4, each sample with as many steps as it needed.
        states: final states of the last ODE block by rk4 ``(n, d)``; None where they are not known.
        settled: ``(n,)`` of bool: no refinement changes the sample any more, and both methods agree on it.
        n_steps: steps of the finest solve by rk4.
        tolerance: the tightest of dopri5.
        disagreeing: samples on which the methods differ, or that did not settle.
        not_finite: samples whose outputs are not finite.
        floor: RMS of what the last doubling of the steps changed, relative to the scale of the outputs.
        double: whether it was computed in double precision.
        evaluations: field evaluations spent, counted in samples.
    """

    outputs: Tensor
    states: Tensor | None
    settled: Tensor
    n_steps: int
    tolerance: float
    disagreeing: int
    not_finite: int
    floor: float
    double: bool
    evaluations: int

    @property
    def converged(self) -> bool:
        """Whether the two methods agree on all but 0.1 % of the samples, or on all but one."""
        return self.disagreeing <= max(1, floor(DISAGREEING * len(self.settled)))

    @property
    def trouble(self) -> str:
        """Why there is no reference, in words."""
        n = len(self.settled)
        if self.not_finite:
            return (
                f"the solution is not finite for {self.not_finite} of {n} samples under finer solvers: it blows up, or the "
                "field is not defined where the exact solution goes"
            )
        return (
            f"no reference was found for {self.disagreeing} of {n} samples: rk4 with up to {self.n_steps} steps and dopri5 "
            f"with a tolerance down to {self.tolerance:g} do not agree to a tenth of what decides (the field may be stiff, "
            "rough or discontinuous)"
        )


def find_reference(subject: ModelUnderTest, *, double: bool) -> Reference:
    """Solve with rk4, the steps doubled until samples settle, and with dopri5, tighter until it agrees.

    The two agree on a sample where the difference of the outputs is below a tenth of what decides: of the margin between
    the two largest logits, or of the tolerance of a gap.

    Args:
        subject: the model and the samples.
        double: whether the model runs in double precision.
    """
    task, spent = subject.task, 0.0
    states: list[Tensor | None] = [None]
    change = torch.zeros(subject.n, dtype=torch.float64, device="cpu")
    last: list[Tensor] = []

    def run(indices: Tensor, steps: int) -> Tensor:
        nonlocal spent
        ran = subject.run(FixedStep("rk4", n_steps=steps), indices=indices, double=double)
        spent += ran.nfe * len(indices)
        if len(indices) == subject.n:
            states[0] = ran.states
        elif states[0] is not None and ran.states is not None:
            states[0][indices] = ran.states
        if last:
            difference = (ran.outputs - last[0][indices]).double().flatten(1)
            change[indices] = difference.square().nanmean(1).sqrt()
            last[0][indices] = ran.outputs
        else:
            last.append(ran.outputs.clone())
        return ran.outputs

    # from few steps, however fine training was: what would settle by chance does not agree with dopri5
    exact = settle(run, subject.n, task, COARSEST)
    scale = task.scale(exact.outputs)
    left = torch.arange(subject.n, device="cpu")
    tolerance = TOLERANCES[double][0]
    for tolerance in TOLERANCES[double]:
        second = subject.run(Adaptive("dopri5", tolerance, tolerance), indices=left, double=double)
        spent += second.nfe * len(left)
        agree = task.calm(second.outputs, exact.outputs[left], scale)
        left = left[~agree]
        if not len(left):
            break
    settled = exact.settled.clone()
    settled[left] = False
    finite = subject.finite(exact.outputs)
    known = exact.outputs[finite].double()
    spread = known[known.isfinite()].std() if int(finite.sum()) > 1 else torch.tensor(1.0, device="cpu")
    return Reference(
        exact.outputs,
        states[0],
        settled,
        exact.n_steps,
        tolerance,
        int((~settled).sum()),
        int((~finite).sum()),
        float(change[settled].square().mean().sqrt() / spread.clamp(min=1e-30))
        if bool(settled.any())
        else float("nan"),
        double,
        round(spent),
    )


def description(reference: Reference) -> str:
    """How the reference was computed, in words."""
    precision = "double" if reference.double else "the model's own"
    return (
        f"rk4 with up to {reference.n_steps} steps and dopri5 with a tolerance down to {reference.tolerance:g}, "
        f"in {precision} precision"
    )
