"""The gain in performance by the solver. A model that gains uses its solver's error."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import nan

from torch import Tensor

from trueode.evaluation.decision import LEVEL, MARGIN, Status, decide
from trueode.evaluation.flips import Flips
from trueode.evaluation.flow import ExactFlow
from trueode.evaluation.likelihood import Likelihood
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Runnable
from trueode.evaluation.statistics import FEWEST, mean_bounds, share_difference

RELATIVE = 0.1  # the allowed change of a mean squared error, relative to it


class Answer(str, Enum):
    """Whether a model performs better under its solver or under its exact flow."""

    SOLVER = "better with its solver"
    SAME = "the same"
    EXACT = "better under the exact flow"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Performance:
    """How much better a model performs under its training solver than under its exact flow, on
    held-out samples.

    Attributes:
        answer: the answer; ``UNDECIDED`` without held-out targets.
        name: the name of the metric.
        own: mean metric under the training solver.
        exact: mean metric under the exact flow; a prediction that blows up is wrong.
        gain: accuracy under the training solver minus accuracy under the exact flow, with one
            prediction of each sample. For mean squared errors: the increase under the exact flow,
            relative to the error under the training solver. For densities: the mean log density
            under the training solver minus that under the exact flow, in bits per dimension.
        lower: lower bound of the gain.
        upper: upper bound of the gain.
        margin: the largest gain that counts as no difference.
    """

    answer: Answer
    name: str
    own: float = nan
    exact: float = nan
    gain: float = nan
    lower: float = nan
    upper: float = nan
    margin: float = MARGIN


def performance(
    runnable: Runnable,
    own: Evaluation,
    exact: ExactFlow,
    counts: Flips,
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    population: str = "sample",
) -> Performance:
    """Compare the metric of a model under its training solver and under its exact flow.

    For accuracies, let b predictions be right under the training solver alone, and c under the
    exact flow alone. The gain is (b - c) / n; its bounds combine those of both counts at half the
    level. For mean squared errors, the bounds are the t-interval of the paired differences, from
    100 samples on. A test for equality would not help: training minimises the loss under its
    solver, so any model differs significantly with enough samples.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver.
        exact: its exact flow.
        counts: the counted predictions.
        margin: the allowed share.
        level: error probability of each bound.
        population: as in `decide`.
    """
    name = runnable.metric_name
    n = len(exact.outputs)
    mine, theirs = (
        runnable.metrics(own.outputs[:n]),
        runnable.metrics(exact.outputs.to(own.outputs.dtype)),
    )
    if mine is None or theirs is None:
        return Performance(Answer.UNDECIDED, name)
    if runnable.metric is None and name == "accuracy":  # a prediction that is not finite is wrong
        mine = mine.masked_fill(~runnable.finite(own.outputs[:n])[:, None], 0.0)
        theirs = theirs.masked_fill(~runnable.finite(exact.outputs)[:, None], 0.0)
    shown = runnable.mean(mine), runnable.mean(theirs)
    if counts.likelihood is not None and runnable.metric is None:
        return _of_density(counts, counts.likelihood, name, margin, level, population)
    if runnable.metric is not None or counts.mean is not None or not runnable.held_out:
        return Performance(Answer.UNDECIDED, name, *shown)
    drawn, doubtful = counts.drawn, counts.doubtful
    assert doubtful is not None
    if name == "accuracy":
        right, right_exact, unknown = (
            each.flatten()[drawn] > 0 for each in (mine, theirs, doubtful.expand(mine.shape))
        )
        b = _count(right & ~right_exact & ~unknown, right & unknown)
        c = _count(right_exact & ~right & ~unknown, ~right & unknown)
        gain = (b[0] - c[0]) / counts.n
        if population == "all":
            lower, upper = (b[0] - c[1]) / counts.n, (b[1] - c[0]) / counts.n
        else:
            lower, upper = share_difference(b, c, counts.n, 1 - level)
        return Performance(_answer(lower, upper, margin), name, *shown, gain, lower, upper, margin)
    errors, errors_exact = mine.flatten()[drawn], theirs.flatten()[drawn]
    mean = float(errors.mean())
    if name != "mse" or counts.n < FEWEST or counts.unresolved or counts.blown_up or not mean > 0:
        return Performance(Answer.UNDECIDED, name, *shown, margin=RELATIVE)
    gain, lower, upper = mean_bounds(((errors_exact - errors) / mean).tolist(), 1 - level / 2)
    if population == "all":
        lower = upper = gain
    return Performance(_answer(lower, upper, RELATIVE), name, *shown, gain, lower, upper, RELATIVE)


def _of_density(
    counts: Flips, found: Likelihood, name: str, margin: float, level: float, population: str
) -> Performance:
    """The log density itself is the performance: the decision's bounds are those of the gain."""
    decision = decide(counts, margin, level=level, population=population)
    bounds = decision.lower, decision.upper
    missing = decision.status is Status.INCONCLUSIVE and decision.needed is None
    answer = Answer.UNDECIDED if missing else _answer(*bounds, decision.margin)
    means = -found.own / found.bit, -found.exact / found.bit
    return Performance(answer, name, *means, found.estimate, *bounds, decision.margin)


def _count(certain: Tensor, unknown: Tensor) -> tuple[int, int]:
    """The least and the largest count."""
    return int(certain.sum()), int((certain | unknown).sum())


def _answer(lower: float, upper: float, margin: float) -> Answer:
    if lower > margin:
        return Answer.SOLVER
    if upper < -margin:
        return Answer.EXACT
    return Answer.SAME if -margin <= lower and upper <= margin else Answer.UNDECIDED
