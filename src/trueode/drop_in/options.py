"""Options and tolerances of torchdiffeq, as solvers and error control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from trueode.drop_in.errors import ArgumentError
from trueode.errors import UsageError, calling

FIXED_OPTIONS = frozenset({"step_size", "grid_constructor", "interp", "perturb", "norm"})
ADAPTIVE_OPTIONS = frozenset(
    {"first_step", "min_step", "max_step", "max_num_steps", "step_t", "jump_t", "norm", "dtype"}
    | {"safety", "ifactor", "dfactor"}
)


def warn_of_others(options: Mapping[str, Any], known: Collection[str], method: str) -> None:
    """Warn of options that have no effect, as torchdiffeq does."""
    others = {name: value for name, value in options.items() if name not in known}
    if others:
        warnings.warn(
            f"{method}: Unexpected arguments {others}. They have no effect; known are "
            f"{', '.join(sorted(known))}.",
            stacklevel=5,  # the user's call
        )


def number(name: str, value: Any) -> float:
    """An option that is a number, or a tensor of one.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, (bool, str)):
        raise UsageError(f"options[{name!r}] must be a number, got {value!r}.")
    with calling(f"options[{name!r}] must be a number, got {value!r}"):
        return float(value)


def instants(options: Mapping[str, Any], times: list[float]) -> tuple[float, ...]:
    """The times ``step_t`` and ``jump_t`` at which steps end.

    Raises:
        UsageError: a time is repeated.
    """
    sign = 1 if times[-1] > times[0] else -1
    found = sorted(
        t
        for name in ("step_t", "jump_t")
        if options.get(name) is not None
        for t in torch.as_tensor(options[name], device="cpu").reshape(-1).tolist()
        if sign * t >= sign * times[0]
    )
    if len(set(found)) < len(found):
        raise UsageError("step_t and jump_t must not have any repeated elements between them.")
    return tuple(found)


def tolerance(name: str, value: Any, y0: Any) -> tuple[float, Tensor | float]:
    """The largest tolerance, and those of the components as shares of it.

    Args:
        name: ``"rtol"`` or ``"atol"``.
        value: a number, a tensor that broadcasts to the state, or, for a tuple state, one of these
            for each part.
        y0: the initial state.

    Raises:
        ArgumentError: it requires a gradient, or does not fit the state.
    """
    if isinstance(value, (int, float)):
        return value, 1.0
    if isinstance(value, Tensor) and value.requires_grad:
        raise ArgumentError(f"{name} cannot require a gradient: pass {name}.detach().")
    if not isinstance(value, (list, tuple)):
        value = _numbers(name, value)
        if not value.dim():
            return float(value), 1.0
    shares = _of_parts(name, value, y0) if isinstance(y0, tuple) else _fitting(name, value, y0)
    largest = float(shares.max()) if shares.numel() else 0.0
    if shares.numel() and not float(shares.min()) >= 0:
        raise UsageError(f"{name} must not be negative or NaN.")
    return (largest, shares / largest) if largest else (0.0, 1.0)


def _numbers(name: str, value: Any) -> Tensor:
    with calling(f"{name} must be a number or a tensor of numbers, got {value!r}"):
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def _fitting(name: str, value: Any, part: Tensor) -> Tensor:
    found = _numbers(name, value).to(part.device)
    sizes = zip(reversed(found.shape), reversed(part.shape), strict=False)
    if found.dim() > part.dim() or any(x not in (1, size) for x, size in sizes):
        raise ArgumentError(
            f"{name} of shape {tuple(found.shape)} does not fit a state of shape "
            f"{tuple(part.shape)}."
        )
    return found


def _of_parts(name: str, value: Any, y0: tuple[Tensor, ...]) -> Tensor:
    values = tuple(value)
    if len(values) != len(y0):
        raise ArgumentError(
            f"{name} has {len(values)} entries for the {len(y0)} parts of y0: give one for each "
            "part, or a single number."
        )
    return torch.cat(
        [
            _fitting(name, x, part.reshape(-1)).expand(part.numel())
            for x, part in zip(values, y0, strict=True)
        ]
    )


def state_norm(norm: Callable[..., Any] | None, y0: Any) -> Callable[[Tensor], Any] | None:
    """A norm of states as the solver holds them, from one of the user's states.

    For a tuple without a norm of the user's: the largest root mean square of its parts.
    """
    if not isinstance(y0, tuple):
        return norm
    shapes = [part.shape for part in y0]
    ends = list(accumulate(map(prod, shapes)))
    chosen = _largest if norm is None else norm

    def of_flat(x: Tensor) -> Any:
        pieces = zip([0, *ends], ends, shapes, strict=False)
        return chosen(tuple(x[i:j].view(shape) for i, j, shape in pieces))

    return of_flat


def _largest(parts: Iterable[Tensor]) -> float:
    sizes = [float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5 for x in parts if x.numel()]
    return max(sizes, key=lambda size: (size != size, size), default=0.0)  # NaN is the largest
