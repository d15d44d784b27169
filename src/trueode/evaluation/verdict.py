"""The closing verdict: whether a trained model is an ODE, in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trueode.data import Samples
from trueode.errors import SolveError
from trueode.evaluation.decision import decide
from trueode.evaluation.flips import compare_with_exact_flow
from trueode.evaluation.metrics import evaluate
from trueode.evaluation.reference import least_cost
from trueode.evaluation.statistics import percent, samples_for
from trueode.evaluation.tasks import Task
from trueode.models import NeuralODE
from trueode.solvers import Solver

MARGIN = 0.01
SAMPLES = 1000
FEWEST = 100  # a check of fewer samples than this, for want of budget, would not be worth its name
LEAST_FLOPS = 50e9


@dataclass(frozen=True)
class Verdict:
    """Whether a model is an ODE, with the evidence.

    Attributes:
        status: ``"ode"``, ``"solver-dependent"``, ``"inconclusive"`` or ``"not checked"``.
        sentence: all of it in words.
        solver: the training solver.
        n: samples looked at.
        flips: those whose prediction under the exact flow is another one, or that never settle.
        lower: bound of the share of flips; the share is larger with 95 % confidence.
        upper: bound of the share of flips; the share is smaller with 95 % confidence.
        metric_name: accuracy or mse.
        metric: on these samples, under the training solver. Shown; never decides.
        metric_exact: the same under the exact flow.
        n_steps_exact: steps of the finest solve of the exact flow (rk4, double precision).
        evaluations: field evaluations spent, counted in samples.
        budget: field evaluations that might have been spent.
    """

    status: str
    sentence: str
    solver: str
    n: int
    flips: int
    lower: float
    upper: float
    metric_name: str
    metric: float
    metric_exact: float
    n_steps_exact: int
    evaluations: int
    budget: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verdict(
    model: NeuralODE,
    split: Samples,
    task: Task,
    solver: Solver,
    *,
    run_evaluations: float,
    share: float = 0.05,
    flops: float = 1.0,
    what: str = "test",
    command: str = "",
) -> Verdict:
    """Compare a model's predictions on the first samples under its training solver and under the exact flow.

    The share of predictions that differ (flips) decides at the 1 % margin: the model is not an ODE when the lower bound of
    the share exceeds it, it behaves as an ODE when the upper bound does not. As many of the first 1000 samples are looked
    at as the budget, counted in field evaluations and not in seconds, is enough for: equal runs have equal verdicts.

    Args:
        model: the trained model.
        split: samples that it was not trained on.
        task: what is learned.
        solver: the solver that training ended with.
        run_evaluations: field evaluations of the training run, counted in samples.
        share: of them, for the check; never less than 50 Gflop.
        flops: floating point operations of one field evaluation of one sample.
        what: the name of the data, for the sentence.
        command: to be completed by a larger ``share``, for a check that was too expensive.
    """
    budget = max(share * run_evaluations, LEAST_FLOPS / flops)
    first = split.first(SAMPLES)
    try:
        own = evaluate(model, first, task, solver, keep_outputs=True)
    except SolveError as failure:
        sentence = f"not checked whether this model is an ODE: {solver} fails on the {what} data. {failure}"
        none = float("nan")
        return Verdict("not checked", sentence, str(solver), 0, 0, 0.0, 1.0, task.metric_name, none, none, 0, 0, budget)
    least = least_cost(own.n_steps, solver.order)
    n = min(len(first), int(budget / (1.1 * least)))  # a tenth is for samples that settle late
    if n < min(FEWEST, len(first)):
        name = _named(task, own.n, len(split), what)
        return _not_checked(task, solver, own.n, own.metric, budget, least, run_evaluations, name, command)
    if n < len(first):
        first = first.first(n)
        own = evaluate(model, first, task, solver, keep_outputs=True)
    found = compare_with_exact_flow(model, first, task, solver, own, budget=budget)
    certain, unknown, constant = found.flips, found.unknown, found.constant
    decision = decide(certain, n, MARGIN, unknown)
    lower, upper = decision.lower, decision.upper
    status = "inconclusive" if constant else decision.verdict
    if status == "inconclusive" and unknown and not constant:
        cost = max(4 * least, 4 * budget / SAMPLES)
        name = _named(task, n, len(split), what)
        return _not_checked(task, solver, n, own.metric, budget, cost, run_evaluations, name, command)
    shown = _metrics(task, own.metric, found.metric, solver, n, len(split), what)
    judgement = _judgement(status, certain, n, lower, upper, constant)
    if status == "inconclusive" and not constant and n < min(SAMPLES, len(split)):
        judgement += f", the budget was too small for more{_how(command, least, run_evaluations)}"
    return Verdict(
        status,
        f"{shown}: {judgement}",
        str(solver),
        n,
        certain,
        lower,
        upper,
        task.metric_name,
        own.metric,
        found.metric,
        found.n_steps_exact,
        found.evaluations,
        budget,
    )


def _metrics(task: Task, own: float, exact: float, solver: Solver, n: int, total: int, what: str) -> str:
    named, name = _named(task, n, total, what), task.metric_name
    return f"{named} {shown(name, own)} with {solver}; {shown(name, exact)} under the exact flow"


def _named(task: Task, n: int, total: int, what: str) -> str:
    """The metric and the samples that it is of."""
    return f"{what} {task.metric_name}" + ("" if n == total else f" (first {n} samples)")


def _judgement(status: str, flips: int, n: int, lower: float, upper: float, constant: bool) -> str:
    depend = "of its predictions depend on the solver"
    if constant:
        return "undecided whether this model is an ODE: its output is constant in a component"
    if status == "solver-dependent":
        return f"this model is NOT an ODE ({percent(flips / n)} {depend})"
    if status == "ode":
        return f"this model behaves as an ODE ({percent(flips / n)} {depend}, at most {percent(upper)} with 95 % confidence)"
    judgement = (
        f"undecided on {n} samples whether this model is an ODE (between {percent(lower)} and {percent(upper)} {depend}"
    )
    needed = samples_for(MARGIN)
    return judgement + (f"; at least {needed} samples are needed)" if n < needed else ")")


def _not_checked(
    task: Task,
    solver: Solver,
    n: int,
    metric: float,
    budget: float,
    cost: float,
    run_evaluations: float,
    name: str,
    command: str,
) -> Verdict:
    how = _how(command, cost, run_evaluations)
    sentence = (
        f"{name} {shown(task.metric_name, metric)} with {solver}: not checked whether this model is an "
        f"ODE, which takes more than the budget of {budget:.2g} field evaluations{how}"
    )
    return Verdict(
        "not checked", sentence, str(solver), n, 0, 0.0, 1.0, task.metric_name, metric, float("nan"), 0, 0, budget
    )


def _how(command: str, cost: float, run_evaluations: float) -> str:
    """How to check with enough budget, if each sample costs so many evaluations."""
    share = 1.2 * cost * SAMPLES / max(run_evaluations, 1.0)
    return f"; check it with: {command} --verdict_budget {share:.2g}" if command else ""


def shown(metric_name: str, value: float) -> str:
    """The value of a metric as text."""
    return percent(value) if metric_name == "accuracy" else f"{value:.4g}"
