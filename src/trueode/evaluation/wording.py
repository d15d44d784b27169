"""Verdicts in words, the same for all commands and functions."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from trueode.evaluation.decision import MARGIN, Decision, Status
from trueode.evaluation.gain import Answer, Performance
from trueode.evaluation.likelihood import Likelihood
from trueode.evaluation.statistics import percent, rough_percent

if TYPE_CHECKING:
    from trueode.evaluation.solver_table import Row

_SPOKEN = {"bits_per_dim": "bits per dimension"}


def spoken(metric_name: str) -> str:
    """The name of a metric in words."""
    return _SPOKEN.get(metric_name, metric_name)


def shown(metric_name: str, value: float) -> str:
    """The value of a metric as text."""
    return percent(value) if metric_name == "accuracy" else f"{value:.4g}"


def sentence(
    decision: Decision, performance: Performance, solver: Any, what: str = "{}", advice: str = ""
) -> str:
    """The verdict in one sentence, with its margin if that is not the usual one.

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
        head = f"{what.format(spoken(name))} {shown(name, performance.own)} with {solver}{exact}: "
    return head + _verdict(decision, performance, advice) + _allowed(decision)


def _verdict(decision: Decision, performance: Performance, advice: str) -> str:
    counts = decision.counts
    if counts.trajectory is not None and decision.status is not Status.INCONCLUSIVE:
        return _along(decision)
    if decision.status is Status.INCONCLUSIVE:
        return f"undecided whether this model is an ODE: {decision.reason}"
    if counts.likelihood is not None:
        return _density(decision, counts.likelihood, advice)
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


def _allowed(decision: Decision) -> str:
    counts = decision.counts
    told = decision.status is Status.INCONCLUSIVE  # by its reason
    if told or counts.trajectory is not None or decision.margin == MARGIN:
        return ""
    mean = counts.mean
    limit = rough_percent(decision.margin) if mean is None else mean.told(decision.margin)
    return f"; allowed: {limit}"


def _density(decision: Decision, found: Likelihood, advice: str) -> str:
    size = f"{abs(found.mean):.3g} nats ({found.told(abs(found.estimate))}"
    left_out = decision.counts.n - found.n
    over = f"; mean of {found.n} samples, {left_out} left out" if left_out else ""

    def sure(bound: str) -> str:
        return f"{bound} with {_confidence(decision)} confidence" if decision.level else ""

    if decision.status is Status.ODE:
        most = sure(f", at most {decision.most:.3g}")
        return (
            "this model behaves as an ODE: its mean log density differs from that of the exact "
            f"flow by {size}{most}){over}"
        )
    if decision.lower > decision.margin:
        least = sure(f", at least {decision.lower:.3g}")
        return (
            "this model is NOT an ODE, it uses its solver's error: the reported likelihood is "
            f"inflated by {size}{least}){over}"
        )
    if decision.upper < -decision.margin:
        least = sure(f", at least {-decision.upper:.3g}")
        return (
            "the solver of this model is too coarse, its likelihood is better when it is solved "
            f"finely: by {size}{least}){over}" + (f": take {advice}" if advice else "")
        )
    return (
        f"this model depends on its solver: {_changed(decision).split(',')[0]}, so that they have "
        "no density"
    )


def sampler_sentence(decision: Decision, own: Row | None, best: Row | None) -> str:
    """The answer for a sampler in one sentence.

    Args:
        decision: the decision on the sampler.
        own: the row of its own solver; None without a comparison.
        best: the row of the cheapest safe solver; None: none is known.
    """
    found = decision.counts.discrepancy
    if own is None or found is None:
        return f"undecided which solver this sampler needs: {decision.reason}"
    limit, most = found.told(decision.margin), ""
    if decision.upper < inf and decision.level:
        most = f", at most {found.told(decision.upper)} with {_confidence(decision)} confidence"
    text = f"the model's own solver {own.solver} fails"
    if found.n:
        text = (
            f"the model's own solver {own.solver} is off by {found.told(found.estimate)} of the "
            f"spread of the samples{most} ({evaluations(own.nfe)})"
        )
    if best is not None and best.is_training:
        return f"{text}; none that is cheaper is within {limit}"
    if best is not None:
        return f"{text}; cheapest within {limit}: {best.solver}, {evaluations(best.nfe)}"
    if decision.status is Status.ODE:
        return f"{text}, within {limit}"
    return f"{text}; no solver is shown to be within {limit}: {decision.reason}"


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
