"""The audit: is this model an ODE?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.convergence import explore, find_safe, observed_orders
from trueode.auditing.density import Sample, check_density
from trueode.auditing.frameworks import Call
from trueode.auditing.gradient import Loss, gradient_change, refuse_loss
from trueode.auditing.model_under_test import ModelUnderTest, model_under_test
from trueode.auditing.notes import notes_on
from trueode.auditing.preconditions import Precondition, prepare
from trueode.auditing.preserve_state import preserve_state
from trueode.auditing.provenance import provenance
from trueode.auditing.reasons import find_reasons
from trueode.auditing.report import Audit
from trueode.catalog import METHODS
from trueode.errors import UsageError, nearest
from trueode.evaluation.decision import (
    MARGIN,
    Decision,
    Status,
    check_margin,
    decide,
    level_of,
)
from trueode.evaluation.flips import Flips, count_flips
from trueode.evaluation.flow import PRECISE, exact_flow
from trueode.evaluation.gain import Answer, Performance, performance
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.pace import Pace
from trueode.evaluation.runnable import Metric, Runnable
from trueode.evaluation.solver_table import SolverTable
from trueode.precision import ieee
from trueode.solvers import Solver

ALIKE = tuple(
    f"torch.nn.modules.{name}"
    for name in ("activation", "container", "conv", "flatten", "linear", "normalization")
)
"""Python modules of layers that compute the same in training mode and in evaluation mode."""
TRIED = ("euler", "midpoint", "rk4", "bosh3", "dopri5")


@ieee()
def audit(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    solver: Solver | None = None,
    call: Call | None = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    margin: float = MARGIN,
    samples: int = 1000,
    methods: Sequence[str] = TRIED,
    decision: Callable[[Tensor], Tensor] | None = None,
    tolerance: float | None = None,
    absolute: float | None = None,
    ignore_index: int | None = None,
    dimensions: int | None = None,
    sample: Sample | None = None,
    mask: Tensor | None = None,
    groups: Tensor | None = None,
    population: str = "sample",
    look: int | None = None,
    held_out: bool = True,
    breaks: Sequence[float] = (),
    max_step: float | None = None,
    seed: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Decide whether a model is an ODE, or depends on its solver.

    The audit compares the predictions under the training solver with those under the exact flow,
    which two independent methods compute in double precision. The verdict is ``ode`` if at most
    ``margin`` of the predictions change, ``solver-dependent`` if more do, each with 95 % confidence
    (Clopper & Pearson), and ``inconclusive`` otherwise. The sentence says "NOT an ODE" only if the
    accuracy, or mean squared error, depends on the solver as well. The model is left unchanged.

    For densities, the mean change of the log density decides. For samplers, nothing was trained
    through a solver: the answer is the cheapest solver whose samples are within ``tolerance`` of
    those of the exact flow, and the verdict is ``ode`` if there is one, else ``inconclusive``.

    Args:
        model: a `NeuralODE`, or any module or function that calls ``trueode.solve``, torchdiffeq,
            torchdyn, torchode, zuko or diffrax in its forward pass. To audit a field alone, wrap it
            as ``NeuralODE(field, upstream, downstream, solver)``.
        data: samples that the model was not trained on: a pair ``(x, y)`` or triple ``(x, y, t)``
            of tensors, inputs ``x`` alone, or an iterable of such batches (a ``DataLoader``).
            For models of JAX, arrays of JAX or NumPy take the place of tensors.
            Batches are used as given. Instead of times, the third part may be a boolean mask of
            the predictions that count.
        task: ``"classification"`` (outputs are logits ``(n, classes)`` or ``(n, classes, …)``, or
            one logit), ``"regression"`` ``(n, outputs)``, ``"timeseries"`` ``(n, times, …)``,
            ``"density"`` (log densities in nats, ``(n,)``), ``"sampler"`` (samples ``(n, …)``; the
            data are noise), or ``"auto"``, which infers the task from the targets.
        solver: the training solver, if the model itself uses another one.
        call: ``call(model, batch)`` returns the outputs for a batch; by default ``model(x)``, with
            times ``model(x, t)``.
        metric: ``metric(outputs, y)`` returns a value for each sample; by default accuracy or mean
            squared error.
        loss: ``loss(outputs, y)`` returns the loss of a batch, a number. Its gradient under the
            training solver is then compared with that under the exact flow (`GradientChange`).
        margin: largest share of predictions that may change; for densities, the largest change of
            the mean log density, in bits per dimension.
        samples: number of samples to audit, the first ones of the data. Batches stay whole if a
            sample depends on the others of its batch.
        methods: names of the methods for the table of solvers; without any, the audit computes the
            verdict alone.
        decision: ``decision(outputs)`` returns what the outputs decide, for instance a sign, with
            shape ``(n,)`` or ``(n, …)``.
        tolerance: how far numbers may move and still count as the same prediction, relative to the
            spread of the outputs (0.01; for a time series with targets at least a tenth of the RMS
            residual). For samplers, the RMS error of the samples, relative to their spread.
        absolute: the tolerance in the units of the outputs; for densities, the margin in nats.
        ignore_index: label of predictions that do not count (-100).
        dimensions: number of dimensions of a density; by default the numbers of a sample of ``x``.
        sample: ``sample(model, n)`` draws ``n`` samples of a density by the model's solve; by
            default its method ``sample``, if it has one. The mass is measured with them.
        mask: ``(n, …)``, boolean: which predictions count.
        groups: ``(n,)``: rows with the same number are one sample (windows of one series, nodes of
            one graph).
        population: ``"all"`` if no other samples exist; their share then needs no bounds.
        look: number of this look at the model, from 1, if several are planned. All of them together
            err in at most 5 % of the cases.
        held_out: whether the samples were held out from training. If not, the performance is not
            judged.
        breaks: times at which the field jumps, such as observations of a path that drives it. All
            solvers except the training solver end a step there.
        max_step: the longest step of these solvers. They cannot step over a feature of the field
            that lasts longer.
        seed: seed of the random numbers of each call, for a model that draws some before its solve.
            They are then the same under every solver.
        progress: called with a short description of each piece of work, and the time that it
            takes.

    Raises:
        DataError: the data has none of these forms.
        UsageError: the model cannot be audited; the message says why.
    """
    check_margin(margin)
    if look is not None and look < 1:
        raise UsageError(f"look must be at least 1, got {look!r}: looks are counted from 1.")
    for method in methods:
        if method not in METHODS:
            raise UsageError(
                f"method {method!r} is unknown; known are {', '.join(METHODS)}."
                f"{nearest(method, METHODS)}"
            )
    tested = model_under_test(
        model, data, task=task, call=call, solver=solver, metric=metric, samples=samples, mask=mask,
        groups=groups, held_out=held_out, breaks=breaks, max_step=max_step, seed=seed,
        decision=decision, tolerance=tolerance, absolute=absolute, ignore_index=ignore_index,
        dimensions=dimensions, sample=sample, margin=margin,
    )  # fmt: skip
    if loss is not None:
        refuse_loss(tested)
    found = tested.forward.found
    was_training = any(
        module.training and type(module).__module__ not in ALIKE for module in found.every
    )
    framework = tested.forward.framework
    with preserve_state(found) as before:
        progress("training solver")
        own, preconditions = prepare(tested, before, was_training or framework.training)
        judged = judge(
            tested, own, preconditions, methods=methods, margin=margin, look=look,
            population=population, loss=loss, progress=progress,
        )  # fmt: skip
    return replace(judged, provenance={**judged.provenance, **framework.spent()})


