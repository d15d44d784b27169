"""The solves of a model: the problem and solver that it requested, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.solvers import Adaptive, FixedStep, Solver

MOST_NAMED = 3  # at most this many solvers of a model are named
Field = Callable[[Tensor, Tensor], Tensor]
Event = Callable[[Tensor, Tensor], Tensor]
"""``event(t, z)`` is a number that changes its sign where a solve ends."""


@dataclass(frozen=True)
class FoundSolver:
    """The solver that a call of a library requested.

    Attributes:
        library: name of the library.
        method: the library's name of the method, e.g. ``"rk4"``.
        settings: the known settings as plain values: ``rtol``, ``atol`` (the smallest of several),
            ``step_size`` (the mean if steps differ), ``n_times`` and settings particular to the
            library.
        adaptive: whether an error estimate controls the steps.
        order: order of the method; 0 if it varies.
        name: name of the same method in ``catalog.METHODS``; None if it is not there. Embedded
            methods are the same if they advance the same solution; error estimates may differ.
        blocks: the solvers of the model's ODE blocks, if they differ.
    """

    library: str
    method: str
    settings: dict[str, Any] = field(hash=False)
    adaptive: bool
    order: int
    name: str | None
    blocks: tuple[FoundSolver, ...] = ()

    @property
    def rtol(self) -> float:
        """The relative tolerance; NaN if there is none."""
        return float(self.settings.get("rtol", nan))

    @property
    def label(self) -> str:
        """Name of the method in ``catalog.METHODS``, if it is there and has a single tolerance;
        else its name in the library.
        """
        if self.adaptive and self.settings.get("atol", self.rtol) != self.rtol:
            return str(self)  # a row of the table has one tolerance
        return self.name or f"{self.library} {self.method}".strip()

    def ours(self, n_steps: float) -> Solver | None:
        """The equivalent solver of this package; None if there is none, because each library
        controls adaptive steps differently.
        """
        if not self.adaptive:
            return FixedStep(self.name, n_steps=max(1, round(n_steps))) if self.name else None
        if self.library != "trueode" or not self.name:
            return None
        return Adaptive(
            self.name,
            self.rtol,
            self.settings["atol"],
            per_sample=bool(self.settings.get("per_sample")),
        )

    def __str__(self) -> str:
        settings, text = self.settings, self.method
        if self.library not in ("trueode", ""):
            text = f"{self.library} {text}"
        if not self.adaptive:
            return f"{text}, h = {settings['step_size']:.6g}" if "step_size" in settings else text
        rtol, atol = settings.get("rtol"), settings.get("atol")
        if rtol is None or atol is None:
            return text
        return (
            f"{text}, tol = {rtol:.3g}"
            if rtol == atol
            else f"{text}, tol = {rtol:.3g} (rel), {atol:.3g} (abs)"
        )


def together(found: Sequence[FoundSolver]) -> FoundSolver:
    """Describe the solver of a model. If its ODE blocks use different ones, the description names
    them, and ``blocks`` holds each.
    """
    texts = list(dict.fromkeys(map(str, found)))
    if len(texts) == 1:
        return found[0]
    text, first = " and ".join(texts), found[0]
    if len(texts) > MOST_NAMED:
        methods = dict.fromkeys(f"{each.library} {each.method}" for each in found)
        sizes = [
            x
            for each in found
            if (x := each.settings.get("rtol" if each.adaptive else "step_size"))
        ]
        between = (
            f", {'tol' if first.adaptive else 'h'} = {min(sizes):.3g} to {max(sizes):.3g}"
            if sizes
            else ""
        )
        text = f"{len(found)} solves with {', '.join(list(methods)[:MOST_NAMED])}{between}"
    return FoundSolver(
        "",
        text,
        {"rtol": first.rtol},
        first.adaptive,
        max(each.order for each in found),
        None,
        tuple(found),
    )


@dataclass(frozen=True)
class ForeignProblem:
    """An initial value problem posed by a model.

    Attributes:
        field: called with a time (a scalar tensor) and a state of the shape of ``z0``.
        z0: the initial state.
        times: ``(times,)``, ascending from the start to the end: the times at which the model
            requests states.
        breaks: further times at which steps must end, because the field may jump there.
        samples: whether the first dimension of ``z0`` counts samples; False for states of one
            dimension, and for tuples that the library flattened.
        found: the solver that the model requested.
        event: if given, the solve ends where it changes its sign; ``times`` is then the start,
            twice.
    """

    field: Field
    z0: Tensor
    times: Tensor
    breaks: tuple[float, ...]
    samples: bool
    found: FoundSolver
    event: Event | None = None


@dataclass(frozen=True)
class Solved:
    """The outcome of one solve, by the library's solver or its replacement.

    Attributes:
        found: the solver that the model requested.
        nfe: field evaluations per sample, mean over the samples.
        n_steps: accepted steps, mean over the samples; NaN if the library does not count them.
        n_rejected: rejected steps, in the same way.
        length: length of the interval, mean over the samples.
        status: ``"success"``, ``"max_steps"``, ``"step_underflow"``, ``"non_finite"`` or
            ``"failed"``.
        message: description of a failure.
        final: the state at the end, samples first; None if its first dimension does not count
            samples.
    """

    found: FoundSolver
    nfe: float
    n_steps: float
    n_rejected: float
    length: float
    status: str = "success"
    message: str = ""
    final: Tensor | None = field(default=None, repr=False, compare=False)


Replacement = Callable[[ForeignProblem], tuple[Tensor, Solved]]
"""Solves a problem: returns the states ``(times, *z0.shape)``, starting with ``z0``, and the
outcome.
"""


def with_times(call: Field, times: Tensor, z0: Tensor) -> Field:
    """Wrap a field to receive times in the dtype that its library would pass.

    A solver of this package passes times in the dtype of the state. The wrapped field gets them in
    the dtype of the library's times, or in that of the state if this is wider, as in a model
    of single precision that is run in double precision.
    """
    dtype = torch.promote_types(times.dtype, z0.dtype)

    def timed(t: Tensor, z: Tensor) -> Tensor:
        return call(t.to(dtype), z)

    return timed


def status_of(states: Tensor, found: FoundSolver) -> tuple[str, str]:
    """Status and message of a completed solve of a library, judged by its states."""
    mapped = torch._C._are_functorch_transforms_active()  # values cannot be read inside a transform
    if mapped or bool(states.detach().isfinite().all()):
        return "success", ""
    return "non_finite", f"The solve with {found} reached a state that is not finite."


def has_samples(z0: Tensor) -> bool:
    """Whether the first dimension of a state tensor counts samples: yes if it has another one."""
    return z0.dim() > 1


def plain_tolerance(value: Any) -> float:
    """A tolerance as a number: the smallest, if each number of the state has its own."""
    return float(value.min()) if isinstance(value, Tensor) else float(value)
