"""The field of a state together with the change of its log density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.layers import LayerStack
from trueode.solvers.checked import fitted
from trueode.solvers.problem import layers_of
from trueode.solvers.recognition.hooks import is_unwatched
from trueode.solvers.stack import stack_field, with_divergence


class Divergence(nn.Module):
    """``(z, l)' = (f(t, z), -div f(t, z))``: a field, and the change l of the log density of states
    that follow it.

    The divergence is the trace of the Jacobian of f. Of a field of at most two hidden layers, which
    solvers recognise, it is computed in closed form; of another field by products of the Jacobian
    with unit vectors. With ``noise`` e it is estimated by eᵀ J e, whose mean is the trace if the
    covariance of e is the identity. Sources: Chen, Rubanova, Bettencourt & Duvenaud 2018
    (instantaneous change of variables); Grathwohl et al. 2019 (FFJORD, estimates with fixed noise).

    Args:
        field: f, ``field(t, z)`` for states ``(n, *shape)``. A sample must not depend on others.
        shape: the shape of a sample, of d numbers.
        noise: ``(n, d)``, the same for a whole solve; None: the exact trace.
    """

    def __init__(
        self, field: Callable[..., Any], shape: Sequence[int], noise: Tensor | None = None
    ) -> None:
        super().__init__()
        self.field = field
        self.shape = tuple(shape)
        self.noise = noise

    def extra_repr(self) -> str:
        return f"shape={self.shape}"

    def forward(self, t: Any, state: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or one for each sample, ``(n, 1)``.
            state: ``(n, d + 1)``, z and then l.

        Returns:
            ``(n, d + 1)``.

        Raises:
            UsageError: the state or the noise has another shape, or f does not return a derivative
                of its state.
        """
        d = prod(self.shape)
        if state.dim() != 2 or state.shape[1] != d + 1:
            raise UsageError(
                f"The state of a density holds d + 1 = {d + 1} numbers for each sample of shape "
                f"{self.shape}, (n, {d + 1}); it has shape {tuple(state.shape)}."
            )
        z = state[:, :-1]
        if self.noise is not None and self.noise.shape != z.shape:
            raise UsageError(
                f"The noise has shape {tuple(self.noise.shape)}; a state of {len(z)} samples needs "
                f"{tuple(z.shape)}."
            )
        stack = self._stack(z) if self.noise is None else None
        if stack is not None:
            return stack_field(stack)(t, state)
        value, trace = self._products(t, z)
        return torch.cat([value, -trace[:, None]], dim=1)

    def flops(self, sample_shape: Sequence[int]) -> int:
        """Floating point operations of one evaluation on one sample, with one product of the
        Jacobian for each number, or for the noise.
        """
        products = prod(self.shape) if self.noise is None else 1
        return int(self.field.flops(self.shape)) * (1 + products)  # type: ignore[attr-defined]

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The layers of f with the divergence for states ``(n, d + 1)``; None if the trace has no
        closed form, or calling the field does more than this class defines.
        """
        plain = type(self).forward is Divergence.forward and is_unwatched(self)
        n, *rest = state_shape
        if self.noise is not None or not plain or rest != [prod(self.shape) + 1]:
            return None
        like = next(
            (p for p in self.parameters() if p.is_floating_point()), torch.empty(0, device="cpu")
        )
        return self._stack(like.new_zeros(n, prod(self.shape)))

    def _stack(self, z: Tensor) -> LayerStack | None:
        """The layers of f for states ``(n, d)`` with the divergence, if that has a closed form."""
        stack = layers_of(self.field, z.view(-1, *self.shape), lambda: z.new_tensor(0.25))
        return None if stack is None else with_divergence(stack, z.shape[1])

    def _products(self, t: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """f ``(n, d)`` and its trace ``(n,)``, by derivatives in reverse mode."""
        if torch._C._are_functorch_transforms_active():  # autograd.grad is not allowed there
            value, pull, *_ = torch.func.vjp(partial(self._value, t), z)
            rows = ((pull(way)[0] * way).sum(1) for way in self._ways(z))
            return value, sum(rows, torch.zeros_like(z[:, 0]))
        recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not (recorded and z.requires_grad):
                z = z.detach().clone().requires_grad_()
            if isinstance(t, Tensor):
                t = t.clone() if t.is_inference() else t
            value = self._value(t, z)
            trace = torch.zeros_like(z[:, 0])
            for way in self._ways(z) if value.requires_grad else ():
                (row,) = torch.autograd.grad(
                    value, z, way, create_graph=recorded, retain_graph=True, materialize_grads=True
                )
                trace = trace + (row * way).sum(1)
        return (value, trace) if recorded else (value.detach(), trace.detach())

    def _value(self, t: Any, z: Tensor) -> Tensor:
        """f ``(n, d)``."""
        if isinstance(t, Tensor) and t.dim():
            t = t.view(-1, *[1] * len(self.shape))
        state = z.reshape(-1, *self.shape)
        return fitted(self.field(t, state), state).flatten(1)

    def _ways(self, z: Tensor) -> Sequence[Tensor]:
        """What the Jacobian is multiplied with: the noise, or unit vectors."""
        if self.noise is not None:
            return [self.noise.to(z)]
        d = z.shape[1]
        unit = torch.eye(d, dtype=z.dtype, device=z.device)
        return unit[:, None].expand(d, len(z), d).unbind()
