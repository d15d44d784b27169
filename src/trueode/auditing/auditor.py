"""The audit: is this model an ODE?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from math import isfinite, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trueode.auditing.convergence import find_safe, observed_orders
from trueode.auditing.model_under_test import Call, ModelUnderTest, model_under_test
from trueode.auditing.preconditions import Preparation, prepare
from trueode.auditing.preserve_state import modules_of, preserve_state
from trueode.auditing.ran import Ran
from trueode.auditing.reasons import find_reasons
from trueode.auditing.reference import Reference, find_reference
from trueode.auditing.report import Audit
from trueode.auditing.scores import Metric, losses_of, metric_of
from trueode.auditing.swaps import Row, Swaps, paired, swap_grid
from trueode.catalog import METHODS
from trueode.errors import UsageError, nearest
from trueode.evaluation import percent, samples_for, shown
from trueode.evaluation.decision import Decision, decide
from trueode.evaluation.statistics import mcnemar
from trueode.solvers import Adaptive, FixedStep, Solver

TRIED = ("euler", "midpoint", "rk4", "bosh3", "dopri5")
FLAGGED = 3.0  # standard errors by which the training loss must beat that of the exact flow to be told of
MATERIAL = 0.01  # and the share of the latter: a difference may be sure and as small as rounding


def audit(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    solver: Solver | None = None,
    call: Call | None = None,
    metric: Metric | None = None,
    margin: float = 0.01,
    samples: int = 1000,
    methods: Sequence[str] = TRIED,
    progress: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Tell whether a model is an ODE, or depends on its solver.

    The predictions under the training solver are compared with those under the exact flow, found by two independent methods
    in double precision. The model is an ``ode`` where at most ``margin`` of its predictions change, ``solver-dependent``
    where more do, each with 95 % confidence (Clopper & Pearson), and ``inconclusive`` otherwise. The model is left as it was.

    Args:
        model: a `NeuralODE`, or any module or function that calls ``trueode.solve``, torchdiffeq, torchdyn or torchode in its
            forward. A field alone becomes a model by ``NeuralODE(field, upstream, downstream, solver)``.
        data: samples that the model was not trained on: a pair ``(x, y)`` or triple ``(x, y, t)`` of tensors, inputs ``x``
            alone, or an iterable of such batches (a ``DataLoader``). Batches are kept as they are given.
        task: ``"classification"`` (outputs are logits ``(n, classes)``, or one logit), ``"regression"`` ``(n, outputs)``,
            ``"timeseries"`` ``(n, times, …)``, or ``"auto"``: by the targets.
        solver: the training solver, where it is not the one that the model itself uses.
        call: how the model is called for a batch, ``call(model, batch)``; None: ``model(x)``, with times ``model(x, t)``.
        metric: ``metric(outputs, y)`` with a value for each sample; None: accuracy, or mean squared error.
        margin: share of flips that is allowed.
        samples: the first so many samples are looked at.
        methods: names of the methods that the model is tried with; none: the verdict without the swap grid.
        progress: told, in a few words, of what is being done.

    Raises:
        DataError: the data is not of such a form.
        UsageError: the model cannot be audited; the message tells why.
    """
    _check(margin, samples, methods)
    was_training = any(module.training for module in modules_of(model))
    subject = model_under_test(model, data, task=task, call=call, solver=solver, samples=samples)
    with preserve_state(model):
        progress("training solver")
        prepared = prepare(subject, was_training)
        subject = replace(subject, separable=prepared.separable)
        own = prepared.own
        training = training_solver(subject, own)
        name = getattr(metric, "__name__", "metric") if metric is not None else subject.task.metric_name
        if prepared.violated:
            return _without_reference(subject, prepared, training, name, margin)
        progress("reference")
        reference = find_reference(subject, double=prepared.double)
        swaps = Swaps(subject, own, reference, metric)
        row = swaps.training(training.method, training.kind, training.setting)
        tried = _with(methods, training.method) if methods else []
        swap_grid(swaps, tried, row, note=progress)
        progress("cheapest safe solver")
        safe = [find_safe(swaps, method, margin) for method in dict.fromkeys([row.method, *tried])]
        rounding = _flips_of_rounding(swaps, margin) if decide(row.flips, subject.n, margin).lower > margin else 0
        progress("reasons")
        reasons, paths = find_reasons(subject, own, reference, row, training.solver)
    found = sorted((each for each in safe if each is not None), key=lambda each: each.nfe)
    rows = (row, *(each for method in tried for each in swaps.of(method) if not each.is_training))
    floor = max(reference.floor if isfinite(reference.floor) else 0.0, 10 * torch.finfo(own.outputs.dtype).eps)
    exact = Ran(reference.outputs, reference.states, nan, nan, nan, own.found)
    metric_exact = metric_of(subject, exact, metric)
    decision = _decide(subject, own, reference, row, margin, rounding)
    judged = Audit(
        verdict=decision.verdict,
        margin=margin,
        decision=decision,
        solver=training.text,
        task=subject.task.name,
        metric_name=name,
        metric=row.metric,
        metric_exact=nan if metric_exact is None else float(metric_exact.mean()),
        chance=_chance(subject, metric),
        p_value=_p_value(subject, own, exact, metric),
        preconditions=prepared.preconditions,
        reference=reference,
        rows=rows,
        orders=observed_orders(rows, floor),
        safe=tuple(found),
        reasons=reasons,
        provenance=provenance(subject, own),
        paths=paths,
    )
    return replace(judged, sentence=_sentence(judged), notes=tuple(_notes(judged, subject, own, exact, row)))


