"""Another solver in the place of those that a model calls, for a while and without touching its code."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from trueode.errors import SolveError, UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.solve import direct_solve

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FoundSolver:
    """The solver that a call of a library asked for.

    Attributes:
        library: name of the library.
        method: the library's own name of the method, e.g. ``"rk4"``.
        settings: plain values, as far as they are known: ``rtol``, ``atol`` (the smallest, where there are several),
            ``step_size`` (the mean one, where steps differ), ``n_times`` and the library's own.
        adaptive: whether steps are chosen by an estimate of the error.
        order: of the method; 0 where it varies.
        name: the same method's name in ``catalog.METHODS``, None where there is none. An embedded method is the same if
            it advances the same solution; estimates of its error differ.
    """

    library: str
    method: str
    settings: dict[str, Any] = field(hash=False)
    adaptive: bool
    order: int
    name: str | None

    def __str__(self) -> str:
        settings, text = self.settings, self.method
        if self.library != "trueode":
            text = f"{self.library} {text}"
        if not self.adaptive:
            return f"{text}, h = {settings['step_size']:.6g}" if "step_size" in settings else text
        rtol, atol = settings.get("rtol"), settings.get("atol")
        if rtol is None or atol is None:
            return text
        return f"{text}, tol = {rtol:.3g}" if rtol == atol else f"{text}, tol = {rtol:.3g} (rel), {atol:.3g} (abs)"


@dataclass(frozen=True)
class Problem:
    """An initial value problem that a model posed.

    Attributes:
        field: called with a time (a tensor without dimension) and a state of the shape of ``z0``.
        z0: the initial state.
        times: ``(times,)``, ascending; the first is the start, the last the end; states are wanted at all of them.
        breaks: further times at which steps must end, because the field may jump there.
        samples: whether the first dimension of ``z0`` counts samples. Not so for the flat states that tuples become, and
            for states of one dimension.
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
        status: ``"success"``, ``"max_steps"``, ``"step_underflow"``, ``"non_finite"`` or ``"failed"``.
        message: what happened, for a failure.
        final: the state at the end, samples first; None where its first dimension does not count samples.
    """

    found: FoundSolver
    nfe: float
    n_steps: float
    n_rejected: float
    length: float
    status: str = "success"
    message: str = ""
    final: Tensor | None = field(default=None, repr=False, compare=False)


Replacement = Callable[[Problem], tuple[Tensor, Solved]]
"""Solves a problem: the states ``(times, *z0.shape)``, of which the first is ``z0``, and what was done."""


class Session:
    """What the hooks in a library ask and tell while a block is open.

    Args:
        replacement: solves in the place of the library; None: the library solves.
    """

    def __init__(self, replacement: Replacement | None) -> None:
        self.replacement = replacement
        self.solves: list[Solved] = []
        self._owner: int | None = threading.get_ident()

    def is_mine(self) -> bool:
        """Whether the block is open and the calling thread opened it; other solves are left alone."""
        return threading.get_ident() == self._owner

    def close(self) -> None:
        """From now on no solve is its own, also where something kept a hook."""
        self._owner = None

    @property
    def replaces(self) -> bool:
        """Whether solves are replaced."""
        return self.replacement is not None

    def solve(self, problem: Problem) -> tuple[Tensor, Solved]:
        """Solve a problem in the place of the library, and note it.

        Raises:
            UsageError: the replacement returned states of another shape than ``(times, *z0.shape)``.
        """
        assert self.replacement is not None
        states, solved = self.replacement(problem)
        shape = (len(problem.times), *problem.z0.shape)
        if states.shape != shape:
            raise UsageError(f"The replacement returned states of shape {tuple(states.shape)}; needed is {shape}.")
        self.note(solved, states[-1] if problem.samples else None)
        return states, solved

    def note(self, solved: Solved, final: Tensor | None) -> None:
        """Note a solve with its final state, if that has a dimension of samples."""
        self.solves.append(replace(solved, final=None if final is None else final.detach()))


@dataclass(frozen=True)
class Library:
    """A library whose solves can be seen.

    Attributes:
        name: of the distribution.
        module: the public module that is loaded where the library's solvers can be called.
        patched: a block in which its solves go through a session.
        probe: solve z' = -z, z(0) = 1 up to 1 by the library's public function, with one step of its Euler method; its
            final state.
    """

    name: str
    module: str
    patched: Callable[[Session], AbstractContextManager[None]]
    probe: Callable[[], Tensor]


_OPEN = threading.Lock()
_owner: int | None = None


@contextmanager
def recorded() -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is noted in the list that it gives; the libraries' solvers run untouched.

    Raises:
        UsageError: another such block is open, or the installed version of a library is not known here.
    """
    with _block(None) as solves:
        yield solves


