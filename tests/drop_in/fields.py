"""Fields that count their calls, and calls of both libraries with all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.problems import parts_of


class Counted(nn.Module):
    """A small smooth field of time and state ``(…, 2)``, which counts its calls."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(3, 8, generator=draw, dtype=torch.float64).to(dtype))
        self.outer = nn.Parameter(torch.randn(8, 2, generator=draw, dtype=torch.float64).to(dtype))
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        time = t.expand(*y.shape[:-1], 1).to(y.dtype)
        return torch.tanh(torch.cat([y, time], -1) @ self.inner) @ self.outer


class CountedPair(nn.Module):
    """Two states of different shapes, driven by each other; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.6, 0.2], dtype=torch.float64))
        self.calls = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        x, y = state
        total = x.sum(-1, keepdim=True)
        return torch.sin(y @ self.w)[..., None] * x + t.cos(), self.w * total - y


class Found(NamedTuple):
    """States of a call, calls of the field in the forward pass, and gradients of a loss."""

    states: list[Tensor]
    calls: int
    gradients: list[Tensor]
    by_time: Tensor | None


def found(
    odeint: Callable[..., Any], field: Any, y0: Any, t: Tensor, moving: bool = False, **how: Any
) -> Found:
    """The result of a call; the gradients are those of initial state and parameters."""
    field.zero_grad()
    field.calls = 0
    parts = tuple(part.clone().requires_grad_() for part in parts_of(y0))
    times = t.clone().requires_grad_(moving)
    result = odeint(field, parts if isinstance(y0, tuple) else parts[0], times, **how)
    calls, states = field.calls, list(parts_of(result))
    loss = sum(
        ((k + 1) * part[i]).abs().square().sum()
        for part in states
        for k, i in enumerate(range(len(part)))
    )
    loss.backward()
    gradients = [x.grad for x in (*parts, *field.parameters())]
    assert all(isinstance(result, tuple) == isinstance(y0, tuple) for _ in states)
    assert all(s.shape == (len(t), *p.shape) for s, p in zip(states, parts, strict=True))
    return Found([s.detach() for s in states], calls, gradients, times.grad)


def assert_close(ours: Found, theirs: Found, tol: float) -> None:
    """The states and gradients of both calls agree."""
    for x, y in zip(
        [*ours.states, *ours.gradients], [*theirs.states, *theirs.gradients], strict=True
    ):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol)
    assert (ours.by_time is None) == (theirs.by_time is None)
    if ours.by_time is not None:
        torch.testing.assert_close(ours.by_time, theirs.by_time, rtol=tol, atol=tol)


def start(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random initial state."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


SHAPES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "vector": (Counted, lambda: start(2)),
    "batch": (Counted, lambda: start(5, 2)),
    "signals": (Counted, lambda: start(2, 3, 2)),
    "tuple": (CountedPair, lambda: (start(3, 2), start(3, 3))),
}
"""Fields and initial states by the shape of the state."""
TIMES = {
    "forward": [0.0, 0.25, 0.7, 1.0],
    "backward": [1.0, 0.6, 0.2, -0.1],
    "two": [0.2, 1.0],
    "equal": [0.0, 0.25, 0.5, 0.75, 1.0],
}
