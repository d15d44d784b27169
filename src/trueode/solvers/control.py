"""Error control of adaptive solvers: the error norm, the choice of the next step, the starting
step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from sys import float_info
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks of a distributed run."""

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
FACTORS = SAFETY, SHRINK, GROW


@dataclass(frozen=True)
class Control:
    """Error control of one problem beyond what its solver says, for the same steps of all samples.

    Attributes:
        rtol: factors of the solver's relative tolerance, broadcastable to the state.
        atol: factors of its absolute tolerance.
        norm: the norm of a state divided by its tolerances; None: the root mean square.
        min_step: the shortest step, which is accepted whatever its error.
        factors: safety, and the smallest and largest ratio of the next step to this one.
    """

    rtol: Tensor | float = 1.0
    atol: Tensor | float = 1.0
    norm: Callable[[Tensor], Any] | None = None
    min_step: float = 0.0
    factors: tuple[float, float, float] = FACTORS

    def measure(self, x: Tensor, size: Tensor, rtol: float, atol: float) -> float:
        """The norm of ``x`` relative to the tolerances of a state of these magnitudes."""
        scale = self.atol * atol + self.rtol * rtol * size
        scaled = x / scale.clamp(min=torch.finfo(size.dtype).tiny)
        return rms(scaled) if self.norm is None else abs(float(self.norm(scaled)))


def rms(x: Tensor, reduce: Reduce | None = None) -> float:
    """The root mean square of all entries, over all ranks if ``reduce`` sums over them."""
    x = magnitude(x)
    if reduce is None:
        # this norm does not overflow, unlike a sum of squares
        norm: Tensor = torch.linalg.vector_norm(x)
        return float(norm) / sqrt(max(x.numel(), 1))
    total = x.to(torch.float64).square().sum()
    squares, count = reduce(torch.stack([total, total.new_tensor(float(x.numel()))])).tolist()
    return sqrt(squares / max(count, 1.0))


def rms_per_sample(x: Tensor, device: torch.device) -> Tensor:
    """The root mean square over all but the first dimension: shape ``(batch,)``, in float64 on a
    device.
    """
    x = magnitude(x)
    flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    norms = norms.div_(max(flat.shape[1], 1) ** 0.5).double().to(device)
    # steps are constants, in forward mode too, where `detach` keeps derivatives
    return norms if forward_ad._current_level < 0 else forward_ad.unpack_dual(norms).primal  # type: ignore[no-untyped-call]


def magnitude(x: Tensor) -> Tensor:
    """Real numbers of the same magnitudes, in at least float32: half precision would overflow in
    norms.
    """
    x = x.abs() if x.is_complex() else x
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def scaled_error(error: Tensor, before: Tensor, after: Tensor, rtol: float, atol: float) -> Tensor:
    """``error / (atol + rtol max(|before|, |after|))``: a step is accepted when its norm is at most
    1.
    """
    size = torch.maximum(magnitude(before).abs(), magnitude(after).abs())
    return magnitude(error) / error_scale(size, rtol, atol)


def error_scale(state: Tensor, rtol: float, atol: float) -> Tensor:
    """``atol + rtol |state|``, positive even if both ``atol`` and the state are zero."""
    scale = magnitude(state).abs().mul_(rtol).add_(atol)
    return scale if atol else scale.clamp_(min=torch.finfo(scale.dtype).tiny)


def step_factor(
    error_ratio: float, error_order: int, factors: tuple[float, float, float] = FACTORS
) -> float:
    """The ratio of the next step to this one, by the elementary controller (Hairer, Nørsett &
    Wanner I, eq. II.4.13).

    It may be below 1 even after an accepted step: if the error is growing, the same step size would
    be rejected next.

    Args:
        error_ratio: norm of the scaled error of the step; at most 1 when the step was accepted.
        error_order: the local order of the error estimate (order of the embedded method + 1).
        factors: safety, and the smallest and largest ratio.
    """
    safety, shrink, grow = factors
    if not isfinite(error_ratio):
        return shrink
    if error_ratio == 0:
        return grow
    return min(grow, max(safety * float(error_ratio ** (-1 / error_order)), shrink))


def step_factors(error_ratio: Tensor, error_order: int) -> Tensor:
    """``step_factor`` for each sample: shape ``(batch,)``."""
    factor = (SAFETY * error_ratio ** (-1 / error_order)).clamp(SHRINK, GROW)
    return torch.where(error_ratio.isfinite(), factor, SHRINK)


def trial_step(d0: float, d1: float) -> float:
    """The trial step h0 of the rule for the first step (Hairer, Nørsett & Wanner I, p. 169, a and
    b).

    Args:
        d0: norm of the state.
        d1: norm of the field at the start.
    """
    return 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1


def starting_step(h0: float, d1: float, d2: float, error_order: int) -> float:
    """The first step (Hairer, Nørsett & Wanner I, p. 169, d to f).

    Args:
        h0: the trial step.
        d1: norm of the field at the start.
        d2: norm of the change of the field over one Euler step of h0, divided by h0.
        error_order: the exponent p + 1 of the rule.

    Returns:
        The step; NaN if the field is not finite at the start.
    """
    if not isfinite(h0 + d1):
        return nan
    curvature = max(d1, d2)
    if not isfinite(curvature):
        return h0
    h1 = max(1e-6, 1e-3 * h0) if curvature <= 1e-15 else (0.01 / curvature) ** (1 / error_order)
    return min(100 * h0, h1)


def trial_steps(d0: Tensor, d1: Tensor) -> Tensor:
    """``trial_step`` for each sample: shape ``(batch,)``."""
    return torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)


def starting_steps(h0: Tensor, d1: Tensor, d2: Tensor, error_order: int) -> Tensor:
    """``starting_step`` for each sample: shape ``(batch,)``."""
    curvature = torch.maximum(d1, d2)  # NaN if one of them is
    flat = (1e-3 * h0).clamp(min=1e-6)
    h1 = torch.where(curvature <= 1e-15, flat, (0.01 / curvature) ** (1 / error_order))
    step = torch.where(curvature.isfinite(), torch.minimum(100 * h0, h1), h0)
    return torch.where((h0 + d1).isfinite(), step, nan)


def starting_fractions(
    norms: Callable[[Tensor], Tensor],
    move: Callable[[Tensor], Tensor],
    start: tuple[Tensor, Tensor, Tensor],
    length: float,
    error_order: int,
) -> Tensor:
    """The first step as a fraction of an interval, found where the state is: shape ``(batch,)``, or
    without dimension for all samples together.

    Args:
        norms: the norms of a state divided by its tolerances.
        move: the field after an Euler step of the given fractions.
        start: the state, the field, and whether the field is finite.
        length: the length of the interval.
        error_order: the exponent p + 1 of the rule.
    """
    z, first, finite = start
    d0, d1 = norms(z), norms(first)
    # a tiny tolerance can make the norm of a finite field overflow
    d1 = torch.where(d1.isinf() & finite, float_info.max, d1)
    h0 = trial_steps(d0, d1)
    trial = h0.clamp(max=length) / length
    d2 = norms(move(trial) - first) / (trial * length).clamp(min=float_info.min)
    return starting_steps(h0, d1, d2, error_order).clamp(max=length) / length
