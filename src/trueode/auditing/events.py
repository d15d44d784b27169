"""Solves that end at an event: where a function of time and state changes its sign."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.auditing.problem import ForeignProblem, Replacement, Solved
from trueode.solvers import Adaptive
from trueode.solvers.problem import Problem
from trueode.solvers.solving import solve_problem

TOLERANCE = {torch.float64: 1e-10}  # of the exact solution near an event
ROUGHEST = 1e-6  # the same in other precisions
LOOKS = 16  # times in a stretch at which the sign is looked at
STRETCHES = 60  # each is twice as long as the one before
CLOSE = 1e-6  # part of the interval in which the solution is straight
NEWTON = 3  # steps
SHORTEST = 1e4  # roundings of a time: shorter ways are straight
MOST_STEPS = 5_000  # in which a stretch must be solved


class _Place(NamedTuple):
    time: float
    state: Tensor


def up_to_event(solve: Replacement) -> Replacement:
    """Extend a replacement to problems that end at an event.

    The exact solution gives the interval, on which ``solve`` takes its steps. From the state that
    it reaches, the exact solution leads forwards or back to the event. So each solver has its own
    event, whose error is that of its state.

    Args:
        solve: the replacement for problems with a known interval.

    Returns:
        The replacement. For an event it returns the states at the start and at the event. The
        length of its outcome is the time between both. If there is no event, the last state and
        the length are NaN.
    """

    def solved(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        return solve(problem) if problem.event is None else _solve(solve, problem)

    return solved


def _solve(solve: Replacement, problem: ForeignProblem) -> tuple[Tensor, Solved]:
    begin = _Place(float(problem.times[0]), problem.z0)
    near = _follow(problem, begin)
    if near is None:
        return _lost(problem, Solved(problem.found, 0, 0, 0, 0.0))
    times = problem.times.new_tensor([begin.time, near.time], dtype=torch.float64)
    states, outcome = solve(replace(problem, times=times, event=None))
    end = None
    if bool(states[-1].isfinite().all()):
        reached = _Place(near.time, states[-1])
        end = _along(problem, reached, CLOSE * (near.time - begin.time))
        if end is None:
            passed = _value(problem, begin) * _value(problem, reached)
            end = _follow(problem, reached, back=passed < 0)
    if end is None or end.time < begin.time:
        return _lost(problem, outcome)
    return torch.stack([problem.z0, end.state]), replace(outcome, length=end.time - begin.time)


def _lost(problem: ForeignProblem, outcome: Solved) -> tuple[Tensor, Solved]:
    lost = torch.full_like(problem.z0, torch.nan)
    status = outcome.status if outcome.status != "success" else "failed"
    message = outcome.message or f"The solve with {problem.found} reaches no event."
    return torch.stack([problem.z0, lost]), replace(
        outcome, length=torch.nan, status=status, message=message
    )


def _along(problem: ForeignProblem, place: _Place, most: float) -> _Place | None:
    """The event on the tangent, by Newton's method; None if it is further away than ``most``."""
    slope, away = problem.field(_time(problem, place.time), place.state), 0.0

    def at(away: float) -> _Place:
        return _Place(place.time + away, place.state + away * slope)

    for _ in range(NEWTON):
        value = _value(problem, at(away))
        if value == 0:
            break
        rate = (_value(problem, at(away + most)) - value) / most
        away -= value / rate if rate else inf
        if not abs(away) <= most:
            return None
    return at(away)


def _follow(problem: ForeignProblem, begin: _Place, back: bool = False) -> _Place | None:
    """Follow the exact solution to the first event, forwards or back; None if there is none."""
    rate = float(problem.field(_time(problem, begin.time), begin.state).abs().amax())
    stretch = 0.1 * (1 + float(begin.state.abs().amax())) / max(rate, 1e-3)
    here, before = begin, _value(problem, begin)
    for _ in range(STRETCHES):
        end = here.time + (-stretch if back else stretch)
        times = torch.linspace(here.time, end, LOOKS + 1, dtype=torch.float64, device="cpu")[1:]
        states = _exact(problem, here, times)
        if states is None:
            return None
        for time, state in zip(times.tolist(), states, strict=True):
            there = _Place(time, state)
            after = _value(problem, there)
            if before * after <= 0 and before:
                return _between(problem, here, there)
            here, before = there, after
        stretch *= 2
    return None


def _between(problem: ForeignProblem, here: _Place, there: _Place) -> _Place:
    """Find the event between two places of the exact solution by Brent's method."""
    from scipy.optimize import brentq

    def at(time: float) -> _Place:
        if time in (here.time, there.time):
            return here if time == here.time else there
        times = torch.tensor([time], dtype=torch.float64, device="cpu")
        states = _exact(problem, here, times)
        return _Place(time, there.state if states is None else states[0])

    finest = 4 * torch.finfo(torch.float64).eps
    time = brentq(
        lambda time: _value(problem, at(time)), here.time, there.time, xtol=1e-13, rtol=finest
    )
    return at(float(time))


def _exact(problem: ForeignProblem, begin: _Place, times: Tensor) -> Tensor | None:
    """The states of the exact solution at times after ``begin``; None if a solve fails."""
    eps = torch.finfo(begin.state.dtype).eps
    if abs(float(times[-1]) - begin.time) < SHORTEST * eps * max(abs(begin.time), 1.0):
        ahead = (times - begin.time).to(begin.state)
        slope = problem.field(_time(problem, begin.time), begin.state)
        return begin.state + ahead.view(-1, *[1] * begin.state.dim()) * slope
    tolerance = TOLERANCE.get(begin.state.dtype, ROUGHEST)
    solver = Adaptive("dopri5", tolerance, tolerance, max_steps=MOST_STEPS, breaks=problem.breaks)
    span = (begin.time, float(times[-1]))
    found = solve_problem(Problem(problem.field, begin.state, span, solver=solver, save_at=times))
    return found.zs if found.status == "success" else None


def _value(problem: ForeignProblem, place: _Place) -> float:
    assert problem.event is not None
    return float(problem.event(_time(problem, place.time), place.state))


def _time(problem: ForeignProblem, time: float) -> Tensor:
    return problem.z0.new_tensor(time)
