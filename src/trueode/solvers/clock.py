"""The times of a solve: fractions of its interval turned into stage times and step sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ulp
from typing import NamedTuple

import torch
from torch import Tensor

Step = float | Tensor


class Span(NamedTuple):
    """One step in time: the times of its stages and of its end, and its size."""

    times: Sequence[Tensor]
    h: Step


def seconds(t: float | Tensor) -> float:
    """A time as a number."""
    return float(t.detach()) if isinstance(t, Tensor) else float(t)


class Clock:
    """Times ``t0 + theta (t1 - t0)`` of the interval of a solve.

    Steps are handled as fractions theta, so rounding does not accumulate, the direction of time needs no special case
    and, when an end of the interval requires a gradient, every step scales with it.

    Args:
        t0: start, a number or a tensor of no dimension.
        t1: end, likewise.
        like: a state; its dtype and device are those of the times.
    """

    def __init__(self, t0: float | Tensor, t1: float | Tensor, like: Tensor) -> None:
        self.t0, self.t1 = seconds(t0), seconds(t1)
        self.length = self.t1 - self.t0
        self._dtype, self._device = like.dtype, like.device
        self._ends: tuple[Tensor, Tensor] | None = None
        self.eps = max(
            torch.finfo(t.dtype).eps if isinstance(t, Tensor) and t.is_floating_point() else ulp(1.0) for t in (t0, t1)
        )
        if any(isinstance(t, Tensor) and t.requires_grad for t in (t0, t1)) and torch.is_grad_enabled():
            start, end = (torch.as_tensor(t).to("cpu", torch.float64) for t in (t0, t1))
            self._ends = start, end - start

    @property
    def differentiable(self) -> bool:
        """Whether an end of the interval requires a gradient that is being recorded."""
        return self._ends is not None and torch.is_grad_enabled()

    def at(self, theta: float) -> float:
        """The time at a fraction of the interval."""
        return self.t1 if theta == 1 else self.t0 + theta * self.length

    def tensor(self, theta: Tensor) -> Tensor:
        """The times at fractions in float64, in the dtype of the state and differentiable where the ends are."""
        start, length = self._ends or (self.t0, self.length)
        return (start + theta * length).to(dtype=self._dtype, device=self._device)

    def standing(self, theta: Tensor) -> Tensor:
        """The fractions of the times that are now at ``theta``, which stand still when an end of the interval moves."""
        if self._ends is None:
            return theta
        start, length = self._ends
        return (self.t0 + theta * self.length - start) / length

    def step(self, dtheta: float) -> Step:
        """The step size of a fraction of the interval."""
        return dtheta * self.length if self._ends is None else self.tensor_step(torch.tensor(dtheta))

    def tensor_step(self, dtheta: Tensor) -> Tensor:
        """The step sizes of fractions of the interval, in the dtype of the state, differentiable where the ends are."""
        length = self.length if self._ends is None else self._ends[1]
        return (dtheta.double() * length).to(dtype=self._dtype, device=self._device)

    def spans(self, theta: Tensor, nodes: Sequence[float]) -> list[Span]:
        """The stage times and step size of each step of a grid.

        Args:
            theta: fractions in float64: ``(steps + 1,)``, or ``(steps + 1, batch, 1, …)`` for a grid per sample.
            nodes: nodes ``c`` of the method.
        """
        dtheta = theta.diff(dim=0)
        c = torch.tensor((*nodes, 1.0), dtype=torch.float64).view(-1, *[1] * (theta.dim() - 1))
        times = theta[:-1, None] + dtheta[:, None] * c
        times[:, -1] = theta[1:]  # the end of a step is the start of the next one to the last bit
        rows = [row.unbind(0) for row in self.tensor(times).unbind(0)]
        steps: Sequence[Step]
        if theta.dim() > 1 or self.differentiable:
            steps = self.tensor_step(dtheta).unbind(0)
        else:
            steps = (dtheta * self.length).tolist()
        return [Span(row, h) for row, h in zip(rows, steps, strict=True)]
