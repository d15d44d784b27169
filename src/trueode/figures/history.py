"""Figures of the history of a run: loss, metric, effort.

A history maps the columns of ``history.csv`` to float arrays of equal length, NaN where a cell is
empty.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from trueode.figures.theme import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    VERMILION,
    logarithmic_y,
    new_figure,
    tell_empty,
    themed,
)

Array = NDArray[np.float64]
History = Mapping[str, Array]

TITLES = {
    "accuracy": "Accuracy",
    "mse": "Mean squared error",
    "bits_per_dim": "Negative log density",
}
UNITS = {"accuracy": "accuracy (%)", "mse": "mse", "bits_per_dim": "bits per dimension"}
COLUMNS = 600  # pixels of a figure's width: more than two points per pixel are invisible


@themed
def loss(history: History) -> Figure:
    """Training loss (logged batches faint, running mean strong) and test loss."""
    figure = new_figure()
    axes = figure.add_subplot(title="Loss", xlabel="iteration", ylabel="loss")
    # a negative log density has no zero of its own
    _curves(axes, history, "loss", scale=1.0, log="bits_per_dim" not in history)
    return figure


@themed
def metric(history: History, name: str) -> Figure:
    """A metric of ``TITLES`` against the iteration; accuracy, a share, is shown in per cent."""
    figure = new_figure()
    share = name == "accuracy"
    axes = figure.add_subplot(title=TITLES[name], xlabel="iteration", ylabel=UNITS[name])
    _curves(axes, history, name, scale=100.0 if share else 1.0, log=name == "mse")
    if share and axes.lines:
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), 101.5)
        axes.axhline(100, color=GREY, linewidth=0.8, zorder=0.5)
    return figure


@themed
def effort(history: History) -> Figure:
    """Field evaluations per iteration, forward and backward, steps per solve, and the tolerance of
    an adaptive solver.
    """
    adaptive = "tolerance" in history
    figure = new_figure(height=4.6 if not adaptive else 6.0)
    panels = figure.subplots(3 if adaptive else 2, 1, sharex=True, gridspec_kw={"hspace": 0.28})
    figure.align_ylabels(panels)
    panels[0].set(title="Effort", ylabel="evaluations")
    panels[1].set(ylabel="steps")
    panels[-1].set_xlabel("iteration")
    # the wider line is drawn below, so both are visible where they agree
    for column, label, tint, width in (
        ("nfe_backward", "backward", VERMILION, 4.0),
        ("nfe", "forward", BLUE, 1.6),
    ):
        draw_steps(panels[0], history, column, tint, label, width)
    draw_steps(panels[1], history, "n_steps", GREEN)
    if adaptive:
        draw_steps(panels[2], history, "tolerance", DARK)
        panels[2].set_ylabel("tolerance")
        logarithmic_y(panels[2])
    for panel in panels[:2]:
        if panel.lines:
            panel.set_ylim(0, max(1.0, panel.dataLim.y1) * 1.15)
            panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if panels[0].lines:
        panels[0].legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, reverse=True
        )
    return figure


def _curves(axes: Axes, history: History, name: str, *, scale: float, log: bool) -> None:
    """A quantity in one panel, with its axis and legend."""
    draw_curves(axes, history, name, scale=scale)
    if not axes.lines:
        return tell_empty(axes)
    if log:
        logarithmic_y(axes)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def draw_curves(axes: Axes, history: History, name: str, *, scale: float) -> None:
    """A quantity on the training batches (faint, with its running mean) and on the test set."""
    iteration, train = known(history, name, scale)
    if len(train) > 1:
        axes.plot(*thinned(iteration, train), color=BLUE, alpha=0.28, linewidth=0.9, label="_batch")
        axes.plot(
            *every(iteration, running_mean(train)),
            color=BLUE,
            label="training batches, running mean",
        )
    elif len(train):
        axes.plot(iteration, train, "o", color=BLUE, label="training batch")
    iteration, test = known(history, f"test_{name}", scale)
    if len(test):
        marks = "o" if len(test) <= 40 else ""
        axes.plot(
            *thinned(iteration, test),
            color=VERMILION,
            marker=marks,
            markersize=4,
            label="test set",
        )


def draw_steps(
    axes: Axes, history: History, name: str, colour: str, label: str = "", width: float = 1.6
) -> None:
    """A column whose value holds until the next row."""
    iteration, values = known(history, name)
    if len(values):
        marker = "o" if len(values) == 1 else ""
        x, y = thinned(iteration, values)
        axes.plot(
            x,
            y,
            color=colour,
            label=label,
            linewidth=width,
            marker=marker,
            drawstyle="steps-post",
            alpha=0.9,
        )
    elif not axes.lines and not axes.texts:
        tell_empty(axes)


def known(history: History, name: str, scale: float = 1.0) -> tuple[Array, Array]:
    """Iterations and scaled values of a column where it is finite; empty if there is no column."""
    iteration = np.asarray(history.get("iteration", ()), dtype=float)
    values = np.asarray(history.get(name, ()), dtype=float)
    if values.shape != iteration.shape:
        return np.empty(0), np.empty(0)
    finite = np.isfinite(values) & np.isfinite(iteration)
    return iteration[finite], values[finite] * scale


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most two points per pixel column, the lowest and the highest, so that no peak is lost."""
    if len(y) <= 2 * COLUMNS:
        return x, y
    starts = np.linspace(0, len(y), COLUMNS, endpoint=False).astype(int)
    extremes = np.stack([np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)], axis=1)
    return np.repeat(x[starts], 2), extremes.ravel()


def every(x: Array, y: Array) -> tuple[Array, Array]:
    """Evenly spaced points of a smooth curve, at most one per pixel."""
    chosen = np.unique(np.linspace(0, len(y) - 1, min(len(y), COLUMNS)).astype(int))
    return x[chosen], y[chosen]


def running_mean(y: Array) -> Array:
    """Mean over a window of a thirtieth of the curve around each point, truncated at the ends."""
    half = max(1, len(y) // 60)
    total = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    mean: Array = (total[high] - total[low]) / (high - low)
    return mean
