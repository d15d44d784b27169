"""Figures 1 to 3: trajectories and outputs in phase space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trueode import figures
from trueode.build import build_data
from trueode.evaluation import phase_portrait
from trueode.experiment import load
from trueode.reproduction import fan
from trueode.reproduction.exact_flow import flips_text
from trueode.reproduction.numbers import percent, swap_points
from trueode.reproduction.recipe import Context, Made
from trueode.solvers import FixedStep, Solver


def portrait_of(context: Context, grid: str, solver: Solver | None = None) -> dict[str, Any]:
    """The phase portrait of the first seed of a grid."""
    run = next(run for run in context.plan.runs if run.grid == grid)
    model, options = load(context.directory.place(run))
    found = phase_portrait(model, build_data(options).test, solver or model.solver)
    assert found is not None, "the state has two components"
    return found


def figure_1(context: Context) -> Made:
    """Trajectories and accuracy of a model with fine and of one with coarse training steps."""
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
    """Outputs of the coarse model with two step sizes, over the regions of its classifier."""
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
    """Lady Windermere's fan on XOR, and the concentric spheres."""
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
            {
                "step_size": h,
                "point": f"{x[0]:g} {x[1]:g}",
                "label": int(label),
                "z1": float(z[0]),
                "z2": float(z[1]),
                "margin": float(gap),
            }
            for x, label, z in zip(fan.XOR, fan.LABELS, paths[-1], strict=True)
        ]
    coarse, fine, true = (float(value) for value in fan.margins(p))
    shares = ", ".join(
        f"{percent(fan.robustness(p, within))} at ± {100 * within:g} %"
        for within in (0.01, 0.02, 0.05, 0.1)
    )
    text = (
        f"Parameters (found by a search, because the paper does not state them): {told}; "
        f"T = {fan.T:g}; the XOR points are the corners of the unit square, with class 0 on the "
        "diagonal. Margin of the best separating line, in standard deviations of the ends "
        f"(negative if no line separates them): {coarse:.3f} with h = 10^-2.5, {fine:.3f} with "
        f"h = 10^-3.5, {true:.3f} exactly. Share of 200 random sets of parameters nearby, with all "
        f"four changed independently, that show the same effect: {shares}."
    )
    run = context.plan.runs[0].options
    train = build_data(run).train
    samples = train.batch(torch.arange(len(train), device="cpu"))
    spheres = (samples.x.flatten(1).numpy(), samples.y.numpy())
    return Made(figures.fan(panels, spheres), numbers, text)