@contextmanager
def replaced(replacement: Replacement) -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is done by ``replacement``, and noted in the list that it gives.

    It is meant for forward passes. Gradients do not flow to times; the backward pass of a library's adjoint, which solves
    again, is replaced if it runs inside of the block, and the library's own after it.

    Args:
        replacement: solves the problems; see `in_place`.

    Raises:
        UsageError: another such block is open; the installed version of a library is not known here; or, from inside of
            the block, a solve is not that of an initial value problem (events, callbacks, hypersolvers, …).
    """
    with _block(replacement) as solves:
        yield solves


@contextmanager
def _block(replacement: Replacement | None) -> Iterator[list[Solved]]:
    global _owner
    if not _OPEN.acquire(blocking=False):
        if _owner == threading.get_ident():
            raise UsageError("Audits cannot be nested: end the one that is running before another one starts.")
        raise UsageError("Another thread is auditing, and what it replaces is shared: run one audit after the other.")
    _owner = threading.get_ident()
    try:
        session, libraries = Session(replacement), _libraries()
        loaded = [library for library in libraries if library.module in sys.modules]
        with ExitStack() as stack:
            stack.callback(session.close)
            stack.enter_context(_eager())
            for library in loaded:
                _hook(library, session, stack)
            yield session.solves
        late = [x.name for x in libraries if x.module in sys.modules and x not in loaded]
        if late:
            raise UsageError(
                f"{' and '.join(late)} was imported while the model ran, too late for its solves to be seen: import it, or "
                "call the model once, before the audit."
            )
    finally:
        _owner = None
        _OPEN.release()


def _libraries() -> tuple[Library, ...]:
    from trueode.auditing.libraries import LIBRARIES  # these import this module

    return LIBRARIES


def _eager() -> AbstractContextManager[Any]:
    """Compiled models run as they were written: compiled code would not pass by the hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled then, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _hook(library: Library, session: Session, stack: ExitStack) -> None:
    """Patch a library and see that its solves come by."""
    try:
        stack.enter_context(library.patched(session))
        fault = _fault(library, session)
    except Exception as failure:
        raise UsageError(_unsupported(library, f"{type(failure).__name__}: {failure}")) from failure
    if fault:
        raise UsageError(_unsupported(library, fault))


def _fault(library: Library, session: Session) -> str | None:
    """What is wrong with a solve of a tiny problem; None if nothing is. It leaves no traces in the session."""
    kept = session.replacement, session.solves
    expected, nfe = (0.5, 2) if session.replaces else (0.0, 1)  # of the midpoint, and of the library's Euler method
    session.replacement = in_place(FixedStep("midpoint", n_steps=1)) if session.replaces else None
    session.solves = []
    try:
        with torch.no_grad():
            final = float(library.probe())
        seen = session.solves
    finally:
        session.replacement, session.solves = kept
    if len(seen) != 1:
        return f"of a solve of its public function {len(seen)} were seen"
    if abs(final - expected) > 1e-6 or seen[0].nfe != nfe or seen[0].n_steps != 1:
        return (
            f"a solve gave {final:g} after {seen[0].nfe:g} evaluations in {seen[0].n_steps:g} steps, expected was "
            f"{expected:g} after {nfe} in 1"
        )
    return None


