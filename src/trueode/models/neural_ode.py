"""The model of the paper: downstream ∘ flow ∘ upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.solvers import Backprop, FixedStep, Gradient, Solution, Solver, solve
from trueode.solvers.clock import seconds
from trueode.solvers.control import Reduce
from trueode.solvers.saving import Times, as_times


class NeuralODE(nn.Module):
    """``downstream(flow(upstream(x)))``: a Neural ODE block between optional layers.

    The solver is a value handed to `forward`; ``self.solver`` is only the default, and the model holds no state of a
    solve. Source: Ott, Katiyar, Hennig & Tiemann, ICLR 2021, section 2.

    Args:
        field: the vector field, ``field(t, z)``; a Module's parameters are the model's.
        upstream: applied before the block.
        downstream: applied to the state after the block, at each saved time.
        solver: the default solver.
        t: start and end of the block.
        gradient: how gradients are computed.
        reduce: sums over the ranks that share one batch; see `solve`.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        upstream: Callable[..., Any] | None = None,
        downstream: Callable[..., Any] | None = None,
        solver: Solver | None = None,
        t: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        gradient: Gradient | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.field = field
        self.upstream = upstream
        self.downstream = downstream
        self.solver: Solver = solver or FixedStep("rk4", n_steps=8)
        self.t = t
        self.gradient: Gradient = gradient or Backprop()
        self.reduce = reduce

    def forward(
        self,
        x: Any,
        solver: Solver | None = None,
        *,
        field: Callable[..., Any] | None = None,
        t: tuple[float | Tensor, float | Tensor] | None = None,
        save_at: Times | None = None,
        return_solution: bool = False,
        on_failure: str = "raise",
    ) -> Any:
        """Compute the model's output.

        Args:
            x: input of the upstream layers, or the initial state.
            solver: the solver of this call; None takes the default.
            field: called in the place of the model's: the same function of the same weights, computed in another way, as
                by `Autocast`; None takes the model's.
            t: start and end of this call; None takes the default.
            save_at: times ``(times,)`` at which outputs are wanted, or ``(batch, times)`` with times of its own for each
                sample (NaN: none). The solve runs on the union of all times.
            return_solution: return the pair (output, `Solution`).
            on_failure: as in `solve`: ``"raise"``, or ``"return"`` what there is.

        Returns:
            ``(batch, …)``; with ``save_at``: ``(times, batch, …)``, zeros where a sample's time is NaN.
        """
        z = self.upstream(x) if self.upstream is not None else x
        if isinstance(z, Tensor) and z.dim() == 4:
            z = z.contiguous(memory_format=torch.channels_last)  # once, for all convolutions of the solve
        times = None if save_at is None else as_times(save_at)
        t = t or self.t
        union, position = (times, None) if times is None or times.dim() == 1 else _union(times, seconds(t[1]))
        solution: Solution[Any] = solve(
            field or self.field,
            z,
            t,
            solver=solver or self.solver,
            gradient=self.gradient,
            save_at=union,
            on_failure=on_failure,
            reduce=self.reduce,
        )
        if times is None:
            output = self._downstream(solution.z)
        else:
            states = solution.zs if position is None else _gather(solution.zs, position, times)
            output = self._downstream_each(states)
            if position is not None:
                output = _masked(output, ~times.isnan().T)
        return (output, solution) if return_solution else output

    def _downstream(self, z: Any) -> Any:
        return z if self.downstream is None else self.downstream(z)

    def _downstream_each(self, states: Any) -> Any:
        if self.downstream is None:
            return states
        if isinstance(states, tuple):
            return torch.stack([self.downstream(state) for state in zip(*states, strict=True)])
        if not len(states):
            raise UsageError("save_at holds no times.")
        outputs = self.downstream(states.flatten(0, 1))  # one call for all times
        return outputs.view(*states.shape[:2], *outputs.shape[1:])


def _union(times: Tensor, end: float) -> tuple[Tensor, Tensor]:
    """All times that occur in ``(batch, times)``, ascending, and where each entry is found among them.

    Without samples, as on a rank that has no part of a small batch, the end stands for all times.
    """
    if times.dim() != 2:
        raise UsageError(f"save_at must have shape (times,) or (batch, times); it has {tuple(times.shape)}.")
    if not len(times):
        return times.new_tensor([end]), torch.zeros(times.shape, dtype=torch.int64)
    present = times[~times.isnan()]
    if not len(present):
        raise UsageError("save_at holds no times: all entries are NaN.")
    union = torch.unique(present)
    filled = torch.where(times.isnan(), union[0], times)
    return union, torch.searchsorted(union, filled.contiguous())


def _masked(output: Any, present: Tensor) -> Any:
    """Zeros where a sample has no time; ``present (times, batch)``."""
    if isinstance(output, tuple):
        return tuple(_masked(part, present) for part in output)
    return torch.where(present.to(output.device).view(*present.shape, *[1] * (output.dim() - 2)), output, 0.0)


def _gather(states: Any, position: Tensor, times: Tensor) -> Any:
    """From ``(union, batch, …)`` to each sample's own times, ``(times, batch, …)``."""
    if isinstance(states, tuple):
        return tuple(_gather(part, position, times) for part in states)
    if states.shape[1] != len(position):
        raise UsageError(
            f"save_at has times for {len(position)} samples, the batch has {states.shape[1]}: shape (batch, times) is needed."
        )
    samples = torch.arange(len(position), device=states.device)
    return states[position.T.to(states.device), samples]
