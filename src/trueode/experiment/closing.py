"""The end of a run: the table of other solvers, the verdict, the figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.console import Console

from trueode.adaptation import Certificate
from trueode.auditing import Audit
from trueode.auditing import judge as audit
from trueode.build import Shape
from trueode.console import print_answer
from trueode.data import Dataset, Samples
from trueode.errors import SolveError
from trueode.evaluation import (
    ModelOnSamples,
    SolverTable,
    Status,
    by_factors,
    density_portrait,
    get_task,
    phase_portrait,
    series_portrait,
)
from trueode.evaluation.decision import MARGIN
from trueode.evaluation.flow import least_cost
from trueode.evaluation.solver_table import to_rich
from trueode.models import ContinuousFlow, NeuralODE
from trueode.options import Options
from trueode.runs import RunDirectory, read_history
from trueode.training.threads import spared


def where(options: Options, directory: RunDirectory) -> str:
    """The flags that identify a run."""
    usual = options.output_dir == Options.model_fields["output_dir"].default
    place = "" if usual else f" --output_dir {shlex.quote(options.output_dir)}"
    return f"--name {shlex.quote(directory.name)}{place}"


def margin_of(options: Options) -> float:
    """The margin at which a run is judged: that of its certificate, if it ends with one."""
    return options.fidelity if options.certifies else MARGIN


SAMPLES = 1000
LEAST_FLOPS = 50e9


def judge(
    options: Options,
    directory: RunDirectory,
    model: NeuralODE,
    shape: Shape,
    split: Samples,
    what: str,
    evaluations: float,
    console: Console,
    certificate: Certificate | None = None,
) -> Audit:
    """Judge whether the model is an ODE, and evaluate it with other solvers if asked to.

    The verdict uses as many of the first 1000 samples as its budget allows. The budget is a share
    of the run's field ``evaluations``, and at least 50 Gflop. It is not measured in seconds, so
    equal runs have equal verdicts.
    """
    margin = margin_of(options)
    task, solver = get_task(shape.task).fitted(shape.sample, margin), model.solver
    runnable = ModelOnSamples(model, split, task, solver, held_out=what == "test")
    channels = getattr(model.upstream, "out_channels", shape.sample[0])
    flops: float = model.field.flops((channels, *shape.sample[1:]))  # type: ignore[attr-defined]
    budget = max(options.verdict_budget * evaluations, LEAST_FLOPS / flops)
    with console.status("training solver") as status, spared(model, SAMPLES, shape.sample):
        own = runnable.first(SAMPLES).run()
        cost = least_cost(own.n_steps, solver.order)
        n = min(own.n, max(1, int(budget / cost)))
        if n < own.n and n >= runnable.batch_size:
            n -= n % runnable.batch_size  # whole batches: samples of a batch share their steps
        judged = runnable.first(n)
        own = own if n == own.n else judged.run()
        name = f"{what} {{}}" + ("" if n == runnable.n else f" of the first {n} samples")
        found = audit(judged, own, margin=margin, budget=budget, what=name, progress=status.update)
    asked = found.decision
    if asked.status is Status.INCONCLUSIVE and (
        asked.counts.unresolved or n < min(SAMPLES, runnable.n)
    ):
        share = 2 * max(cost, 4 * budget / SAMPLES) * SAMPLES / max(evaluations, 1.0)
        how = (
            f"python train.py --phase infer --split {what} {where(options, directory)} "
            f"--verdict_budget {share:.2g}"
        )
        found = replace(
            found, decision=replace(asked, reason=f"{asked.reason}; check it with: {how}")
        )
    if certificate is not None:
        found = replace(found, certificate=certificate.to_dict())
    if options.evaluate_with_dif_solver:
        found = _with_rows(options, runnable, found, console, what)
    print_answer(console, found.sentence, title=found.verdict, colour=found.colour)
    return found


def _with_rows(
    options: Options, runnable: ModelOnSamples, found: Audit, console: Console, what: str
) -> Audit:
    """Add the table of solvers to an audit, and print it."""
    own = runnable.run()
    if own.status != "success":
        console.print(
            f"note: no other solvers were tried, because the training solver fails on the {what} "
            f"data. {own.message}"
        )
        return found
    decision = found.decision
    table = SolverTable(
        runnable, own, found.exact, decision.counts, margin=decision.margin, level=decision.level
    )
    by_factors(
        table,
        options.test_solver_list,
        options.test_factor_list,
        length=runnable.length,
        tol=options.tol,
    )
    console.print(to_rich(table.rows, found.metric_name))
    return replace(found, rows=table.rows)


def draw(
    directory: RunDirectory, model: NeuralODE, shape: Shape, dataset: Dataset, found: Audit
) -> None:
    """Draw the figures of a run."""
    import numpy as np

    from trueode import figures

    history: Any = {
        name: np.asarray(column) for name, column in read_history(directory.history).items()
    }
    task = get_task(shape.task)
    drawn: dict[str, Callable[[], Any]] = {
        "loss": lambda: figures.loss(history),
        task.metric_name: lambda: figures.metric(history, task.metric_name),
        "effort": lambda: figures.effort(history),
    }
    if "signal" in history:
        drawn["adaptation"] = lambda: figures.adaptation(history, task.metric_name)
    if len(found.rows) > 1:
        rows = [row.to_dict() for row in found.rows]
        drawn["solver_swap"] = lambda: figures.solver_swap(
            rows, found.solver, name=task.metric_name
        )
    with suppress(SolveError):  # the verdict has already reported it
        portrait = (
            phase_portrait(model, dataset.test, model.solver)
            if shape.task == "classification"
            else None
        )
        if portrait is not None:
            drawn["trajectories"] = lambda: figures.trajectories(portrait)
            drawn["regions"] = lambda: figures.regions(portrait)
        if shape.task == "timeseries":
            series = series_portrait(model, dataset.test, task, model.solver)
            drawn["time_series"] = lambda: figures.time_series(*series)
        plane = (
            density_portrait(model, dataset.test, model.solver)
            if isinstance(model, ContinuousFlow)
            else None
        )
        if plane is not None:
            drawn["density"] = lambda: figures.density(plane)
    for name, draw in drawn.items():
        figures.save(draw(), directory.place(f"figures/{name}.png"))