def _unsupported(library: Library, reason: str) -> str:
    try:
        number = version(library.name)
    except PackageNotFoundError:
        number = "(unknown version)"
    return (
        f"{library.name} {number} is not supported by this version of trueode: {reason}. Take a newer trueode or another "
        f"version of {library.name}, or pass the field itself, as NeuralODE(field, …)."
    )


def in_place(solver: Solver) -> Replacement:
    """A solver of this package in the place of a model's.

    Steps end at all times at which states are wanted and at all breaks, so no state of a solver with given steps is
    interpolated: ``FixedStep(n_steps=N)`` takes, on an interval of length T, equal steps of at most T / N between these
    times, ``FixedStep(step_size=h)`` of at most h; `OnGrid` adds them to its grid. `Adaptive` solves from break to break,
    with dense output at the times between; it never looks at single samples, because a field may depend on the whole
    batch. A solve that fails is noted with its status, and its states are NaN from there.

    Args:
        solver: takes the steps.

    Raises:
        UsageError: the solver has a grid for each sample.
    """
    if isinstance(solver, Adaptive):
        solver = replace(solver, per_sample=False)
    elif isinstance(solver, OnGrid) and solver.per_sample:
        raise UsageError(f"{solver} has a grid for each sample, which a model's samples need not fit: use Adaptive.")

    def stand_in(problem: Problem) -> tuple[Tensor, Solved]:
        return _solve(solver, problem)

    return stand_in


@dataclass
class _Tally:
    nfe: int = 0
    n_steps: int = 0
    n_rejected: int = 0
    status: str = "success"
    message: str = ""


def _solve(solver: Solver, problem: Problem) -> tuple[Tensor, Solved]:
    z0 = problem.z0
    if not z0.is_floating_point():
        raise UsageError(f"The model solves for a state of {z0.dtype}; only real floating point states can be audited.")
    times = problem.times.detach().to("cpu", torch.float64).tolist()
    tally, reached = _Tally(), {times[0]: z0}
    z = z0
    try:
        for segment, steps in _plan(solver, problem, times):
            z = _advance(segment, steps, problem, z, reached, tally)
            if tally.status != "success":
                break
    except SolveError as failure:
        tally.status, tally.message = failure.status, str(failure)
    missing = torch.full_like(z0, float("nan"))
    states = torch.stack([reached.get(t, missing) for t in times])
    length = times[-1] - times[0]
    return states, Solved(problem.found, length=length, **vars(tally))


@dataclass(frozen=True)
class _Segment:
    """A part of the interval without breaks inside: its start, the times in it, its end; whether its ends are breaks."""

    times: tuple[float, ...]
    breaks: tuple[bool, bool]


def _plan(solver: Solver, problem: Problem, times: Sequence[float]) -> list[tuple[_Segment, Solver]]:
    """The segments, with what takes the steps on each.

    Raises:
        SolveError: more steps would be needed than are allowed.
    """
    segments = _segments(times, problem)
    if isinstance(solver, Adaptive):
        return [(segment, solver) for segment in segments]
    inner = _steps_between(solver, times[0], times[-1])
    plan: list[tuple[_Segment, Solver]] = []
    for segment in segments:
        start, end = segment.times[0], segment.times[-1]
        grid = [start]
        for left, right in pairwise(segment.times):
            grid += [*inner(left, right), right]
        # the same operations as for the times that are saved: grid points and these agree to the last bit
        plan.append((segment, OnGrid(solver.tableau, tuple((t - start) / (end - start) for t in grid))))
    most = solver.max_steps if isinstance(solver, FixedStep) else None
    total = sum(len(steps.grid) - 1 for _, steps in plan if isinstance(steps, OnGrid))
    if most is not None and total > most:
        raise SolveError(f"{solver} would need {total} steps, more than max_steps = {most}.", "max_steps")
    return plan


