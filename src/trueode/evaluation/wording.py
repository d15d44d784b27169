"""Verdicts in words, the same for all commands and functions."""

from __future__ import annotations

from typing import Any

from trueode.evaluation.decision import Decision, Status
from trueode.evaluation.gain import Answer, Performance
from trueode.evaluation.statistics import percent


def shown(metric_name: str, value: float) -> str:
    """The value of a metric as text."""
    return percent(value) if metric_name == "accuracy" else f"{value:.4g}"


def sentence(
    decision: Decision, performance: Performance, solver: Any, what: str = "{}", advice: str = ""
) -> str:
    """The verdict in one sentence.

    Args:
        decision: the decision on the predictions.
        performance: the comparison of the metric.
        solver: the training solver.
        what: a description of the metric, where ``{}`` stands for its name.
        advice: a solver to take instead of one that is too coarse.
    """
    name = performance.name
    head = ""
    if performance.own == performance.own:
        exact = (
            f"; {shown(name, performance.exact)} under the exact flow"
            if performance.exact == performance.exact
            else ""
        )
        head = f"{what.format(name)} {shown(name, performance.own)} with {solver}{exact}: "
    return head + _verdict(decision, performance, advice)


def _verdict(decision: Decision, performance: Performance, advice: str) -> str:
    counts = decision.counts
    if counts.trajectory is not None and decision.status is not Status.INCONCLUSIVE:
        return _along(decision)
    if decision.status is Status.INCONCLUSIVE:
        return f"undecided whether this model is an ODE: {decision.reason}"
    changed = _changed(decision)
    if decision.status is Status.ODE:
        bound = (
            ""
            if not decision.level
            else f", at most {percent(decision.upper)} with {_confidence(decision)} confidence"
        )
        return f"this model behaves as an ODE ({changed}{bound})"
    what = "accuracy" if performance.name == "accuracy" else "error"
    take = f": take {advice}" if advice else ""
    if performance.answer is Answer.SOLVER:
        return f"this model is NOT an ODE, it uses its solver's error ({changed})"
    if performance.answer is Answer.EXACT:
        return (
            "the solver of this model is too coarse, it is better when it is solved finely "
            f"({changed}){take}"
        )
    if performance.answer is Answer.SAME:
        return (
            f"the predictions of this model depend on its solver, its {what} does not "
            f"({changed}){take}"
        )
    known = ""
    if performance.lower == performance.lower:
        lower, upper = percent(performance.lower), percent(performance.upper)
        known = f": it gains between {lower} and {upper} by it"
    return (
        f"the predictions of this model depend on its solver ({changed}); whether its {what} does "
        f"is undecided{known}"
    )


def _along(decision: Decision) -> str:
    found = decision.counts.trajectory
    assert found is not None
    if decision.status is Status.ODE:
        return f"this trajectory is that of its ODE up to the end, t = {found.end:.6g}"
    until = f"up to t = {found.horizon:.6g}" if found.horizon > -float("inf") else "at no time"
    return (
        f"this trajectory depends on its solver: it is that of its ODE {until}, of "
        f"t = {found.end:.6g}"
    )


def _changed(decision: Decision) -> str:
    counts = decision.counts
    text = f"{counts.flips} of {counts.n} predictions change under the exact flow"
    if counts.blown_up:
        text = f"the exact solution ceases to exist for {counts.blown_up} of {counts.n} samples" + (
            f", {counts.flips} predictions change" if counts.flips else ""
        )
    return text


def _confidence(decision: Decision) -> str:
    return f"{100 * (1 - decision.level):.4g} %"


def evaluations(nfe: float) -> str:
    """``1 field evaluation``, ``8.25 field evaluations``."""
    return f"{nfe:.4g} field evaluation{'' if nfe == 1 else 's'}"
