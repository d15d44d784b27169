"""The model of the paper: downstream ∘ flow ∘ upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.solvers import Backprop, FixedStep, Gradient, Solution, Solver, solve
from trueode.solvers.clock import pair, seconds
from trueode.solvers.control import Reduce
from trueode.solvers.saving import Times, as_times


class NeuralODE(nn.Module):
    """``downstream(flow(upstream(x)))``: a Neural ODE block between optional layers.

    The solver is an argument of `forward`; ``self.solver`` is only its default, and the model keeps
    no state of a solve. Source: Ott, Katiyar, Hennig & Tiemann, ICLR 2021, section 2.

    Args:
        field: the vector field, ``field(t, z)``; if it is a Module, the model has its parameters.
        upstream: applied before the block.
        downstream: applied to the state after the block, at each saved time.
        solver: the default solver.
        t: start and end of the block. Tensors are saved and moved with the model as ``t_start`` and
            ``t_end``: a `torch.nn.Parameter` as a parameter, any other tensor as a buffer.
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

    @property
    def t(self) -> tuple[float | Tensor, float | Tensor]:
        """Start and end of the block."""
        ends: Any = self.t_start, self.t_end
        return ends  # type: ignore[no-any-return]

    @t.setter
    def t(self, ends: tuple[float | Tensor, float | Tensor]) -> None:
        for name, end in zip(("t_start", "t_end"), pair(ends), strict=True):
            if hasattr(self, name):
                delattr(self, name)
            if isinstance(end, Tensor) and not isinstance(end, nn.Parameter) and end.is_leaf:
                self.register_buffer(name, end)
            else:
                setattr(self, name, end)

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
            solver: the solver of this call; None: the default.
            field: replaces the model's field in this call by the same function of the same
                weights, computed in another way, for instance by `Autocast`; None: the model's.
            t: start and end of this call; None: the default.
            save_at: the times at which outputs are computed: ``(times,)``, or ``(batch, times)``
                for each sample's own times (padded with NaN).
            return_solution: return the pair (output, `Solution`).
            on_failure: as in `solve`: ``"raise"`` an error, or ``"return"`` the incomplete result.

        Returns:
            ``(batch, …)``, or with ``save_at`` ``(times, batch, …)``, with zeros where a sample's
            time is NaN.
        """
        z = self.upstream(x) if self.upstream is not None else x
        if isinstance(z, Tensor) and z.dim() == 4:
            # once, for all convolutions of the solve
            z = z.contiguous(memory_format=_layout(z))
        t = self.t if t is None else t
        times = None if save_at is None else as_times(save_at)
        absent = None if times is None or times.dim() == 1 else times.isnan()
        if times is not None and absent is not None:
            if absent.numel() and bool(absent.all()):
                raise UsageError("save_at holds no times: all entries are NaN.")
            # any valid time: these outputs are masked below
            times = times.masked_fill(absent, seconds(t[0]))
        solution: Solution[Any] = solve(
            self.field if field is None else field,
            z,
            t,
            solver=self.solver if solver is None else solver,
            gradient=self.gradient,
            save_at=times,
            on_failure=on_failure,
            reduce=self.reduce,
        )
        if times is None:
            output = self._downstream(solution.z)
        else:
            output = self._downstream_each(solution.zs)
            if absent is not None:
                output = _masked(output, ~absent.T)
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


def _masked(output: Any, present: Tensor) -> Any:
    """The output, with zeros where a sample has no time; ``present``: ``(times, batch)``."""
    if isinstance(output, tuple):
        return tuple(_masked(part, present) for part in output)
    here = present.to(output.device, non_blocking=True)
    return torch.where(here.view(*present.shape, *[1] * (output.dim() - 2)), output, 0.0)


def _layout(z: Tensor) -> torch.memory_format:
    """The layout of images in which convolutions need no copies: cuDNN has no channels-last ones in
    double precision.
    """
    double_on_gpu = z.is_cuda and z.dtype == torch.float64
    return torch.contiguous_format if double_on_gpu else torch.channels_last