def _segments(times: Sequence[float], problem: Problem) -> list[_Segment]:
    start, end = times[0], times[-1]
    near = 8 * torch.finfo(problem.times.dtype).eps * max(abs(start), abs(end))
    marks = set[float]()
    for mark in problem.breaks:
        closest = min(times, key=lambda t, mark=mark: abs(t - mark))  # type: ignore[misc]
        mark = closest if abs(closest - mark) <= near else mark
        if start < mark < end:
            marks.add(mark)
    points, knots = sorted({*times, *marks}), [start, *sorted(marks), end]
    return [
        _Segment(tuple(points[bisect_left(points, a) : bisect_right(points, b)]), (a in marks, b in marks))
        for a, b in pairwise(knots)
        if a < b
    ]


def _steps_between(solver: FixedStep | OnGrid, start: float, end: float) -> Callable[[float, float], list[float]]:
    """Where steps end between two times."""
    length = end - start
    if isinstance(solver, OnGrid):
        ends = sorted({start + theta * length for theta in solver.grid if isinstance(theta, float)})
        return lambda left, right: ends[bisect_right(ends, left) : bisect_left(ends, right)]
    h = solver.step_size if solver.step_size is not None else length / (solver.n_steps or 1)
    if h == 0:  # an interval of length zero
        return lambda left, right: []
    equal = FixedStep(solver.tableau, step_size=h)
    # times are often rounded to single precision, whatever their dtype is by now: that is no reason for one more step
    slack = min(8 * torch.finfo(torch.float32).eps * max(abs(start), abs(end)), 0.01 * h)

    def evenly(left: float, right: float) -> list[float]:
        n = max(1, equal.count(max(right - left - slack, 0.0)))
        return [left + (right - left) * i / n for i in range(1, n)]

    return evenly


def _advance(
    segment: _Segment, solver: Solver, problem: Problem, z: Tensor, reached: dict[float, Tensor], tally: _Tally
) -> Tensor:
    """Solve on a segment from its first state, take down the states at its times, and return the last one."""
    start, *wanted = segment.times
    call = _one_sided(problem.field, segment, z) if any(segment.breaks) else problem.field
    solution = direct_solve(call, z, (start, wanted[-1]), solver=solver, save_at=wanted, on_failure="return")
    assert isinstance(solution.zs, Tensor)
    reached.update(zip(wanted, solution.zs.unbind(0), strict=True))
    tally.nfe += solution.nfe
    tally.n_steps += int(solution.n_steps)
    tally.n_rejected += int(solution.n_rejected)
    tally.status, tally.message = solution.status, solution.message
    return solution.zs[-1]


def _one_sided(call: Field, segment: _Segment, like: Tensor) -> Field:
    """The field as seen from inside of a segment, whose ends may be points where it jumps."""
    ends = torch.tensor([segment.times[0], segment.times[-1]], dtype=torch.float64).to(like.dtype)
    towards = torch.tensor([inf, -inf], dtype=like.dtype)
    first, last = torch.where(torch.tensor(segment.breaks), ends.nextafter(towards), ends).tolist()

    def one_sided(t: Tensor, z: Tensor) -> Tensor:
        return call(t.clamp(first, last), z)

    return one_sided


def with_times(call: Field, times: Tensor, z0: Tensor) -> Field:
    """A field whose times come in the dtype of a library's times, or in that of the state if it is wider.

    A solver hands out times in the dtype of the state. Where a library's times are narrower than its state, a model of
    single precision is run in double precision.
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
    """Whether the first dimension of a state that a model gave as a tensor counts samples: if there is another one."""
    return z0.dim() > 1


def plain_tolerance(value: Any) -> float:
    """A tolerance as a number: the smallest one, where there is one for each number of the state."""
    return float(value.min()) if isinstance(value, Tensor) else float(value)
