"""The field as solvers call it: counted, and checked when a solve begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.solution import Counter

FIRST_CALLS = (
    2  # are watched: the second one shows whether a field writes into what it has returned
)


class CheckedField:
    """Calls a field, counts its calls, and gives the derivative in the precision of the state.

    The first calls of a solve also show whether the field changes its input, or returns the same
    memory again.

    Args:
        field: the field, ``field(t, z)``.
        counter: counts the calls.
    """

    def __init__(self, field: Callable[..., Any], counter: Counter) -> None:
        self._field, self._counter = field, counter
        self._watched = FIRST_CALLS if is_symbolic() else 0
        self._returned: _Memory | None = None

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """The derivative at a state, of its shape and dtype.

        Raises:
            UsageError: the field does not return a derivative of the state, changes its input, or
                returns memory again.
        """
        self._counter.add()
        value = (
            self._field(t, z)
            if self._watched >= FIRST_CALLS or z.is_meta
            else self._call_watched(t, z)
        )
        if (
            not isinstance(value, Tensor)
            or value.dtype != z.dtype
            or value.shape != z.shape
            or value.device != z.device
        ):
            return fitted(value, z)
        return value

    def _call_watched(self, t: Tensor, z: Tensor) -> Any:
        given = z if self._watched else z.clone()  # the first one is the user's own
        before = _Memory(given)
        try:
            value = self._field(t, given)
        except TypeError as failure:
            if not _takes_two(self._field):
                raise UsageError(
                    "The field must be a function of time and state, field(t, z): wrap one of the state alone as "
                    "lambda t, z: field(z)."
                ) from failure
            raise
        if before.has_changed():
            raise UsageError(
                "The field changed the state that it was given in place, and so the solver's own: compute on new tensors (no "
                "inplace=True, no operations that end in an underscore on the input)."
            )
        if self._returned is not None and self._returned.has_changed():
            raise UsageError(
                "The field wrote into the tensor that it had returned before, which the solver still needs: return a new "
                "tensor, for instance a .clone()."
            )
        self._watched += 1
        self._returned = (
            _Memory(value) if isinstance(value, Tensor) and self._watched < FIRST_CALLS else None
        )
        return value


def fitted(value: Any, z: Tensor) -> Tensor:
    """What a field returned as a derivative of the state: of its shape, in its dtype.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, Tensor):
        kind = "None: is a return missing?" if value is None else f"{type(value).__name__}."
        raise UsageError(
            f"The field must return a tensor of the state's shape {tuple(z.shape)}; it returned {kind}"
        )
    if value.shape != z.shape:
        raise UsageError(
            f"The field returned shape {tuple(value.shape)} for a state of shape {tuple(z.shape)}: "
            "the derivative must have the shape of the state."
        )
    if value.is_complex() and not z.is_complex():
        raise UsageError(
            "The field returned complex numbers for a real state: make the state complex, or carry real and imaginary parts as "
            "two real components."
        )
    if value.device != z.device:
        raise UsageError(
            f"The field returned a tensor on {value.device} for a state on {z.device}: move the field or the state."
        )
    return value.to(z.dtype)  # under autocast, for instance: the state keeps its own


class _Memory:
    """A tensor, and whether it was written into since."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._copy = (
            x.clone() if x.is_inference() else None
        )  # tensors of inference mode count no versions
        self._version = 0 if x.is_inference() else x._version

    def has_changed(self) -> bool:
        if self._copy is None:
            return self._x._version != self._version
        return not torch.allclose(self._x, self._copy, rtol=0.0, atol=0.0, equal_nan=True)


def is_symbolic() -> bool:
    """Whether tensors stand for others, so that values cannot be asked for: under torch.func, and
    while a program is traced.
    """
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.compiler.is_compiling()
    )


def _takes_two(field: Callable[..., Any]) -> bool:
    try:
        inspect.signature(field.forward if isinstance(field, torch.nn.Module) else field).bind(
            None, None
        )
    except TypeError:
        return False
    except ValueError:  # no signature is known, as of some built-in functions
        return True
    return True
