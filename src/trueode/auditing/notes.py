"""Notes: what a reader should know beside the verdict."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.report import Audit
from trueode.evaluation.decision import LEVEL, Status
from trueode.evaluation.runnable import Runnable
from trueode.evaluation.statistics import percent
from trueode.evaluation.wording import evaluations, shown


def notes_on(judged: Audit, runnable: Runnable) -> list[str]:
    """Conditions that do not hold, limits of the verdict, and the cheapest safe solver.

    Args:
        judged: the audit, complete except for its notes.
        runnable: the model and its samples.
    """
    found = [f"{each.name}: {each.text}" for each in judged.preconditions if not each.holds]
    own, counts, exact = judged.own, judged.decision.counts, judged.exact
    if own.message:
        found.append(f"the training solver fails: {own.message}")
    if exact is not None and judged.decision.status is Status.ODE and isfinite(exact.width):
        found.append(
            f"the audit may miss features of the vector field shorter than {exact.width:.1g} of "
            "the interval, and longer ones that affect few samples: breaks=… names their times, "
            "max_step=… limits the steps"
        )
    if counts.rounding:
        precision = str(own.outputs.dtype).removeprefix("torch.")
        found.append(
            f"rounding in {precision} changes {counts.rounding} more of {counts.n} predictions; "
            "the training solver in double precision does not"
        )
    shares = judged.decision.level and counts.mean is None
    if shares and abs(counts.share - counts.changed / counts.n) > 1e-12:
        found.append(
            f"{percent(counts.share)} of all predictions change (mean over samples); the bounds "
            "are for one prediction per sample, drawn at random"
        )
    if counts.mean is not None and counts.mean.n < counts.n:
        found.append(
            f"{counts.n - counts.mean.n} of {counts.n} samples have no exact flow and are left out "
            "of the mean"
        )
    if counts.discrepancy is not None and counts.discrepancy.n:
        apart = counts.discrepancy
        found.append(
            f"sliced Wasserstein distance to the exact samples: {apart.told(apart.sliced)} of "
            f"their spread; between two independent sets of {apart.n} exact samples: "
            f"{apart.told(apart.floor)}"
        )
    if judged.density is not None:
        found += judged.density.texts
    found += filter(None, [_vacuous(judged, runnable)])
    if (distinct := _distinct(runnable)) < runnable.n:
        found.append(
            f"only {distinct} of the {runnable.n} samples are distinct: the bounds assume "
            "independent draws, so the confidence is lower than stated"
        )
    if judged.gradient is not None:
        found.append(str(judged.gradient))
    if counts.discrepancy is not None:  # the sentence names the cheapest solver
        return found
    if judged.safe:
        best, row = judged.safe[0], judged.rows[0]
        found.append(
            f"the cheapest safe solver is {best.solver}: {evaluations(best.nfe)} for a sample, "
            f"the training solver takes {row.nfe:.4g}"
        )
    elif len(judged.rows) > 1:
        needed = runnable.task.fewest(judged.decision.margin, judged.decision.level or LEVEL)
        found.append(
            f"no solver can be shown to be safe on {counts.n} samples: {needed} are needed"
            if counts.n < needed and judged.decision.level
            else "none of the solvers tried is safe"
        )
    return found


def _vacuous(judged: Audit, runnable: Runnable) -> str:
    outputs, metric, chance = judged.own.outputs, judged.performance.own, judged.chance
    classes = runnable.task.name == "classification" and runnable.task.decision is None
    if judged.own.status != "success":
        return ""
    if classes and len(torch.unique(outputs.argmax(1))) == 1:
        return "vacuous: the model predicts the same class for each sample; the verdict says little"
    if not (metric <= chance if classes else metric >= chance):  # true also if one is NaN
        return ""
    values = (shown(judged.performance.name, value) for value in (metric, chance))
    return (
        "vacuous: {} {} is no better than a constant prediction ({}); the verdict says little"
    ).format(judged.performance.name, *values)


def _distinct(runnable: Runnable) -> int:
    """The number of distinct inputs; all count as distinct unless they are tensors of one shape."""
    if not isinstance(runnable, ModelUnderTest):
        return runnable.n
    first = [batch[0] if isinstance(batch, tuple | list) else batch for batch in runnable.batches]
    if (
        not all(isinstance(x, Tensor) for x in first)
        or len({tuple(x.shape[1:]) for x in first}) > 1
    ):
        return runnable.n
    whole = torch.cat([x.detach().cpu() for x in first]).flatten(1)
    return len({row.tobytes() for row in whole.float().numpy()})
