"""The solves of a model: what it asked for, and what was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.solvers import Adaptive, FixedStep, Solver

MOST_NAMED = 3  # solvers of a model that are all named
Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FoundSolver:
    """The solver that a call of a library asked for.

    Attributes:
        library: name of the library.
        method: the library's own name of the method, e.g. ``"rk4"``.
        settings: plain values, as far as they are known: ``rtol``, ``atol`` (the smallest, where
            there are several), ``step_size`` (the mean one, where steps differ), ``n_times`` and
            the library's own.
        adaptive: whether steps are chosen by an estimate of the error.
        order: of the method; 0 where it varies.
        name: the same method's name in ``catalog.METHODS``, None where there is none. An embedded
            method is the same if it advances the same solution; estimates of its error differ.
        blocks: the solvers of a model's ODE blocks, where they differ.
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
        """The relative tolerance; NaN where there is none."""
        return float(self.settings.get("rtol", nan))

    @property
    def label(self) -> str:
        """The method by its name here, if it is one of ours with one tolerance; else as its library
        names it.
        """
        if self.adaptive and self.settings.get("atol", self.rtol) != self.rtol:
            return str(self)  # rows of ours have one
        return self.name or f"{self.library} {self.method}".strip()

    def ours(self, n_steps: float) -> Solver | None:
        """The same as one of our solvers; None where there is none: each library controls steps in
        another way.
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
    """The solver of a model; where its ODE blocks have different ones, all of them, and each is in
    ``blocks``.
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
    """An initial value problem that a model posed.

    Attributes:
        field: called with a time (a tensor without dimension) and a state of the shape of ``z0``.
        z0: the initial state.
        times: ``(times,)``, ascending; the first is the start, the last the end; states are wanted
            at all of them.
        breaks: further times at which steps must end, because the field may jump there.
        samples: whether the first dimension of ``z0`` counts samples. Not so for the flat states
            that tuples become, and for states of one dimension.
        found: the solver that the model asked for.
    """

    field: Field
    z0: Tensor
    times: Tensor
    breaks: tuple[float, ...]
    samples: bool
    found: FoundSolver


@dataclass(frozen=True)
class Solved:
    """One solve, of the library's own solver or of the one in its place.

    Attributes:
        found: the solver that the model asked for.
        nfe: field evaluations for a sample, mean over the samples.
        n_steps: accepted steps, likewise; NaN where the library does not tell.
        n_rejected: rejected steps, likewise.
        length: of the interval, mean over the samples.
        status: ``"success"``, ``"max_steps"``, ``"step_underflow"``, ``"non_finite"`` or
            ``"failed"``.
        message: what happened, for a failure.
        final: the state at the end, samples first; None where its first dimension does not count
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
"""Solves a problem: the states ``(times, *z0.shape)``, of which the first is ``z0``, and what was
done.
"""


def with_times(call: Field, times: Tensor, z0: Tensor) -> Field:
    """A field whose times come in the dtype of a library's times, or in that of the state if it is
    wider.

    A solver hands out times in the dtype of the state. Where a library's times are narrower than
    its state, a model of single precision is run in double precision.
    """
    dtype = torch.promote_types(times.dtype, z0.dtype)

    def timed(t: Tensor, z: Tensor) -> Tensor:
        return call(t.to(dtype), z)

    return timed


def status_of(states: Tensor, found: FoundSolver) -> tuple[str, str]:
    """Status and message of a library's own solve that ended, by its states."""
    mapped = torch._C._are_functorch_transforms_active()  # there a value cannot be asked for
    if mapped or bool(states.detach().isfinite().all()):
        return "success", ""
    return "non_finite", f"The solve with {found} reached a state that is not finite."


def has_samples(z0: Tensor) -> bool:
    """Whether the first dimension of a state that a model gave as a tensor counts samples: if there
    is another one.
    """
    return z0.dim() > 1


def plain_tolerance(value: Any) -> float:
    """A tolerance as a number: the smallest one, where there is one for each number of the state."""
    return float(value.min()) if isinstance(value, Tensor) else float(value)
