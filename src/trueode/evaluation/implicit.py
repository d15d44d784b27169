"""SciPy's implicit methods, for the few samples on which rk4 and dopri5 do not agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import ceil, inf, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.evaluation.course import ENDED, Course
from trueode.evaluation.defects import Rk4
from trueode.evaluation.posed import Posed
from trueode.solvers import Solution
from trueode.solvers.problem import Problem

LARGEST = 64  # numbers in a row's state: the Jacobian of larger states costs too much
LONGEST = 0.01  # the longest step, as a fraction of the interval
PATIENCE = 15_000  # evaluations of the field for a solve


class Implicit:
    """Solves by an implicit method of SciPy, all rows of a batch at once.

    Args:
        course: the constraints on steps.
        method: ``"Radau"`` or ``"LSODA"``.
        tolerance: absolute and relative tolerance.
        most: a state that has grown by this factor counts as infinite.

    Attributes:
        ended: as in `Guided`.
        refused: whether a state had too many numbers.
    """

    def __init__(self, course: Course, method: str, tolerance: float, most: float = inf) -> None:
        self._course, self.method, self.tolerance, self.most = course, method, tolerance, most
        self._block, self._rows = 0, torch.empty(0, dtype=torch.long, device="cpu")
        self.ended: dict[int, float] = {}
        self.refused = False

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self._block, self._rows = 0, rows

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        block, self._block = self._block, self._block + 1
        posed = Posed(problem, samples, self._course, block)
        solve = Rk4(problem, samples, posed.jumps, self._course, block)
        start = solve.z
        kept = {theta: torch.full_like(start, nan) for theta in posed.given} | {0.0: start}
        grid, status, most = [0.0], "success", self.most * max(1.0, float(start.abs().amax()))
        y = start.detach().double().cpu().numpy().reshape(-1)
        rows = 1 if self._course.coupled else len(start)
        if start.numel() > LARGEST * rows:
            self.refused, status = True, "max_steps"
        hard = sorted({0.0, 1.0, *posed.jumps, *posed.marks})
        for left, right in pairwise(hard):
            if status != "success":
                break
            within = sorted(theta for theta in posed.given if left < theta <= right)
            stepper = _computed(partial(self._stepper, solve, rows, left, right, y))
            if stepper is None:
                status = "non_finite"
                break
            while stepper.status == "running" and (status := _advanced(stepper, most)) == "success":
                grid.append(float(stepper.t))
                while within and within[0] <= stepper.t:
                    state = torch.from_numpy(stepper.dense_output()(within[0]))
                    kept[within.pop(0)] = state.to(start).view_as(start)
            y = stepper.y
        if status in ENDED:
            own = block + grid[-1] if len(self._rows) == 1 else nan
            self.ended |= dict.fromkeys(self._rows.tolist(), own)
        message = "" if status == "success" else f"{self.method} did not reach the end."
        return posed.solution(kept, ceil(solve.evaluations), grid, status, message)

    def _stepper(self, solve: Rk4, rows: int, left: float, right: float, y: Any) -> Any:
        """SciPy's solver for a piece of the interval; the field may jump at both ends."""
        from scipy import integrate
        from scipy.sparse import block_diag

        length, shape, each = solve.length, solve.z.shape, len(y) // rows

        def field(theta: float, y: Any) -> Any:
            side = 1 if theta <= left else -1 if theta >= right else 0
            z = torch.from_numpy(np.ascontiguousarray(y)).to(solve.z).view(shape)
            return length * solve.call(
                solve.moment(float(theta), side), z
            ).double().cpu().numpy().reshape(-1)

        # SciPy's error norm is a mean over all rows, and each row must keep the tolerance
        tolerance = self.tolerance / rows**0.5
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_step": LONGEST}
        if self.method == "LSODA":
            band = {"lband": each - 1, "uband": each - 1} if rows > 1 else {}
            return integrate.LSODA(field, left, y, right, **how, **band)
        sparsity = block_diag([np.ones((each, each))] * rows, format="csc") if rows > 1 else None
        return integrate.Radau(field, left, y, right, jac_sparsity=sparsity, **how)


def _computed(compute: Callable[..., Any]) -> Any:
    """Compute with SciPy; None if it refuses a Jacobian or a state that is not finite."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return compute()
        except (ValueError, np.linalg.LinAlgError):
            return None


def _advanced(stepper: Any, most: float) -> str:
    """Take a step and return its outcome, as a status of `Solution`."""
    if _computed(lambda: (stepper.step(),)) is None:
        return "non_finite"
    if stepper.status == "failed":
        return "step_underflow"
    if not (np.abs(stepper.y) < most).all():
        return "non_finite"
    return "success" if stepper.nfev <= PATIENCE else "max_steps"