def _check(margin: float, samples: int, methods: Sequence[str]) -> None:
    if not 0 < margin < 1:
        raise UsageError(
            f"margin must lie between 0 and 1, got {margin!r}: 0.01 allows one prediction in a hundred to change."
        )
    if samples < 1:
        raise UsageError(f"samples must be at least 1, got {samples!r}.")
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"method {method!r} is unknown; known are {', '.join(METHODS)}.{nearest(method, METHODS)}")


class Training(NamedTuple):
    """The training solver: as a row of the grid, in words, and as one of ours if it is one."""

    method: str
    kind: str
    setting: float
    text: str
    solver: Solver | None


def training_solver(subject: ModelUnderTest, own: Ran) -> Training:
    """The solver that a model was trained with, as it was found or given."""
    given, found = subject.solver, own.found[0]
    steps = max(1, round(own.n_steps))
    if given is not None:
        if isinstance(given, Adaptive):
            return Training(given.name, "adaptive", given.rtol, str(given), given)
        return Training(given.name, "fixed", float(steps), str(given), given)
    text = " and ".join(dict.fromkeys(map(str, own.found)))
    if len({str(each) for each in own.found}) > 1:  # blocks of different solvers: no method of ours is all of them
        return Training(text, "adaptive" if found.adaptive else "fixed", float(steps), text, None)
    method = found.name or f"{found.library} {found.method}"
    if not found.adaptive:
        ours = FixedStep(found.name, n_steps=steps) if found.name else None
        return Training(method, "fixed", float(steps), text, ours)
    tolerance = float(found.settings.get("rtol", nan))
    atol = float(found.settings.get("atol", tolerance))
    if atol != tolerance:  # not a row of ours, which have one tolerance
        method = text
    own_adaptive = None  # steps are controlled in another way by each library
    if found.library == "trueode" and found.name:
        own_adaptive = Adaptive(found.name, tolerance, atol, per_sample=bool(found.settings.get("per_sample")))
    return Training(method, "adaptive", tolerance, text, own_adaptive)


def _with(methods: Sequence[str], own: str) -> list[str]:
    """The methods to try, the training one first."""
    return [*([own] if own in METHODS else []), *(method for method in methods if method != own)]