def check_solver(model: Any, data: Any, *, samples: int = 512, **how: Any) -> Audit:
    """Audit a model during training: the verdict alone, on few samples.

    Call it at regular intervals in any training loop. It preserves the training mode, gradients and
    random state of the model.

    Args:
        model: as in `audit`.
        data: as in `audit`; samples that the model is not trained on.
        samples: number of samples to audit, the first ones of the data.
        how: other arguments of `audit`.

    Raises:
        DataError: the data has none of the forms of `audit`.
        UsageError: the model cannot be audited; the message says why.
    """
    return audit(model, data, samples=samples, methods=(), **how)


def judge(
    runnable: Runnable,
    own: Evaluation,
    preconditions: tuple[Precondition, ...] = (),
    *,
    methods: Sequence[str] = (),
    margin: float = MARGIN,
    look: int | None = None,
    population: str = "sample",
    loss: Loss | None = None,
    budget: float = float("inf"),
    what: str = "{}",
    progress: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Audit anything that can be run: exact flow, flips, decision, performance, and with
    ``methods`` the table of solvers.

    Args:
        runnable: the model and its samples.
        own: results under the training solver.
        preconditions: the conditions for a verdict.
        methods: names of the methods for the table of solvers.
        margin: largest share of predictions that may change.
        look: as in `audit`.
        population: as in `audit`.
        loss: as in `audit`.
        budget: largest number of field evaluations for the exact flow, counted in samples.
        what: how the sentence calls the metric; ``{}`` stands for its name.
        progress: called with a short description of each piece of work, and the time that it
            takes.
    """
    level = level_of(look)
    judged = Audit(
        decision=Decision(Status.INCONCLUSIVE, Flips(runnable.n), 0.0, 1.0, margin, level),
        performance=Performance(Answer.UNDECIDED, runnable.metric_name, own.metric),
        own=own,
        task=runnable.task.name,
        what=what,
        chance=_chance(runnable),
        preconditions=preconditions,
        provenance=provenance(runnable, own),
        subject=runnable,
    )
    if violated := [each.text for each in preconditions if each.decisive and not each.holds]:
        return replace(judged, decision=replace(judged.decision, reason="; ".join(violated)))
    pace = Pace(progress)
    exact = exact_flow(runnable, own, level=PRECISE if methods else 0, budget=budget, pace=pace)
    counts = count_flips(runnable, None, own, exact)
    how: dict[str, Any] = {"margin": margin, "level": level, "population": population}
    found = decide(counts, **how)
    table = SolverTable(runnable, own, exact, counts, **how)
    judged = replace(
        judged,
        decision=found,
        performance=performance(runnable, own, exact, counts, **how),
        exact=exact,
        rows=table.rows,
    )
    if loss is not None and isinstance(runnable, ModelUnderTest):
        pace("gradients of the loss")
        judged = replace(judged, gradient=gradient_change(runnable, exact, loss))
    if not methods or not isinstance(runnable, ModelUnderTest):
        judged = replace(judged, decision=of_sampler(found, safe=table.training.safe, tried=False))
        return replace(judged, notes=tuple(notes_on(judged, runnable)))
    first = table.training.method
    tried = [
        *([first] if first in METHODS else []),
        *(method for method in methods if method != first),
    ]
    explore(table, tried, pace=pace)
    pace("cheapest safe solver")
    safe = [
        row
        for method in dict.fromkeys([first, *tried])
        if (row := find_safe(table, method)) is not None
    ]
    found = of_sampler(found, safe=bool(safe), tried=True)
    pace("reasons")
    reasons, paths = find_reasons(runnable, own, exact, table.training)
    rows = (
        table.training,
        *(row for method in tried for row in table.of(method) if not row.is_training),
    )
    floor = max(
        exact.floor if isfinite(exact.floor) else 0.0, 10 * torch.finfo(own.outputs.dtype).eps
    )
    density = None
    if counts.likelihood is not None:
        density = check_density(runnable, own, exact, counts.likelihood, found.margin)
    judged = replace(
        judged,
        decision=found,
        density=density,
        rows=rows,
        orders=observed_orders(rows, floor),
        safe=tuple(sorted(safe, key=lambda row: row.nfe)),
        reasons=reasons,
        paths=paths,
    )
    return replace(judged, notes=tuple(notes_on(judged, runnable)))


def of_sampler(found: Decision, *, safe: bool, tried: bool) -> Decision:
    """The decision on a sampler: whether any solver is safe. Other decisions are left unchanged.

    Args:
        found: the decision on its own solver.
        safe: whether a solver is safe.
        tried: whether others than its own were tried.
    """
    if found.counts.discrepancy is None:
        return found
    if safe:
        return replace(found, status=Status.ODE, reason="", needed=None)
    reason = "none of those tried is" if tried else "no other one was tried: pass methods=…"
    return replace(found, status=Status.INCONCLUSIVE, reason=found.reason or reason)


def _chance(runnable: Runnable) -> float:
    """Metric of the best constant prediction: the most frequent class for accuracy, the mean for
    mean squared error.
    """
    y, task = runnable.y, runnable.task
    if y is None or runnable.metric is not None or task.decision is not None:
        return nan
    if not task.needs_targets:
        return nan
    if task.name == "classification":
        counted = y.reshape(len(y), -1)[runnable.valid(len(y), y[0].numel())]
        return (
            float(torch.unique(counted, return_counts=True)[1].max()) / counted.numel()
            if counted.numel()
            else nan
        )
    # for one trajectory, the mean over its times
    rows = y[0] if len(y) == 1 and task.name == "timeseries" else y
    flat = rows.double().reshape(len(rows), -1)
    return float((flat - flat.nanmean(0)).square().nanmean())
