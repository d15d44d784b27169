"""The reasons why a solve failed, and advice; computed only after a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from trueode.solvers.control import error_scale, magnitude, rms
from trueode.solvers.solver import Adaptive
from trueode.solvers.tableau import ButcherTableau

Autonomous = Callable[[Tensor], Tensor]
"""A field at a frozen time."""


@dataclass(frozen=True)
class Stop:
    """The point at which an adaptive solve gave up.

    Attributes:
        z: the state that it reached.
        h: the size of the next step.
        tired: whether it had attempted ``max_steps`` steps.
        finite: whether the last attempted step gave finite numbers.
        row: the sample that was solved; None: all samples together.
    """

    z: Tensor
    h: float
    tired: bool
    finite: bool
    row: int | None = None


def status_of(stop: Stop, known: Tensor) -> str:
    """The status of a solve that gave up; ``known`` is the field at that point."""
    seen = (stop.z, known) if stop.row is None else (stop.z[stop.row], known[stop.row])
    if not (stop.finite or stop.tired) or not all(bool(x.detach().isfinite().all()) for x in seen):
        return "non_finite"
    return "max_steps" if stop.tired else "step_underflow"


def reason(field: Autonomous, known: Tensor, solver: Adaptive, stop: Stop) -> tuple[str, str]:
    """The status of a solve that gave up, and the reason in words; ``known`` is the field at that
    point.
    """
    status = status_of(stop, known)
    if status == "non_finite":
        return status, "the state or the field is not finite"
    tired = f"took more than max_steps = {solver.max_steps} steps"
    what = tired if stop.tired else "the step became too small"
    z = stop.z.detach() if stop.row is None else stop.z.detach()[stop.row]
    eps = torch.finfo(z.dtype).eps
    if rms(magnitude(z) / error_scale(z, solver.rtol, solver.atol)) * eps > 0.25:
        return status, (
            f"{what}; the tolerance is below the rounding error of {z.dtype} ({eps:.2g} of each "
            f"number): set rtol above {4 * eps:.1g}, or use double precision"
        )
    if stop.tired:
        rate, decay = fastest_rate(field, stop.z, known, stop.row)
        if decay > 0.7 * rate and abs(stop.h) * rate > 0.3 * solver.tableau.stability:
            what += (
                "; the problem is stiff there: its fastest component decays within "
                f"{1 / rate:.2g}, and any explicit method needs steps that small at every "
                "tolerance. Use an implicit method, such as Radau in scipy.integrate.solve_ivp, "
                "train the field to be slower (weight decay, smaller initial weights), or raise "
                "max_steps"
            )
    return status, what


def instability(field: Autonomous, tableau: ButcherTableau, z: Tensor, h: float) -> str:
    """A sentence that says why fixed steps are unstable at a state; empty if they are stable."""
    known = field(z).detach()
    if not (bool(z.isfinite().all()) and bool(known.isfinite().all())):
        return ""
    rate, _ = fastest_rate(field, z, known, None)
    if not abs(h) * rate > tableau.stability:
        return ""
    return (
        " The step is unstable at the start: the field's fastest component has a rate of "
        f"{rate:.3g}, for which {tableau.name} with steps above {tableau.stability / rate:.2g} "
        "grows without bound. If you cannot afford smaller steps, the problem is stiff: use an "
        "implicit method, or train the field to be slower."
    )


def fastest_rate(
    field: Autonomous, z: Tensor, known: Tensor, row: int | None
) -> tuple[float, float]:
    """The largest rate of a field's Jacobian at a state, and how fast that component decays, by
    power iteration.

    Source: Sommeijer, Shampine & Verwer, RKC: an explicit solver for parabolic PDEs, 1998, section
    2.2.

    Args:
        field: the field at a frozen time.
        z: the state.
        known: the field there.
        row: the sample to examine; None: all.
    """
    draw = torch.randn(
        z.shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu"
    )
    direction = draw.to(dtype=z.dtype, device=z.device)
    if row is not None:
        direction[torch.arange(len(z), device=z.device) != row] = 0
    size = torch.finfo(z.dtype).eps ** 0.5 * max(_norm(z if row is None else z[row]), 1e-3)
    rate = decay = 0.0
    for _ in range(30):
        step = direction * (size / max(_norm(direction), 1e-30))
        direction = field(z + step).detach() - known
        before, rate = rate, _norm(direction) / size
        decay = -float((step.conj() * direction).real.double().sum()) / size**2
        if not isfinite(rate):
            return 0.0, 0.0
        if rate == 0 or abs(rate - before) <= 0.02 * rate:
            break
    return rate, decay


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(magnitude(x.detach()), dtype=torch.float64))
