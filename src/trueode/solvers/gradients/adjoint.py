"""The continuous adjoint: the gradient of the exact flow, by a second solve backwards in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trueode.errors import SolveError, UsageError
from trueode.solvers.clock import Clock
from trueode.solvers.control import Reduce
from trueode.solvers.integrate import Outcome, integrate
from trueode.solvers.problem import pack_tuple
from trueode.solvers.saving import SavePoints
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.step import Field, Stepper

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint method: memory of one state, a gradient that is exact only up to the solver's error.

    Source: Chen, Rubanova, Bettencourt & Duvenaud, Neural Ordinary Differential Equations, 2018, Algorithm 1. The error
    control of an adaptive backward solve watches state and adjoint, not the parameters' gradients (Kidger, Chen &
    Lyons, "Hey, that's not an ODE", 2021); with several samples it is coupled over the batch.

    Args:
        solver: the solver of the backward solve; None takes that of the forward solve.
        params: the parameters that the field uses; None takes those of a field that is a Module.
    """

    solver: Solver | None = None
    params: Iterable[Tensor] | None = None

    def __post_init__(self) -> None:
        if self.params is not None and not isinstance(self.params, tuple):
            object.__setattr__(self, "params", tuple(self.params))

    def parameters_of(self, field: Any) -> tuple[Tensor, ...]:
        """The parameters to differentiate.

        Raises:
            UsageError: the field is not a Module and ``params`` was not given.
        """
        found: Iterable[Tensor]
        if self.params is not None:
            found = self.params
        elif isinstance(field, nn.Module):
            found = field.parameters()
        else:
            raise UsageError(
                "Adjoint cannot see the parameters of a field that is not a Module: pass Adjoint(params=(…)), "
                "with an empty tuple if it has none."
            )
        return tuple({id(p): p for p in found if p.requires_grad}.values())  # each once, however often it is named


def backward_solver(solver: Solver, length: float) -> Solver:
    """The solver of a piece of the backward solve: the same steps, not the same number of them."""
    if isinstance(solver, Adaptive):
        return Adaptive(solver.method, solver.rtol, solver.atol, max_steps=solver.max_steps)
    steps = len(solver.grid) - 1 if isinstance(solver, OnGrid) else solver.count(length)
    return (
        FixedStep(solver.method, step_size=abs(length) / max(steps, 1))
        if length
        else FixedStep(solver.method, n_steps=1)
    )


class _AdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solve: Callable[[], Outcome],
        box: list[Outcome],
        backward: Any,
        z: Tensor,
        t0: Any,
        t1: Any,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        outcome = solve()
        box.append(outcome)
        ctx.backward_solve, ctx.ends = backward, (t0, t1)
        zs = z.new_empty((0, *z.shape)) if outcome.zs is None else outcome.zs
        ctx.save_for_backward(z, outcome.z, zs, *params)
        return outcome.z.clone(), zs  # what the user may change in place is not what is saved

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_final: Tensor, g_saved: Tensor) -> tuple[Any, ...]:
        z, final, zs, *_ = ctx.saved_tensors
        with_times = any(ctx.needs_input_grad[4:6])
        a, g_times, g_params = ctx.backward_solve(z, final, zs, g_final, g_saved, with_times)
        times = (
            g.to(t) if isinstance(t, Tensor) and g is not None else None for g, t in zip(g_times, ctx.ends, strict=True)
        )
        return None, None, None, a, *times, *g_params


def integrate_adjoint(
    adjoint: Adjoint,
    field: Field,
    params: tuple[Tensor, ...],
    solver: Solver,
    clock: Clock,
    z0: Tensor,
    ends: Sequence[float | Tensor],
    save_at: SavePoints | None,
    reduce: Reduce | None,
) -> Outcome:
    """Solve without a graph; gradients come from the adjoint equation, solved backwards from the end.

    At each saved time the state is set back to the saved one, so that errors of the backward solve do not pile up.
    """
    reverse = adjoint.solver or solver

    def forward() -> Outcome:
        return integrate(Stepper(field, solver.tableau, clock), solver, z0.detach(), save_at, reduce)

    def augmented(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a = state[0].detach(), state[1]
        with torch.enable_grad():
            z.requires_grad_()
            value = field(t, z)
            if not value.requires_grad:
                return value, *(torch.zeros_like(x) for x in state[1:])
            found = torch.autograd.grad(value, (z, *params), -a, allow_unused=True)
        grads = (torch.zeros_like(x) if g is None else g for g, x in zip(found, (z, *params), strict=True))
        return value.detach(), *grads

    def backward(
        z_start: Tensor, final: Tensor, zs: Tensor, g_final: Tensor, g_saved: Tensor, with_times: bool
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None], list[Tensor]]:
        # stations of the backward solve, from the end: fraction, state, gradient that enters there
        stations = [(1.0, final, g_final)]
        stations += sorted(
            zip(save_at.fractions if save_at else [], zs.unbind(0), g_saved.unbind(0), strict=True),
            key=lambda s: s[0],
            reverse=True,
        )
        a, grads = torch.zeros_like(final), [torch.zeros_like(p) for p in params]
        at, current = 1.0, final
        for theta, state, entering in [*stations, (0.0, z_start, torch.zeros_like(final))]:
            if theta < at:
                current, a, grads = piece(at, theta, current, a, grads)
                at, current = theta, state
            a = a + entering
        if not with_times:
            return a, (None, None), grads
        a_end = g_final + sum(g for theta, _, g in stations[1:] if theta == 1.0)
        at_start = -(a * field(time(0.0), z_start)).sum()
        return a, (at_start, (a_end * field(time(1.0), final)).sum()), grads

    def time(theta: float) -> Tensor:
        return clock.tensor(torch.tensor(theta, dtype=torch.float64))

    def piece(
        start: float, end: float, z: Tensor, a: Tensor, grads: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        flat, packed, unpack = pack_tuple(augmented, (z, a, *grads), per_sample=False)
        length = clock.at(end) - clock.at(start)
        piece_solver = backward_solver(reverse, clock.length)
        piece_clock = Clock(clock.at(start), clock.at(end), packed)
        watched = 2 * z.numel()  # state and adjoint
        stepper = _Watching(flat, piece_solver.tableau, piece_clock, watched)
        outcome = integrate(stepper, piece_solver, packed, None, reduce)
        if outcome.status != "success":
            raise SolveError(
                f"The backward solve of the adjoint over {length:g} failed. {outcome.message}", outcome.status
            )
        z, a, *rest = unpack(outcome.z)
        return z, a, rest

    box: list[Outcome] = []
    t0, t1 = ends
    final, zs = _AdjointSolve.apply(forward, box, backward, z0, t0, t1, *params)
    outcome = box[0]
    outcome.z, outcome.zs = final, None if save_at is None else zs
    return outcome


class _Watching(Stepper):
    """A stepper whose error control looks only at the first entries of a flat state."""

    def __init__(self, field: Field, tableau: Any, clock: Clock, watched: int) -> None:
        super().__init__(field, tableau, clock)
        self._watched = watched

    def controlled(self, x: Tensor) -> Tensor:
        return x[: self._watched]
