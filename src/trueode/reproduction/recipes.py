"""Figures and tables from the runs of their plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trueode import figures
from trueode.build import build_data
from trueode.evaluation import phase_portrait
from trueode.experiment import load
from trueode.reproduction import fan
from trueode.reproduction.claims import ALLOWED, swap_claims
from trueode.reproduction.numbers import (
    Row,
    fraction,
    grouped,
    markdown,
    percent,
    plus_minus,
    spread,
    swap_points,
)
from trueode.reproduction.plans import MOMENTS
from trueode.reproduction.scale import whole
from trueode.reproduction.table import better_solver_losses, table_1
from trueode.runs import read_history
from trueode.solvers import FixedStep, Solver
from trueode.sweeps import Plan, SweepDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Context:
    """What a recipe is made of: a plan, where its runs are, and their table."""

    plan: Plan
    directory: SweepDirectory
    rows: Sequence[Row]


@dataclass(frozen=True)
class Made:
    """What a recipe makes.

    Attributes:
        figure: the picture, if there is one.
        numbers: rows of what it shows.
        text: findings in Markdown.
    """

    figure: Figure | None
    numbers: Sequence[Row]
    text: str = ""


@dataclass(frozen=True)
class Recipe:
    """One figure or table.

    Attributes:
        title: what it shows.
        make: draws it.
        silent: where the paper is silent and this is ours.
        trains: whether it needs the runs of its plan.
    """

    title: str
    make: Callable[[Context], Made]
    silent: tuple[str, ...] = ()
    trains: bool = True


def portrait_of(context: Context, grid: str, solver: Solver | None = None) -> dict[str, Any]:
    """The phase portrait of the first seed of a grid."""
    run = next(run for run in context.plan.runs if run.grid == grid)
    model, options = load(context.directory.place(run))
    found = phase_portrait(model, build_data(options).test, solver or model.solver)
    assert found is not None, "the state has two components"
    return found


def figure_1(context: Context) -> Made:
    """Trajectories and accuracy of a fine and a coarse model."""
    names = {"fine": "fine step, h = 1/128", "coarse": "coarse step, h = 1/2"}
    curves = [
        swap_points([row for row in context.rows if row["grid"] == grid], lambda row: row["grid"])
        for grid in names
    ]
    figure = figures.fine_and_coarse(
        [portrait_of(context, grid) for grid in names], curves, list(names.values())
    )
    return Made(
        figure, [point for points in curves for point in points], flips_text(context.rows, "grid")
    )


def figure_2(context: Context) -> Made:
    """Outputs of the coarse model under two steps, over its classifier's regions."""
    steps = {"tested with h = 1/2": 2, "tested with h = 1/4": 4}
    portraits = [portrait_of(context, "", FixedStep("euler", n_steps=n)) for n in steps.values()]
    numbers = [
        {
            "test": name,
            "sample": i,
            "z1": float(z[0]),
            "z2": float(z[1]),
            "label": int(label),
            "prediction": int(own),
        }
        for name, portrait in zip(steps, portraits, strict=True)
        for i, (z, label, own) in enumerate(
            zip(portrait["output"], portrait["labels"], portrait["predictions"], strict=True)
        )
    ]
    shares = ", ".join(
        f"{percent(p['accuracy'])} {name}" for name, p in zip(steps, portraits, strict=True)
    )
    text = f"Accuracy of the {len(portraits[0]['labels'])} samples shown: {shares}."
    return Made(figures.two_outputs(portraits, list(steps)), numbers, text)


def figure_3(context: Context) -> Made:
    """The fan on XOR, and the data."""
    p = fan.CHOSEN
    told = ", ".join(f"{name} = {value:g}" for name, value in p._asdict().items())
    panels, numbers = [], []
    for h, name in ((fan.COARSE, "$h = 10^{-2.5}$"), (fan.FINE, "$h = 10^{-3.5}$")):
        paths = fan.euler(p, fan.steps_of(h), keep=4000)
        gap, normal, offset = (np.asarray(part) for part in fan.margin(paths[-1]))
        line = (normal, float(offset)) if gap > 0 else None
        panels.append(
            {"title": f"Euler, {name}", "paths": paths, "labels": fan.LABELS, "line": line}
        )
        numbers += [
            {"step_size": h, "point": f"{x[0]:g} {x[1]:g}", "label": int(label), "z1": float(z[0]), "z2": float(z[1]), "margin": float(gap)}
            for x, label, z in zip(fan.XOR, fan.LABELS, paths[-1], strict=True)
        ]  # fmt: skip
    coarse, fine, true = (float(value) for value in fan.margins(p))
    shares = ", ".join(
        f"{percent(fan.robustness(p, within))} at ± {100 * within:g} %"
        for within in (0.01, 0.02, 0.05, 0.1)
    )
    text = (
        f"Parameters (the paper does not state them; these were searched for): {told}; T = {fan.T:g}; XOR points are the "
        "corners of the unit square, class 0 on the diagonal. Margin of the best separating line, in standard deviations of the "
        f"ends (negative: there is none): {coarse:.3f} with h = 10^-2.5, {fine:.3f} with h = 10^-3.5, {true:.3f} exactly. "
        f"Share of 200 random parameters around them that show the same, all four changed independently: {shares}."
    )
    run = context.plan.runs[0].options
    train = build_data(run).train
    samples = train.batch(torch.arange(len(train), device="cpu"))
    spheres = (samples.x.flatten(1).numpy(), samples.y.numpy())
    return Made(figures.fan(panels, spheres), numbers, text)