def _flips_of_rounding(swaps: Swaps, margin: float) -> int:
    """Predictions that differ from the reference although the solver is as fine as that, in the model's own precision."""
    reference = swaps.reference
    if not reference.double or swaps.own.outputs.dtype == torch.float64:
        return 0
    return int(swaps.flipped(swaps.subject.run(FixedStep("rk4", n_steps=reference.n_steps))).sum())


def _decide(
    subject: ModelUnderTest, own: Ran, reference: Reference, row: Row, margin: float, rounding: int
) -> Decision:
    decision = decide(row.flips, subject.n, margin)
    if not reference.converged:
        return replace(decision, verdict="inconclusive", needed=None, reason=reference.trouble)
    precision = str(own.outputs.dtype).removeprefix("torch.")
    scale = subject.task.scale(reference.outputs)
    if scale is not None:
        known = reference.outputs[reference.outputs.isfinite()].abs()
        if bool((scale <= 100 * torch.finfo(own.outputs.dtype).eps * known.amax()).any()):
            reason = f"an output is the same for all samples, down to the rounding of {precision}: no gap can be measured by it"
            return replace(decision, verdict="inconclusive", needed=None, reason=reason)
    if decide(rounding, subject.n, margin).lower > margin:
        reason = (
            f"the rounding of {precision} decides: {rounding} of {subject.n} predictions change with a solver that is as fine "
            "as the reference, in that precision. Audit the model in double precision"
        )
        return replace(decision, verdict="inconclusive", needed=None, reason=reason)
    return decision


def _without_reference(
    subject: ModelUnderTest, prepared: Preparation, training: Training, name: str, margin: float
) -> Audit:
    reason = "; ".join(each.text for each in prepared.violated)
    decision = Decision("inconclusive", subject.n, 0, 0.0, 1.0, None, reason)
    judged = Audit(
        verdict="inconclusive",
        margin=margin,
        decision=decision,
        solver=training.text,
        task=subject.task.name,
        metric_name=name,
        preconditions=prepared.preconditions,
        provenance=provenance(subject, prepared.own),
    )
    return replace(judged, sentence=_sentence(judged))


def _chance(subject: ModelUnderTest, metric: Metric | None) -> float:
    """Accuracy of always predicting the most frequent class; mean squared error of always predicting the mean."""
    y = subject.y
    if y is None or metric is not None:
        return nan
    if subject.task.name == "classification":
        return float(torch.unique(y, return_counts=True)[1].max()) / len(y)
    flat = y.double().flatten(1)
    return float((flat - flat.nanmean(0)).square().nanmean())


def _p_value(subject: ModelUnderTest, own: Ran, exact: Ran, metric: Metric | None) -> float:
    if subject.task.name != "classification" or subject.y is None or metric is not None:
        return nan
    right, right_exact = metric_of(subject, own), metric_of(subject, exact)
    assert right is not None
    assert right_exact is not None
    return mcnemar(int((right > right_exact).sum()), int((right_exact > right).sum()))


def _sentence(judged: Audit) -> str:
    decision = judged.decision
    share = f"{decision.flips} of {decision.n} predictions ({percent(decision.flips / decision.n)})"
    if judged.verdict == "inconclusive":
        return f"inconclusive: {decision.reason}."
    means = ""
    if judged.metric == judged.metric:
        name = judged.metric_name
        means = f" {name} {shown(name, judged.metric)} with {judged.solver}, {shown(name, judged.metric_exact)} under the exact flow."
    if judged.verdict == "ode":
        return (
            f"ode: {share} change under the exact flow, at most {percent(decision.upper)} with 95 % confidence; the margin is "
            f"{percent(judged.margin)}.{means}"
        )
    return (
        f"solver-dependent: {share} change under the exact flow, at least {percent(decision.lower)} with 95 % confidence; the "
        f"margin is {percent(judged.margin)}. This model is NOT an ODE.{means}"
    )


