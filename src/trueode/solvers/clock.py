"""The times of a solve: convert fractions of its interval to stage times and step sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from itertools import pairwise
from math import isfinite
from numbers import Real
from sys import float_info
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from trueode.errors import UsageError
from trueode.transfer import send

Step = float | Tensor

# the largest shift of a time, as a fraction of the interval, by rounding to the state's precision
MOST_LOST = 1e-3


class Span(NamedTuple):
    """One step in time: the times of its stages and of its end, and its size."""

    times: Sequence[Tensor]
    h: Step


def seconds(t: Any) -> float:
    """A time as a number.

    Raises:
        UsageError: it is neither a real number nor a tensor of one.
    """
    if type(t) is float:
        return t
    if isinstance(t, Tensor):
        if t.numel() == 1 and not t.is_complex() and not t.is_meta and not _is_batched(t):
            return float(t.detach())
    elif isinstance(t, Real):
        return float(t)
    raise UsageError(
        f"A time must be a real number or a tensor with one real value, got {_described(t)}."
    )


def pair(ends: Any) -> tuple[Any, Any]:
    """Start and end.

    Raises:
        UsageError: ``ends`` does not hold two times.
    """
    scalar = not hasattr(ends, "__len__") or (isinstance(ends, Tensor) and not ends.dim())
    if scalar or len(ends) != 2:
        raise UsageError(
            f"t must be two times, (start, end), got {_described(ends)}; "
            "use save_at for states in between."
        )
    start, end = ends
    return start, end


def is_differentiable(t: Any) -> bool:
    """Whether a derivative with respect to a time may be needed, in reverse or forward mode."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        return False
    if t.requires_grad and torch.is_grad_enabled():
        return True
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:  # type: ignore[no-untyped-call]
        return True
    return _is_wrapped(t, _functorch.is_gradtrackingtensor)


def _is_wrapped(t: Tensor, kind: Callable[[Tensor], bool]) -> bool:
    """Whether a tensor is under a transform of torch.func of this kind."""
    while _functorch.is_functorch_wrapped_tensor(t):
        if kind(t):
            return True
        t = _functorch.get_unwrapped(t)
    return False


def _is_batched(t: Tensor) -> bool:
    """Whether a tensor is batched by vmap."""
    return _is_wrapped(t, _functorch.is_batchedtensor)


def _described(t: Any) -> str:
    if not isinstance(t, Tensor):
        return repr(t)
    where = " under vmap" if _is_batched(t) else f" on {t.device}" if t.is_meta else ""
    return f"a tensor of shape {tuple(t.shape)} and {t.dtype}{where}"


