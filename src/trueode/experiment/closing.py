"""The end of a run: other solvers, the verdict, the figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console

from trueode.build import Shape
from trueode.data import Dataset, Samples
from trueode.errors import SolveError
from trueode.evaluation import SwapTable, Verdict, get_task, phase_portrait, series_portrait, swap_table, verdict
from trueode.models import NeuralODE
from trueode.options import Options
from trueode.runs import RunDirectory, read_history


def where(options: Options, directory: RunDirectory) -> str:
    """The flags that name a run."""
    place = (
        ""
        if options.output_dir == Options.model_fields["output_dir"].default
        else f" --output_dir {shlex.quote(options.output_dir)}"
    )
    return f"--name {shlex.quote(directory.name)}{place}"


def judge(
    options: Options,
    directory: RunDirectory,
    model: NeuralODE,
    shape: Shape,
    split: Samples,
    what: str,
    evaluations: float,
    console: Console,
) -> tuple[SwapTable | None, Verdict]:
    """Evaluate with other solvers if asked to, and tell whether the model is an ODE."""
    task = get_task(shape.task)
    table = None
    if options.evaluate_with_dif_solver:
        try:
            table = swap_table(
                model, split, task, model.solver, options.test_solver_list, options.test_factor_list, tol=options.tol
            )
            console.print(table.to_rich())
        except SolveError as failure:
            console.print(f"note: no other solvers were tried, the training solver fails on the {what} data. {failure}")
    channels = getattr(model.upstream, "out_channels", shape.sample[0])
    with console.status("comparing with the exact flow"):
        judged = verdict(
            model,
            split,
            task,
            model.solver,
            run_evaluations=evaluations,
            share=options.verdict_budget,
            flops=model.field.flops((channels, *shape.sample[1:])),  # type: ignore[attr-defined]
            what=what,
            command=f"python train.py --phase infer --split {what} {where(options, directory)}",
        )
    console.print(judged.sentence, style="bold")
    return table, judged


def draw(directory: RunDirectory, model: NeuralODE, shape: Shape, dataset: Dataset, table: SwapTable | None) -> None:
    """Draw what the run has to show."""
    import numpy as np

    from trueode import figures

    history: Any = {name: np.asarray(column) for name, column in read_history(directory.history).items()}
    task = get_task(shape.task)
    drawn: dict[str, Callable[[], Any]] = {
        "loss": lambda: figures.loss(history),
        task.metric_name: lambda: figures.metric(history, task.metric_name),
        "effort": lambda: figures.effort(history),
    }
    if "signal" in history:
        drawn["adaptation"] = lambda: figures.adaptation(history, task.metric_name)
    if table is not None:
        rows = [row.to_dict() for row in table.rows]
        drawn["solver_swap"] = lambda: figures.solver_swap(rows, str(table.training))
    with suppress(SolveError):  # on the test data: the verdict has told of it
        portrait = phase_portrait(model, dataset.test, model.solver) if shape.task == "classification" else None
        if portrait is not None:
            drawn["trajectories"] = lambda: figures.trajectories(portrait)
            drawn["regions"] = lambda: figures.regions(portrait)
        if shape.task == "timeseries":
            series = series_portrait(model, dataset.test, task, model.solver)
            drawn["time_series"] = lambda: figures.time_series(*series)
    for name, draw in drawn.items():
        figures.save(draw(), directory.figures / f"{name}.png")
