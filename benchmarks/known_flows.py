"""Models of known flow: their samples, exact outputs, and the share of predictions that change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trueode import NeuralODE
from trueode.solvers import Solver

Field = Callable[[Tensor, Tensor], Tensor]
Solve = Callable[[Field, Tensor, Tensor], Tensor]  # field, initial states, times -> states
ALLOWED = 0.01  # change of a number that does not count, relative to the spread


@dataclass(frozen=True)
class Known:
    """A model whose exact outputs are known.

    Attributes:
        model: the model to audit.
        draw: ``draw(n, seed)`` returns ``n`` inputs.
        exact: computes the exact outputs of inputs in double precision; rows that are not finite
            have blown up. None if no truth exists.
        how: how the truth is computed, or why none exists.
        task: the task of the audit.
        each: number of samples per audit.
        many: number of samples from which the true share is computed.
        whole: pass the samples of an audit as one batch.
        arguments: further arguments of the audit.
    """

    model: nn.Module
    draw: Callable[[int, int], Tensor]
    exact: Callable[[Tensor], Tensor] | None
    how: str
    task: str = "classification"
    each: int = 1000
    many: int = 5000
    whole: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the model, and the exact ones."""
        assert self.exact is not None
        with torch.no_grad():
            return self.model(x).double(), self.exact(x.double())

    def share(self) -> float:
        """The share of predictions that change, mean over samples; NaN if no truth exists."""
        if self.exact is None:
            return math.nan
        parts = [
            self.outputs(self.draw(self.each, 100 + k))
            for k in range(max(1, self.many // self.each))
        ]
        own, exact = (torch.cat(part) for part in zip(*parts, strict=True))
        return float(changed(own, exact, self.task).double().mean())


def changed(own: Tensor, exact: Tensor, task: str = "classification") -> Tensor:
    """The share of predictions of each sample that change.

    A class changes if it is another one, a number if it moves by more than `ALLOWED`.
    """
    if task == "classification":
        lost = ~(own.isfinite() & exact.isfinite()).all(1)
        other = (own.argmax(1) != exact.argmax(1)) | lost
        return other.double().view(len(own), -1).mean(1)
    over = (0,) if task == "regression" else (0, 1)
    spread = (exact - exact.mean(over, keepdim=True)).square().mean(over, keepdim=True).sqrt()
    return ~(((own - exact) / spread).square().flatten(1).mean(1).sqrt() <= ALLOWED)


class Model(nn.Module):
    """``head(flow(lift(x)))``, solved by a function of another library.

    Args:
        field: the vector field.
        solve: the function that solves.
        head: applied to the last state. None: all states are the outputs, ``(n, times, …)``.
        times: the times of the states.
        lift: maps inputs to initial states.
    """

    def __init__(
        self,
        field: Field,
        solve: Solve,
        head: nn.Module | None = None,
        times: Tensor | None = None,
        lift: Any = None,
    ) -> None:
        super().__init__()
        self.field, self.solve, self.head, self.lift = field, solve, head, lift
        self.register_buffer(
            "times",
            torch.tensor([0.0, 1.0], dtype=torch.float64) if times is None else times.double(),
        )

    def forward(self, x: Tensor) -> Tensor:
        states = self.solve(self.field, x if self.lift is None else self.lift(x), self.times)
        return states.transpose(0, 1) if self.head is None else self.head(states[-1])


class Head(nn.Module):
    """Two logits: a seeded linear function of the first components, and its negative.

    About half of the samples are in each class.
    """

    def __init__(self, size: int = 2, seed: int = 5, offset: float = 0.2) -> None:
        super().__init__()
        weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        self.weight, self.offset = nn.Parameter(weight / weight.norm()), offset

    def forward(self, z: Tensor) -> Tensor:
        side = z[:, : len(self.weight)] @ self.weight.to(z) - self.offset
        return torch.stack([side, -side], 1)


def network(field: Field, solve: Solve | Solver, head: nn.Module, lift: Any = None) -> nn.Module:
    """A model of trueode if ``solve`` is one of its solvers, else of another library."""
    if isinstance(solve, Solver):
        return NeuralODE(field, lift, head, solve).eval()
    return Model(field, solve, head, lift=lift).eval()


def diffeq(method: str, n_steps: int = 0, **how: Any) -> Solve:
    """Solve by torchdiffeq.

    Without a number of steps, adaptive methods use their tolerance, and fixed ones step from each
    time to the next.
    """
    from torchdiffeq import odeint

    def solve(field: Field, z: Tensor, times: Tensor) -> Tensor:
        length = float(times[-1] - times[0])
        options = {"options": {"step_size": length / n_steps}} if n_steps else {}
        states: Tensor = odeint(field, z, times.to(z), method=method, **options, **how)
        return states

    return solve


def dyn(method: str, n_steps: int) -> Solve:
    """Solve by torchdyn, which takes one step between two times."""
    from torchdyn.numerics import odeint

    def solve(field: Field, z: Tensor, times: Tensor) -> Tensor:
        grid = torch.linspace(float(times[0]), float(times[-1]), n_steps + 1).to(z)
        states: Tensor = odeint(field, z, grid, solver=method)[1]
        return states

    return solve


def ode(method: str, n_steps: int = 0, tolerance: float = 1e-6) -> Solve:
    """Solve by torchode, where each sample has its own time."""
    import torchode

    def solve(field: Field, z: Tensor, times: Tensor) -> Tensor:
        term = torchode.ODETerm(field)
        controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        solver = torchode.AutoDiffAdjoint(
            getattr(torchode, method)(term=term),
            torchode.FixedStepController() if n_steps else controller,
        )
        ends = [torch.full((len(z),), float(times[k])).to(z) for k in (0, -1)]
        problem = torchode.InitialValueProblem(y0=z, t_start=ends[0], t_end=ends[1])
        states: Tensor = solver.solve(
            problem, dt0=(ends[1] - ends[0]) / n_steps if n_steps else None
        ).ys
        return states.transpose(0, 1)

    return solve


def normal(size: int = 2) -> Callable[[int, int], Tensor]:
    """A function that draws normally distributed inputs."""
    return lambda n, seed: torch.randn(
        n, size, generator=torch.Generator().manual_seed(2027 + seed)
    )


def uniform(low: float, high: float, size: int = 2) -> Callable[[int, int], Tensor]:
    """A function that draws uniformly distributed inputs."""
    return lambda n, seed: (
        low
        + (high - low) * torch.rand(n, size, generator=torch.Generator().manual_seed(2027 + seed))
    )


def column(t: Any, z: Tensor) -> Tensor:
    """A time, or one time per sample, as a column."""
    return torch.as_tensor(t).to(z).reshape(-1, 1)


def turned(z: Tensor) -> Tensor:
    """States turned by a right angle: i z."""
    return torch.stack([-z[:, 1], z[:, 0]], 1)


def as_complex(z: Tensor) -> Tensor:
    return torch.complex(z[..., 0], z[..., 1])


def as_real(z: Tensor) -> Tensor:
    return torch.stack([z.real, z.imag], -1)


def judged(verdict: str, true: float) -> str:
    """The error of a verdict for a true share; empty if it is right.

    Without a truth (NaN), every verdict except `ode` is right.
    """
    if verdict == "ode" and not true <= 0.01:
        return "false `ode`"
    if verdict == "solver-dependent" and true <= 0.01:
        return "false `solver-dependent`"
    wanted = "ode" if true <= 0.003 else "solver-dependent" if true >= 0.03 else verdict
    return "" if verdict == wanted else f"no `{wanted}`"