class Clock:
    """Times ``t0 + theta (t1 - t0)`` of the interval of a solve.

    Steps are fractions theta of the interval. Rounding then does not accumulate, the direction of
    time needs no special case, and every step scales with the ends of the interval when these are
    differentiated.

    Args:
        ends: start and end, numbers or tensors of one number.
        like: a state; the field sees times in its precision and on its device.

    Raises:
        UsageError: the ends are not two finite times, or the precision of the state is too low to
            distinguish times between them.
    """

    def __init__(self, ends: Any, like: Tensor) -> None:
        start, end = pair(ends)
        self.t0, self.t1 = seconds(start), seconds(end)
        if not (isfinite(self.t0) and isfinite(self.t1)):
            raise UsageError(f"The ends of t must be finite, got {self.t0:g} and {self.t1:g}.")
        self.length = self.t1 - self.t0
        self.dtype, self._device = like.dtype.to_real(), like.device
        self._check_precision()
        self.eps = max(precision(start), precision(end))
        self._ends: tuple[Tensor, Tensor] | None = None
        if is_differentiable(start) or is_differentiable(end):
            first, last = map(double, (start, end))
            self._ends = first, last - first

    def _check_precision(self) -> None:
        size, (eps, largest) = max(abs(self.t0), abs(self.t1)), limits(self.dtype)
        if size > largest:
            raise UsageError(
                f"A time of {size:g} exceeds the range of {self.dtype}, the precision in which the "
                "field sees times."
            )
        if self.length and eps * size > max(MOST_LOST, 16 * eps) * abs(self.length):
            raise UsageError(
                f"The field sees times in {self.dtype}, the precision of the state. Near "
                f"{size:.10g} these are {eps * size:.2g} apart, too far for an interval of length "
                f"{abs(self.length):g}. Start time near 0 (subtract the first time), or use double "
                "precision."
            )

    def still(self) -> Clock:
        """The same times, as constants."""
        found = copy(self)
        found._ends = None
        return found

    def part(self, start: float, end: float) -> Clock:
        """The times between two fractions, as constants."""
        found = self.still()
        found.t0, found.t1 = self.at(start), self.at(end)
        found.length = found.t1 - found.t0
        return found

    @property
    def differentiable(self) -> bool:
        """Whether an end of the interval is differentiated."""
        return self._ends is not None

    @property
    def slack(self) -> float:
        """The largest change of a fraction by rounding of times."""
        return self.slack_of(self.eps)

    def slack_of(self, eps: float) -> float:
        """The same for times with the rounding error ``eps``."""
        size = max(abs(self.t0), abs(self.t1)) / abs(self.length) if self.length else 1.0
        return 8 * max(eps, self.eps) * max(size, 1.0)

    def at(self, theta: float) -> float:
        """The time at a fraction of the interval."""
        return self.t1 if theta == 1 else self.t0 + theta * self.length

    def fraction(self, t: float) -> float:
        """The fraction of the interval at a time; times within rounding of an end count as it."""
        if not self.length:
            return 0.0 if t == self.t0 else float("nan")
        theta, slack = (t - self.t0) / self.length, self.slack
        return 0.0 if abs(theta) < slack else 1.0 if abs(theta - 1) < slack else theta

    def tensor(self, theta: Tensor) -> Tensor:
        """The times at float64 fractions, in the precision of the state and differentiable if the
        ends are.
        """
        start, length = self._ends or (self.t0, self.length)
        return send(start + theta * length, self._device, self.dtype)

    def time(self, theta: float) -> Tensor:
        """The time at a fraction, as the field sees it."""
        return self.tensor(torch.tensor(theta, dtype=torch.float64, device="cpu"))

    def standing(self, times: Tensor) -> Tensor:
        """The fractions of float64 times, differentiable with respect to times and ends."""
        start, length = self._ends or (self.t0, self.length)
        return (times - start) / length

    def tensor_step(self, dtheta: Tensor) -> Tensor:
        """Step sizes from fractions of the interval, in the precision of the state and
        differentiable if the ends are.
        """
        length = self.length if self._ends is None else self._ends[1]
        return send(dtheta.double() * length, self._device, self.dtype)

    def spans(self, grid: Sequence[float], nodes: Sequence[float]) -> list[Span]:
        """The stage times and the size of each step on a grid of fractions; ``nodes`` are the nodes
        c of the method.
        """
        steps = list(pairwise(grid))
        rows = [[*(b if c == 1 else a + c * (b - a) for c in nodes), b] for a, b in steps]
        theta = torch.tensor(rows, dtype=torch.float64, device="cpu").view(
            len(steps), len(nodes) + 1
        )
        times = [row.unbind(0) for row in self.tensor(theta).unbind(0)]
        sizes: Sequence[Step] = [(b - a) * self.length for a, b in steps]
        if self.differentiable:
            widths = [b - a for a, b in steps]
            sizes = self.tensor_step(
                torch.tensor(widths, dtype=torch.float64, device="cpu")
            ).unbind(0)
        return [Span(row, h) for row, h in zip(times, sizes, strict=True)]

    def span_per_sample(self, before: Tensor, after: Tensor, nodes: Sequence[float]) -> Span:
        """The step of each sample between two fractions; fractions, times and sizes have shape
        ``(samples, 1, …)``.
        """
        width = after - before
        times = [self.tensor(after if c == 1 else before + c * width) for c in (*nodes, 1.0)]
        return Span(times, self.tensor_step(width))


@cache
def limits(dtype: torch.dtype) -> tuple[float, float]:
    """The relative rounding error of a dtype, and its largest number."""
    known = torch.finfo(dtype)
    return known.eps, known.max


def double(t: Any) -> Tensor:
    """A time as a float64 tensor on the CPU, where steps are controlled; keeps derivatives."""
    if isinstance(t, Tensor):
        return t.reshape(()).to("cpu", torch.float64)
    return torch.tensor(float(t), dtype=torch.float64, device="cpu")


def precision(t: Any) -> float:
    """The relative rounding error of a time; that of float64 for numbers and integer tensors."""
    return (
        limits(t.dtype)[0]
        if isinstance(t, Tensor) and t.is_floating_point()
        else float_info.epsilon
    )