def steps_figure(title: str) -> Callable[[Context], Made]:
    """Figure 4 for fixed steps."""

    def make(context: Context) -> Made:
        points = swap_points(context.rows, lambda row: f"h = {fraction(row['step_size'])}")
        figure = figures.swap_sweep({title: points}, legend="trained with")
        text = (
            f"{flips_text(context.rows, 'step_size')}\n\n{swap_claims(context.rows, 'step_size')}"
        )
        return Made(figure, points, text)

    return make


def tolerances_figure(title: str) -> Callable[[Context], Made]:
    """Figure 4 for tolerances."""

    def make(context: Context) -> Made:
        by_solver = grouped(context.rows, [key for key in ("solver",) if key in context.rows[0]])
        panels, text = (
            {},
            [flips_text(context.rows, *(["solver"] if len(by_solver) > 1 else []), "tol")],
        )
        for solver, own in by_solver.items():
            name = f"Trained with {solver[0]}" if len(by_solver) > 1 else title
            panels[name] = swap_points(own, lambda row: f"tol = {row['tol']:g}", tolerance=True)
            text.append(
                f"{name}. {swap_claims(own, 'tol')}"
                if len(by_solver) > 1
                else swap_claims(own, "tol")
            )
        figure = figures.swap_sweep(panels, kind="adaptive", legend="trained with")
        numbers = [{"panel": name, **point} for name, points in panels.items() for point in points]
        return Made(figure, numbers, "\n\n".join(text))

    return make


def figure_5(context: Context) -> Made:
    """Accuracy and steps while the step adapts, with finer solvers beside the training solver."""
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
        {"seed": row["random_seed"], "solver": row["test_solver"], "iteration": row["niter"], "test_accuracy": row["metric"],
         "test_accuracy_reference": nan, "n_steps": row["n_steps"], "nfe_total": nan, "hash": row["hash"]}
        for row in context.rows
        if row["grid"] == MOMENTS and row["test_solver"] and row["factor"] == 1
    ]  # fmt: skip
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
    nfe = plus_or_minus([row["nfe_per_iteration"] for row in ends if row["is_training"]])
    text = [markdown(head, rows), f"Mean evaluations per iteration, all counted: {nfe}."]
    apart = [row["test_accuracy"] - row["test_accuracy_reference"] for row in numbers]
    if known := [value for value in apart if not isnan(value)]:
        kept = max(known) <= ALLOWED
        text.append(
            f"The paper's claim that the adaptation finds a step at which a finer solver does not matter: {'yes' if kept else '**no**'} "
            f"(over all moments and seeds it costs at most {percent(max(known))}, {percent(ALLOWED)} allowed)."
        )
    return Made(figure, numbers, "\n\n".join(text))