def _notes(judged: Audit, subject: ModelUnderTest, own: Ran, exact: Ran, row: Row) -> list[str]:
    found = [f"{each.name}: {each.text}" for each in judged.preconditions if not each.holds]
    classes = subject.task.name == "classification"
    better = judged.metric > judged.chance if classes else judged.metric < judged.chance
    constant = classes and len(torch.unique(own.outputs.argmax(1))) == 1
    if constant:
        found.append("vacuous: the model predicts the same class for every sample, which no solver changes")
    elif judged.chance == judged.chance and judged.metric == judged.metric and not better:
        found.append(
            f"vacuous: {judged.metric_name} {shown(judged.metric_name, judged.metric)} is no better than a constant prediction "
            f"({shown(judged.metric_name, judged.chance)}), and what a model has not learned cannot flip"
        )
    distinct = _distinct(subject)
    if distinct < subject.n:
        found.append(
            f"only {distinct} of the {subject.n} samples are distinct: the bounds hold for independent draws, so there is less "
            "confidence than is stated"
        )
    if judged.reference is None or not judged.reference.converged:
        return found
    if judged.p_value < 0.05:
        found.append(f"the accuracy changes under the exact flow (McNemar, p = {judged.p_value:.2g})")
    losses, losses_exact = losses_of(subject, own), losses_of(subject, exact)
    if losses is not None and losses_exact is not None:
        mean, deviation = paired(losses, losses_exact)
        others = [each.loss for each in judged.rows if each.method == row.method and not each.is_training]
        lower = 0 < FLAGGED * deviation < -mean and -mean > MATERIAL * losses_exact.mean()
        if lower and others and all(row.loss <= other for other in others):
            found.append(
                f"the loss is lowest at the training step: {row.loss:.4g} against {row.loss - mean:.4g} under the exact flow "
                f"({-mean / deviation:.1f} paired standard errors), so the error of the solver has become a feature"
            )
    if judged.safe:
        best = judged.safe[0]
        what = (
            f"{best.method} x {best.setting:g}" if best.kind == "fixed" else f"{best.method}, tol = {best.setting:.2g}"
        )
        found.append(
            f"the cheapest safe solver is {what}: {best.nfe:.4g} field evaluations for a sample, the training solver takes "
            f"{row.nfe:.4g}"
        )
    elif subject.n < samples_for(judged.margin):
        found.append(
            f"no solver can be shown to be safe on {subject.n} samples: {samples_for(judged.margin)} are needed"
        )
    elif len(judged.rows) > 1:
        found.append("none of the solvers that were tried is safe")
    return found


def _distinct(subject: ModelUnderTest) -> int:
    """Samples whose inputs differ, as far as these are tensors."""
    first = [batch[0] if isinstance(batch, tuple | list) else batch for batch in subject.batches]
    if not all(isinstance(x, Tensor) for x in first) or len({tuple(x.shape[1:]) for x in first}) > 1:
        return subject.n
    whole = torch.cat([x.detach().cpu() for x in first]).flatten(1)
    return len({row.tobytes() for row in whole.float().numpy()})


def provenance(subject: ModelUnderTest, own: Ran) -> dict[str, Any]:
    """What was audited, and with what: hash of the weights, versions, device, solver as found in the model's own call."""
    from trueode import __version__

    module = subject.model if isinstance(subject.model, nn.Module) else None
    first = next(iter(module.parameters()), None) if module is not None else None
    versions = {"trueode": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for found in own.found:
        if found.library != "trueode":
            versions[found.library] = _version(found.library)
    return {
        "model": type(subject.model).__name__,
        "weights": weights_hash(module) if module is not None else None,
        "parameters": sum(p.numel() for p in module.parameters()) if module is not None else 0,
        "device": str(first.device) if first is not None else "cpu",
        "dtype": str(first.dtype).removeprefix("torch.") if first is not None else None,
        "seed": torch.initial_seed(),
        "machine": platform.machine(),
        "versions": versions,
        "solver": [
            {"library": found.library, "method": found.method, "settings": found.settings} for found in own.found
        ],
        "batches": list(subject.sizes),
    }


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names."""
    digest = sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # a module's extra state
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value if value.layout == torch.strided else value.to_dense()
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "unknown"
