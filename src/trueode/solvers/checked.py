"""The field as solvers call it: calls are counted, and the first ones checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.solution import Counter

# The number of checked calls. The second shows whether a field overwrites what it returned first.
FIRST_CALLS = 2


class CheckedField:
    """Calls a field, counts its calls, and returns the derivative in the precision of the state.

    The first calls of a solve also check that the field neither changes its input nor overwrites
    what it returned before.

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
                overwrites what it returned before.
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
        given = z if self._watched else z.clone()  # the first state is the user's own tensor
        before = _Memory(given)
        try:
            value = self._field(t, given)
        except TypeError as failure:
            if not _takes_two(self._field):
                raise UsageError(
                    "The field must be a function of time and state, field(t, z). If yours takes "
                    "the state alone, pass lambda t, z: field(z)."
                ) from failure
            raise
        if before.has_changed():
            raise UsageError(
                "The field changed its input, the solver's state, in place: compute on new tensors "
                "(no inplace=True, no operations on the input that end in an underscore)."
            )
        if self._returned is not None and self._returned.has_changed():
            raise UsageError(
                "The field overwrote the tensor that it had returned before, which the solver "
                "still needs: return a new tensor, such as a .clone()."
            )
        self._watched += 1
        self._returned = (
            _Memory(value) if isinstance(value, Tensor) and self._watched < FIRST_CALLS else None
        )
        return value


def fitted(value: Any, z: Tensor) -> Tensor:
    """The value of a field, checked to be a derivative of the state, in the state's dtype.

    Raises:
        UsageError: it is not a derivative of the state.
    """
    if not isinstance(value, Tensor):
        kind = "None: is a return missing?" if value is None else f"{type(value).__name__}."
        raise UsageError(
            f"The field must return a tensor of the state's shape {tuple(z.shape)}; "
            f"it returned {kind}"
        )
    if value.shape != z.shape:
        raise UsageError(
            f"The field returned shape {tuple(value.shape)} for a state of shape {tuple(z.shape)}: "
            "the derivative must have the shape of the state."
        )
    if value.is_complex() and not z.is_complex():
        raise UsageError(
            "The field returned complex numbers for a real state: make the state complex, or use "
            "real and imaginary parts as two real components."
        )
    if value.device != z.device:
        raise UsageError(
            f"The field returned a tensor on {value.device} for a state on {z.device}: "
            "move the field or the state."
        )
    return value.to(z.dtype)  # may differ, for instance under autocast


class _Memory:
    """Remembers a tensor, to see later whether it was overwritten."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        # tensors of inference mode have no version counter
        self._copy = x.clone() if x.is_inference() else None
        self._version = 0 if x.is_inference() else x._version

    def has_changed(self) -> bool:
        if self._copy is None:
            return self._x._version != self._version
        return not torch.allclose(self._x, self._copy, rtol=0.0, atol=0.0, equal_nan=True)


def is_symbolic() -> bool:
    """Whether tensors may have no values to look at: under torch.func, and during tracing."""
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
    except ValueError:  # some built-in functions have no known signature
        return True
    return True