def plus_or_minus(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation."""
    found = spread(values)
    return f"{found['mean']:.1f}" + (f" ± {found['std']:.1f}" if found["n"] > 1 else "")


def critical(by: str, name: str = "training steps") -> Callable[[Context], Made]:
    """How much accuracy a better solver costs, and the coarsest step at which that is allowed."""

    def make(context: Context) -> Made:
        losses = better_solver_losses(context.rows, by)
        groups: dict[str, list[Row]] = {}
        for point in losses:
            groups.setdefault(point["group"], []).append(point)
        table = []
        for label, points in groups.items():
            ordered = sorted(points, key=lambda point: point["x"])
            passing = [
                k
                for k, point in enumerate(ordered)
                if all(later["mean"] <= ALLOWED for later in ordered[k:])
            ]
            at = ordered[passing[0]] if passing else ordered[-1]
            first = f"{'' if passing else 'finer than '}{fraction(at['step_size'])}"
            ends = (
                f"{fraction(point['step_size'])}: {percent(point['accuracy'])}"
                for point in (ordered[0], ordered[-1])
            )
            there = (at["accuracy"], at["mean"], at["flips"])
            table.append((label, first, *map(percent, there), ", ".join(ends)))
        head = (
            by,
            "critical step",
            "test accuracy there",
            "lost under the better solver",
            "flips against the exact flow",
            "test accuracy with the coarsest and the finest step",
        )
        text = (
            "The coarsest training step from which on solvers of higher order at the same step lose at most "
            f"{100 * ALLOWED:g} % test accuracy, mean over seeds (our criterion):\n\n{markdown(head, table)}"
        )
        return Made(figures.critical_steps(groups, ALLOWED, name=name), losses, text)

    return make


def first_table(data: str) -> Callable[[Context], Made]:
    """Table 1, beside the paper's numbers."""

    def make(context: Context) -> Made:
        rows, text = table_1(context.rows, data)
        return Made(None, rows, f"{text}\n\n{samples_text(context.rows)}".rstrip())

    return make


def flips_text(rows: Sequence[Row], *keys: str) -> str:
    """For each training configuration: accuracy, that under the exact flow, and flips against it;
    and of how many samples.
    """
    trained = [row for row in rows if row["is_training"]]
    lines = []
    for values, own in grouped(trained, keys).items():
        lines.append(
            (
                ", ".join(
                    fraction(value) if isinstance(value, float) else str(value) for value in values
                ),
                plus_minus([row["metric"] for row in own]),
                plus_minus([row["metric_exact"] for row in own]),
                plus_minus([row["flips"] for row in own]),
                f"{sum(row['verdict'] == 'ode' for row in own)} of {len(own)}",
            )
        )
    head = (
        ", ".join(keys),
        "test accuracy as trained",
        "under the exact flow",
        "flips against the exact flow",
        "verdict: ODE",
    )
    return (
        "\n\n".join(part for part in (markdown(head, lines), samples_text(trained)) if part)
        if lines
        else ""
    )


def samples_text(rows: Sequence[Row]) -> str:
    """How many samples the exact flow was computed for."""
    samples = sorted({row["samples"] for row in rows if row["flips"] is not None})
    if not samples:
        return ""
    if len(samples) == 1:
        return f"The exact flow is that of the first {samples[0]} test samples."
    return (
        f"The exact flow is that of as many of the first test samples as `verdict_budget` allows, {samples[0]} to {samples[-1]}; "
        "accuracy as trained is that of all."
    )


CHOSEN_TOLERANCES = "tolerances 1e-1 … 1e-5"
CRITERION = (
    "the grid search takes the coarsest step at which solvers of higher order at the same step lose at most 0.1 test accuracy, "
    "mean over seeds"
)
CERTIFIED = (
    "the evaluations of `fidelity` count its certificate, a thousand samples under the exact flow, which in runs of a few hundred "
    "iterations is most of them"
)
WITHOUT_EULER = (
    "`fidelity` is not run with Euler: at small scale two such runs were not certified with 50 and 116 steps after 600 iterations, "
    "and were stopped while they went on with 100 and 232"
)

RECIPES: dict[str, Recipe] = {
    "fig1": Recipe(
        "Trajectories in phase space for a fine (a) and a coarse (b) training step of Euler, and the test accuracy of each "
        "against the number of steps (c, d)",
        figure_1,
        ("the fine step is 1/128", "trajectories are those of the first seed"),
    ),
    "fig2": Recipe(
        "Output of the ODE block of the model trained with h = 1/2, over the regions of its classifier, tested with h = 1/2 "
        "(a) and h = 1/4 (b)",
        figure_2,
    ),
    "fig3": Recipe(
        "Lady Windermere's fan on XOR: the ends of Euler with h = 10^-2.5 are linearly separable (a), with h = 10^-3.5 they are "
        "not (b); the concentric spheres (c)",
        figure_3,
        ("the parameters of the field, the end T and the XOR points",),
        trains=False,
    ),
    "fig4a": Recipe(
        "Trained with Euler, tested with Euler, midpoint and rk4",
        steps_figure("Trained with Euler"),
    ),
    "fig4b": Recipe("Trained and tested with rk4", steps_figure("Trained with rk4")),
    "fig4c": Recipe(
        "Trained with Fehlberg 2(1), tested with Fehlberg 2(1) and Dopri5",
        tolerances_figure("Trained with Fehlberg 2(1)"),
        (CHOSEN_TOLERANCES,),
    ),
    "fig4d": Recipe(
        "Trained and tested with Dopri5",
        tolerances_figure("Trained with Dopri5"),
        (CHOSEN_TOLERANCES,),
    ),
    "fig5": Recipe(
        "Step adaptation: test accuracy and number of steps over training; beside the training solver a finer one",
        figure_5,
        (
            "the finer solver during training is rk4 with as many steps (at least 16)",
            "the moments are each eighth of the run of the first seed; there Euler, midpoint and rk4 take as many steps as training goes on with",
        ),
    ),
    "table1": Recipe(
        "Table 1, concentric spheres in two dimensions",
        first_table("spheres"),
        (CRITERION, CERTIFIED),
    ),
    "table1_cifar": Recipe(
        "Table 1, CIFAR-10", first_table("cifar10"), (CRITERION, CERTIFIED, WITHOUT_EULER)
    ),
    "spheres": Recipe(
        "Critical step size of concentric spheres in 3 and 10 dimensions, Euler",
        critical("dataset"),
        (CRITERION,),
    ),
    "sphere900": Recipe(
        "Critical step size of concentric spheres in 900 dimensions, Euler",
        critical("dataset"),
        (CRITERION,),
    ),
    "minima": Recipe(
        "Critical step size of the three minima, Euler", critical("dataset"), (CRITERION,)
    ),
    "tolerances": Recipe(
        "Trained with Fehlberg 2(1) and with Dopri5 at several tolerances, concentric spheres in two dimensions",
        tolerances_figure("Trained at several tolerances"),
    ),
    "mnist": Recipe("Critical step size of MNIST, Euler", critical("dataset"), (CRITERION,)),
}
