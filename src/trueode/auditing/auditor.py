"""The audit: is this model an ODE?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from trueode.auditing.convergence import explore, find_safe, observed_orders
from trueode.auditing.forward import Call
from trueode.auditing.interception import version_of
from trueode.auditing.model_under_test import ModelUnderTest, model_under_test
from trueode.auditing.preconditions import Precondition, prepare
from trueode.auditing.preserve_state import preserve_state
from trueode.auditing.problem import FoundSolver
from trueode.auditing.reasons import find_reasons
from trueode.auditing.report import Audit
from trueode.catalog import METHODS
from trueode.errors import UsageError, nearest
from trueode.evaluation.decision import (
    LEVEL,
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
from trueode.evaluation.runnable import Metric, Runnable
from trueode.evaluation.solver_table import SolverTable
from trueode.evaluation.statistics import percent, samples_for
from trueode.evaluation.wording import evaluations, shown
from trueode.solvers import Solver

ALIKE = tuple(
    f"torch.nn.modules.{name}"
    for name in ("activation", "container", "conv", "flatten", "linear", "normalization")
)
"""Where modules are defined that compute the same in training as in evaluation."""
TRIED = ("euler", "midpoint", "rk4", "bosh3", "dopri5")


def audit(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    solver: Solver | None = None,
    call: Call | None = None,
    metric: Metric | None = None,
    margin: float = MARGIN,
    samples: int = 1000,
    methods: Sequence[str] = TRIED,
    decision: Callable[[Tensor], Tensor] | None = None,
    tolerance: float | None = None,
    absolute: float | None = None,
    ignore_index: int | None = None,
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
    """Tell whether a model is an ODE, or depends on its solver.

    The predictions under the training solver are compared with those under the exact flow, found by
    two independent methods in double precision. The model is an ``ode`` where at most ``margin`` of
    its predictions change, ``solver-dependent`` where more do, each with 95 % confidence (Clopper &
    Pearson), and ``inconclusive`` otherwise. The sentence says "NOT an ODE" only where its
    accuracy, or mean squared error, depends on the solver as well. The model is left as it was.

    Args:
        model: a `NeuralODE`, or any module or function that calls ``trueode.solve``, torchdiffeq,
            torchdyn or torchode in its forward. A field alone becomes a model by
            ``NeuralODE(field, upstream, downstream, solver)``.
        data: samples that the model was not trained on: a pair ``(x, y)`` or triple ``(x, y, t)``
            of tensors, inputs ``x`` alone, or an iterable of such batches (a ``DataLoader``).
            Batches are kept as they are given. In the place of times there may be a mask of bool:
            which predictions count.
        task: ``"classification"`` (outputs are logits ``(n, classes)`` or ``(n, classes, …)``, or
            one logit), ``"regression"`` ``(n, outputs)``, ``"timeseries"`` ``(n, times, …)``,
            ``"density"`` (log densities in nats, ``(n,)``), or
            ``"auto"``: by the targets.
        solver: the training solver, where it is not the one that the model itself uses.
        call: how the model is called for a batch, ``call(model, batch)``; None: ``model(x)``, with
            times ``model(x, t)``.
        metric: ``metric(outputs, y)`` with a value for each sample; None: accuracy, or mean squared
            error.
        margin: share of predictions that may change.
        samples: the first so many samples are looked at; whole batches where a sample depends on
            the others of its batch.
        methods: names of the methods that the model is tried with; none: the verdict alone.
        decision: ``decision(outputs)``: what is decided by outputs, a sign for instance, ``(n,)``
            or ``(n, …)``.
        tolerance: how far numbers may move and count as the same prediction, relative to the spread
            of the outputs (0.01; for a time series with targets at least a tenth of the RMS
            residual).
        absolute: the same in the units of the outputs.
        ignore_index: the label of predictions that do not count (-100).
        mask: which predictions count, ``(n, …)`` of bool.
        groups: ``(n,)``: rows of one number are one sample (windows of one series, nodes of one
            graph).
        population: ``"all"`` where there are no other samples than these: their share needs no
            bound.
        look: the number of this look at the model where several are planned, from 1: all of them
            together err in at most 5 %.
        held_out: whether the model was not trained on the samples; only then its performance is
            judged.
        breaks: times at which the field jumps (observations of a path that drives it): steps of all
            solvers but the training solver end there.
        max_step: their longest step, so that no feature of the field that lasts longer is stepped
            over.
        seed: of the random numbers of each call, for a model that draws some before its solve: they
            are the same under every solver.
        progress: told, in a few words, of what is being done.

    Raises:
        DataError: the data is not of such a form.
        UsageError: the model cannot be audited; the message tells why.
    """
    check_margin(margin)
    if look is not None and look < 1:
        raise UsageError(f"look must be at least 1, got {look!r}: looks are counted from 1.")
    for method in methods:
        if method not in METHODS:
            raise UsageError(
                f"method {method!r} is unknown; known are {', '.join(METHODS)}.{nearest(method, METHODS)}"
            )
    subject = model_under_test(
        model, data, task=task, call=call, solver=solver, metric=metric, samples=samples, mask=mask, groups=groups,
        held_out=held_out, breaks=breaks, max_step=max_step, seed=seed, decision=decision, tolerance=tolerance, absolute=absolute, ignore_index=ignore_index,
    )  # fmt: skip
    found = subject.forward.found
    was_training = any(
        module.training and type(module).__module__ not in ALIKE for module in found.every
    )
    with preserve_state(found) as before:
        progress("training solver")
        own, preconditions = prepare(subject, before, was_training)
        return judge(
            subject, own, preconditions, methods=methods, margin=margin, look=look, population=population, progress=progress
        )  # fmt: skip


def check_solver(model: Any, data: Any, *, samples: int = 512, **how: Any) -> Audit:
    """The smallest audit, for every loop: the verdict alone, on a few samples.

    Call it every so many steps; the model is left as it is, training mode, gradients and random
    state included.

    Args:
        model: as in `audit`.
        data: as in `audit`; samples that the model is not trained on.
        samples: the first so many samples are looked at.
        how: other arguments of `audit`.

    Raises:
        DataError: the data is not of such a form.
        UsageError: the model cannot be audited; the message tells why.
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
    budget: float = float("inf"),
    what: str = "{}",
    progress: Callable[[str], None] = lambda text: None,
) -> Audit:
    """The audit of anything that can be run: exact flow, flips, decision, performance, and with
    ``methods`` the table of solvers.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver.
        preconditions: what must hold.
        methods: names of the methods that the model is tried with.
        margin: share of predictions that may change.
        look: as in `audit`.
        population: as in `audit`.
        budget: field evaluations, counted in samples, that the exact flow may take.
        what: how the metric of these samples is called in the sentence, ``{}`` standing for its
            name.
        progress: told of what is being done.
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
    )
    if violated := [each.text for each in preconditions if each.decisive and not each.holds]:
        return replace(judged, decision=replace(judged.decision, reason="; ".join(violated)))
    progress("exact flow")
    exact = exact_flow(runnable, own, level=PRECISE if methods else 0, budget=budget)
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
    if not methods or not isinstance(runnable, ModelUnderTest):
        return replace(judged, notes=tuple(_notes(judged, runnable)))
    first = table.training.method
    tried = [
        *([first] if first in METHODS else []),
        *(method for method in methods if method != first),
    ]
    explore(table, tried, note=progress)
    progress("cheapest safe solver")
    safe = [
        row
        for method in dict.fromkeys([first, *tried])
        if (row := find_safe(table, method)) is not None
    ]
    progress("reasons")
    reasons, paths = find_reasons(runnable, own, exact, table.training)
    rows = (
        table.training,
        *(row for method in tried for row in table.of(method) if not row.is_training),
    )
    floor = max(
        exact.floor if isfinite(exact.floor) else 0.0, 10 * torch.finfo(own.outputs.dtype).eps
    )
    judged = replace(
        judged,
        rows=rows,
        orders=observed_orders(rows, floor),
        safe=tuple(sorted(safe, key=lambda row: row.nfe)),
        reasons=reasons,
        paths=paths,
    )
    return replace(judged, notes=tuple(_notes(judged, runnable)))


def _chance(runnable: Runnable) -> float:
    """Accuracy of always predicting the most frequent class; mean squared error of always
    predicting the mean.
    """
    y, task = runnable.y, runnable.task
    if y is None or runnable.metric is not None or task.decision is not None:
        return nan
    if task.name == "classification":
        counted = y.reshape(len(y), -1)[runnable.valid(len(y), y[0].numel())]
        return (
            float(torch.unique(counted, return_counts=True)[1].max()) / counted.numel()
            if counted.numel()
            else nan
        )
    rows = (
        y[0] if len(y) == 1 and task.name == "timeseries" else y
    )  # of one trajectory: the mean over its times
    flat = rows.double().reshape(len(rows), -1)
    return float((flat - flat.nanmean(0)).square().nanmean())


def _notes(judged: Audit, runnable: Runnable) -> list[str]:
    found = [f"{each.name}: {each.text}" for each in judged.preconditions if not each.holds]
    own, counts, exact = judged.own, judged.decision.counts, judged.exact
    if exact is not None and judged.decision.status is Status.ODE and isfinite(exact.width):
        found.append(
            f"what the vector field does within less than {exact.width:.1g} of the interval may be missed, and more if few "
            "samples meet it: breaks=… and max_step=… name such times and steps"
        )
    if counts.rounding:
        precision = str(own.outputs.dtype).removeprefix("torch.")
        found.append(
            f"the rounding of {precision} changes {counts.rounding} more of {counts.n} predictions; in double precision the training "
            "solver does not"
        )
    if judged.decision.level and abs(counts.share - counts.changed / counts.n) > 1e-12:
        found.append(
            f"of all predictions {percent(counts.share)} change, mean over samples; the bounds are those of one prediction of each "
            "sample, drawn by chance"
        )
    found += filter(None, [_vacuous(judged, runnable)])
    if (distinct := _distinct(runnable)) < runnable.n:
        found.append(
            f"only {distinct} of the {runnable.n} samples are distinct: the bounds hold for independent draws, so there is less "
            "confidence than is stated"
        )
    if judged.safe:
        best, row = judged.safe[0], judged.rows[0]
        found.append(
            f"the cheapest safe solver is {best.solver}: {evaluations(best.nfe)} for a sample, the training solver takes "
            f"{row.nfe:.4g}"
        )
    elif len(judged.rows) > 1:
        needed = samples_for(judged.decision.margin, 1 - (judged.decision.level or LEVEL))
        found.append(
            f"no solver can be shown to be safe on {counts.n} samples: {needed} are needed"
            if counts.n < needed and judged.decision.level
            else "none of the solvers that were tried is safe"
        )
    return found


def _vacuous(judged: Audit, runnable: Runnable) -> str:
    outputs, metric, chance = judged.own.outputs, judged.performance.own, judged.chance
    classes = runnable.task.name == "classification" and runnable.task.decision is None
    if judged.own.status != "success":
        return ""
    if classes and len(torch.unique(outputs.argmax(1))) == 1:
        return (
            "vacuous: the model predicts the same class for every sample, which no solver changes"
        )
    if not (metric <= chance if classes else metric >= chance):  # also where one is NaN
        return ""
    values = (shown(judged.performance.name, value) for value in (metric, chance))
    return "vacuous: {} {} is no better than a constant prediction ({}), and what a model has not learned cannot change".format(
        judged.performance.name, *values
    )


def _distinct(runnable: Runnable) -> int:
    """Samples whose inputs differ, as far as these are tensors."""
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


def provenance(runnable: Runnable, own: Evaluation) -> Mapping[str, Any]:
    """What was audited, and with what: hash of the weights, versions, device, solver as found in
    the model's own call.
    """
    from trueode import __version__

    model = (
        runnable.forward.model
        if isinstance(runnable, ModelUnderTest)
        else getattr(runnable, "model", None)
    )
    module = model if isinstance(model, nn.Module) else None
    if isinstance(runnable, ModelUnderTest) and module is None and runnable.forward.found.modules:
        module = nn.ModuleList(runnable.forward.found.modules)
    first = next(iter(module.parameters()), None) if module is not None else None
    versions = {
        "trueode": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    solver = own.solver
    solvers = (solver.blocks or (solver,)) if isinstance(solver, FoundSolver) else ()
    versions |= {
        found.library: version_of(found.library) for found in solvers if found.library != "trueode"
    }
    known: dict[str, Any] = {"weights": None, "parameters": 0, "device": "cpu", "dtype": None}
    if module is not None:
        known |= {
            "weights": weights_hash(module),
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    if first is not None:
        known |= {"device": str(first.device), "dtype": str(first.dtype).removeprefix("torch.")}
    return {
        "model": type(model).__name__,
        **known,
        "seed": torch.initial_seed(),
        "machine": platform.machine(),
        "versions": versions,
        "solver": [
            {"library": found.library, "method": found.method, "settings": found.settings}
            for found in solvers
        ],
        "batches": list(runnable.sizes) if isinstance(runnable, ModelUnderTest) else [],
    }


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names."""
    digest = sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # a module's extra state
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value if value.layout == torch.strided else value.to_dense()
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
