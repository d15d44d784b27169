"""Figure 5: accuracy and number of steps during adaptation."""

from __future__ import annotations

from math import isnan, nan

import numpy as np

from trueode import figures
from trueode.reproduction.claims import ALLOWED
from trueode.reproduction.numbers import (
    Row,
    grouped,
    markdown,
    mean_and_deviation,
    percent,
    plus_minus,
)
from trueode.reproduction.plans import MOMENTS
from trueode.reproduction.recipe import Context, Made
from trueode.reproduction.scale import whole
from trueode.runs import read_history


def figure_5(context: Context) -> Made:
    """Accuracy and number of steps during adaptation, with the training solver and finer ones."""
    histories = []
    numbers: list[Row] = []
    for run in whole(context.plan):
        path = context.directory.place(run)
        if context.directory.state(run) != "finished":
            continue
        columns = {
            name: np.asarray(column) for name, column in read_history(path / "history.csv").items()
        }
        histories.append(columns)
        tested = np.flatnonzero(np.isfinite(columns["test_accuracy"]))
        names = ("iteration", "test_accuracy", "test_accuracy_reference", "n_steps", "nfe_total")
        first, last = {"seed": run.options.random_seed}, {"hash": run.hash}
        numbers += [
            {
                **first,
                "solver": "euler",
                **{name: float(columns[name][i]) for name in names},
                **last,
            }
            for i in tested
        ]
    moments = [
        {
            "iteration": row["niter"],
            "solver": row["test_solver"],
            "metric": row["metric"],
            "n_steps": row["n_steps"],
        }
        for row in context.rows
        if row["test_solver"]
        and row["factor"] == 1
        and row["random_seed"] == context.plan.runs[0].options.random_seed
    ]
    numbers += [
        {
            "seed": row["random_seed"],
            "solver": row["test_solver"],
            "iteration": row["niter"],
            "test_accuracy": row["metric"],
            "test_accuracy_reference": nan,
            "n_steps": row["n_steps"],
            "nfe_total": nan,
            "hash": row["hash"],
        }
        for row in context.rows
        if row["grid"] == MOMENTS and row["test_solver"] and row["factor"] == 1
    ]
    panels = {
        "a, b  Euler, checked with midpoint": histories,
        "c, d  the first seed at certain moments": histories[:1],
    }
    figure = figures.adaptation_runs(panels, "accuracy", moments)
    ends = [
        row
        for row in context.rows
        if row["grid"] != MOMENTS and row["test_solver"] and row["factor"] == 1
    ]
    head = ("test solver", "accuracy at the end")
    rows = [
        (solver, plus_minus([row["metric"] for row in own]))
        for (solver,), own in grouped(ends, ("test_solver",)).items()
    ]
    nfe = mean_and_deviation([row["nfe_per_iteration"] for row in ends if row["is_training"]])
    text = [markdown(head, rows), f"Mean evaluations per iteration, all counted: {nfe}."]
    apart = [row["test_accuracy"] - row["test_accuracy_reference"] for row in numbers]
    if known := [value for value in apart if not isnan(value)]:
        kept = max(known) <= ALLOWED
        text.append(
            "The paper's claim that the adaptation finds a step at which a finer solver does not "
            f"matter: {'yes' if kept else '**no**'} (over all moments and seeds it costs at most "
            f"{percent(max(known))}, {percent(ALLOWED)} allowed)."
        )
    return Made(figure, numbers, "\n\n".join(text))
