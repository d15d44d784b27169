"""An initial value problem, with all arguments of `solve`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from trueode.errors import UsageError
from trueode.layers import LayerStack
from trueode.solvers.checked import CheckedField, is_symbolic
from trueode.solvers.clock import Clock
from trueode.solvers.control import Control, Reduce
from trueode.solvers.gradients.methods import Adjoint, Backprop, Checkpoint, Gradient
from trueode.solvers.recognition import find_layers
from trueode.solvers.saving import SavePoints, Times, save_points
from trueode.solvers.solution import Counter
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.states import Unpack, pack_tuple
from trueode.solvers.step import Field

_BACKPROP = Backprop()
Made = TypeVar("Made")


class lazy(Generic[Made]):  # noqa: N801 - used like a property
    """``functools.cached_property`` without its lock, which takes longer than most of the
    properties here.
    """

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, owner: Any, _: Any = None) -> Made:
        found = owner.__dict__[self._name] = self._make(owner)
        return found


class Form(NamedTuple):
    """A problem in the form that the integration loops use: its field, with one tensor as state,
    and the conversion back to the user's state.
    """

    field: Field
    state: Tensor
    unpack: Unpack | None


@dataclass(frozen=True)
class Problem:
    """A problem and how to solve it; see `solve` for the arguments.

    Attributes:
        counter: counts the calls of the field.
        control: error control beyond what an adaptive solver says.

    Raises:
        UsageError: an argument is not valid, or cannot be combined with another one.
    """

    field: Callable[..., Any]
    z0: Any
    t: Any = (0.0, 1.0)
    solver: Solver = field(kw_only=True)
    gradient: Gradient = field(default=_BACKPROP, kw_only=True)
    save_at: Times | None = field(default=None, kw_only=True)
    reduce: Reduce | None = field(default=None, kw_only=True)
    counter: Counter = field(default_factory=Counter, kw_only=True)
    control: Control | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        parts = self.z0 if isinstance(self.z0, tuple) else (self.z0,)
        if not parts or not all(
            isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in parts
        ):
            raise UsageError(
                "z0 must be a floating point or complex tensor, or a non-empty tuple of these."
            )
        if not callable(self.field):
            raise UsageError(
                f"The field must be a function of time and state, field(t, z), got {self.field!r}."
            )
        if not isinstance(self.solver, (FixedStep, Adaptive, OnGrid)):
            raise UsageError(
                f"solver must be a FixedStep, Adaptive or OnGrid value, got {self.solver!r}."
            )
        if not isinstance(self.gradient, (Backprop, Checkpoint, Adjoint)):
            raise UsageError(
                f"gradient must be Backprop(), Checkpoint() or Adjoint(), got {self.gradient!r}."
            )
        if self.per_sample and not all(x.dim() for x in parts):
            raise UsageError("Per-sample control needs a state with a batch dimension, (batch, …).")
        self._check_transforms()
        if self.save_at is not None:
            self.points  # noqa: B018 - refuses invalid times before the field is called

    def _check_transforms(self) -> None:
        adaptive = isinstance(self.solver, Adaptive)
        if self.first.is_meta and adaptive:
            raise UsageError(
                "An adaptive solve needs values, which meta tensors do not have: use FixedStep."
            )
        if torch._C._are_functorch_transforms_active():
            if not isinstance(self.gradient, Backprop):
                raise UsageError(
                    f"{type(self.gradient).__name__} does not support torch.func: "
                    "use gradient=Backprop()."
                )
            stack = _functorch.get_interpreter_stack() or ()
            if adaptive and any(each.key() == _functorch.TransformType.Vmap for each in stack):
                raise UsageError(
                    "An adaptive solve needs values, which vmap (and jacfwd, hessian) hides: use "
                    "FixedStep, or solve the whole batch at once, with Adaptive(per_sample=True) "
                    "if samples must not influence one another."
                )
        elif forward_ad._current_level >= 0 and isinstance(self.gradient, Adjoint):
            raise UsageError("Adjoint has no derivative in forward mode: use gradient=Backprop().")

    @property
    def first(self) -> Tensor:
        """The state, or the first of its parts."""
        found: Tensor = self.z0[0] if isinstance(self.z0, tuple) else self.z0
        return found

    @property
    def per_sample(self) -> bool:
        """Whether each sample has its own steps."""
        return bool(getattr(self.solver, "per_sample", False))

    @lazy
    def clock(self) -> Clock:
        """The times of the solve."""
        return Clock(self.t, self.first)

    @lazy
    def points(self) -> SavePoints | None:
        """The times at which states are saved."""
        if self.save_at is None:
            return None
        return save_points(self.save_at, self.clock, len(self.first) if self.first.dim() else None)

    @lazy
    def form(self) -> Form:
        """The problem in the form that the integration loops use."""
        if not isinstance(self.z0, tuple):
            return Form(CheckedField(self.field, self.counter), self.z0, None)
        per_sample = self.per_sample or (self.points is not None and self.points.per_sample)
        inner, state, unpack = pack_tuple(self.field, self.z0, per_sample=per_sample)
        return Form(CheckedField(inner, self.counter), state, unpack)

    @lazy
    def layers(self) -> LayerStack | None:
        """The field's layers, if it offers them and this problem can be solved with them."""
        if isinstance(self.z0, tuple) or isinstance(self.gradient, Adjoint):
            return None
        stack = layers_of(self.field, self.z0, lambda: self.clock.time(0.0))
        if stack is None:
            return None
        by_sample = self.per_sample or (self.points is not None and self.points.per_sample)
        return None if by_sample and stack.lead != 1 else stack

    def with_field(self, field: Callable[..., Any]) -> Problem:
        """The same problem with its field computed by another function of the same parameters."""
        gradient = self.gradient
        if isinstance(gradient, Adjoint):
            gradient = replace(gradient, params=gradient.parameters_of(self.field))
        return replace(self, field=field, gradient=gradient)


def layers_of(
    field: Callable[..., Any], z: Tensor, time: Callable[[], Tensor]
) -> LayerStack | None:
    """The layers of a field that may be computed instead of calling it at states like z, with the
    same gradients; None if there are none.
    """
    if not z.is_floating_point() or z.is_meta:
        return None
    if torch.is_autocast_enabled(z.device.type) or is_symbolic() or forward_ad._current_level >= 0:
        return None
    stack: LayerStack | None
    if hasattr(field, "layer_stack"):
        stack = field.layer_stack(z.shape)
    else:
        stack = find_layers(field, z, time)
    if stack is None or any(
        x.dtype != z.dtype or x.device != z.device for x in stack.layers[0][:2]
    ):
        return None
    return stack
