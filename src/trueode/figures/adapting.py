"""The figure of an adaptive run: its metric, solver, signal and cost."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trueode.figures.history import (
    TITLES,
    UNITS,
    Array,
    History,
    draw_curves,
    draw_steps,
    every,
    known,
    running_mean,
    thinned,
)
from trueode.figures.theme import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    VERMILION,
    logarithmic_y,
    lone_mark,
    new_figure,
    per_cent_y,
    tell_empty,
    themed,
)

WIDE, NARROW = 0.09, 0.02  # shares of the width that "order 4" and "4" take
MARKS = 80  # largest number of hollow marks on a line


@themed
def adaptation(history: History, metric: str) -> Figure:
    """Metric, steps and tolerance, signal and target, and evaluations of an adaptive run, each
    against the iteration.

    Args:
        history: of the run.
        metric: as in `metric`.
    """
    width, height = 8.8, 9.0
    figure = new_figure(width, height)
    figure.subplots_adjust(right=1 - 0.8 / width)  # room for the axes on the right
    panels = figure.subplots(
        4, 1, sharex=True, gridspec_kw={"height_ratios": [1.5, 1, 1, 1], "hspace": 0.32}
    )
    _metric(panels[0], history, metric)
    _solver(panels[1], history)
    _signal(panels[2], history)
    _effort(panels[3], history)
    panels[-1].set_xlabel("iteration")
    figure.align_ylabels(panels)
    return figure


def _metric(axes: Axes, history: History, metric: str) -> None:
    """The metric on training batches and on the test set, where the gap to the finer solver is
    shaded.
    """
    share = metric == "accuracy"
    scale = 100.0 if share else 1.0
    axes.set(title=TITLES[metric], ylabel=UNITS[metric])
    draw_curves(axes, history, metric, scale=scale)
    iteration, reference = known(history, f"test_{metric}_reference", scale)
    if len(reference):
        axes.plot(
            iteration,
            reference,
            color=DARK,
            linewidth=1.0,
            marker="o",
            markersize=6.5 if len(reference) <= MARKS / 2 else 4.5,
            markerfacecolor="none",
            markevery=-(-len(reference) // MARKS),
            zorder=1.9,  # the line of the test set runs through the marks where both agree
            label="test set, finer solver",
        )
    if not axes.lines:
        return tell_empty(axes)
    tested, own = known(history, f"test_{metric}", scale)
    both, here, there = np.intersect1d(tested, iteration, return_indices=True)
    axes.fill_between(both, own[here], reference[there], color=VERMILION, alpha=0.25, linewidth=0)
    if share:
        per_cent_y([axes])
    elif metric == "mse":
        logarithmic_y(axes)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2
    )


def _solver(axes: Axes, history: History) -> None:
    """Number of steps, tolerance on a second axis, and changes of the method."""
    axes.set(title="Solver", ylabel="steps")
    iteration, tolerance = _with_gaps(history, "tolerance")
    adaptive = bool(np.isfinite(tolerance).any())
    _counts(axes, history, "n_steps", GREEN, alone=not adaptive)
    if adaptive:
        right = _right_axis(axes, "tolerance", DARK)
        right.margins(y=0.2)  # room for the names of methods
        x, y = thinned(iteration, tolerance)
        right.plot(
            x,
            y,
            color=DARK,
            linewidth=1.2,
            marker=lone_mark(y),
            markersize=3,
            drawstyle="steps-post",
        )
        logarithmic_y(right)
    _methods(axes, *known(history, "order"))


def _methods(axes: Axes, iteration: Array, order: Array) -> None:
    """A thin line at each change of the method, labelled with its order if there is room."""
    changes = np.flatnonzero(np.diff(order)) + 1
    if not len(changes):
        return
    first = np.array([0, *changes])
    low, high = axes.get_xlim()
    room = np.diff(iteration[first], append=high) / (high - low)
    for start, value, share in zip(iteration[first], order[first], room, strict=True):
        if start > iteration[0]:
            axes.axvline(start, color=GREY, linewidth=0.8)
        name = f"order {value:g}" if share > WIDE else f"{value:g}" if share > NARROW else ""
        axes.annotate(
            name,
            (start, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, -1),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )


def _signal(axes: Axes, history: History) -> None:
    """The signal of the rule at its checks, and its target."""
    axes.set(title="Signal of the rule", ylabel="signal")
    iteration, signal = known(history, "signal")
    if len(signal):
        x, y = thinned(iteration, signal)
        axes.plot(x, y, color=BLUE, linewidth=0.8, marker="o", markersize=3, label="signal")
    iteration, target = known(history, "target")
    if len(target):
        x, y = thinned(iteration, target)
        axes.plot(
            x,
            y,
            color=DARK,
            linestyle="--",
            linewidth=1.2,
            marker=lone_mark(y),
            drawstyle="steps-post",
            label="target",
        )
    if not axes.lines:
        return tell_empty(axes)
    logarithmic_y(axes)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def _effort(axes: Axes, history: History) -> None:
    """Field evaluations per iteration, checks included, and their cumulative number."""
    axes.set(title="Field evaluations", ylabel="per iteration")
    iteration, total = known(history, "nfe_total")
    _counts(axes, history, "nfe", BLUE, alone=not len(total))
    if len(total):
        unit, name = _unit(total.max())
        right = _right_axis(axes, f"cumulative{name}", DARK)
        x, y = thinned(iteration, total / unit)
        right.plot(x, y, color=DARK, linewidth=1.4, marker=lone_mark(y), markersize=3)
        _from_zero(right)
    iteration, calls = known(history, "nfe")
    if len(calls) > 1:  # checks make it a comb: draw it faint, with a running mean
        axes.lines[0].set_alpha(0.35)
        axes.plot(*every(iteration, running_mean(calls)), color=BLUE, label="running mean")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _counts(axes: Axes, history: History, name: str, tint: str, *, alone: bool) -> None:
    """Counts on an axis from zero, whose label has their colour unless it is the only axis."""
    if not alone:
        axes.yaxis.label.set_color(tint)
    if len(known(history, name)[0]):
        draw_steps(axes, history, name, tint, width=1.2)
        _from_zero(axes)
    elif alone:
        tell_empty(axes)
    else:
        axes.yaxis.set_visible(False)  # the other axis has data


def _with_gaps(history: History, name: str) -> tuple[Array, Array]:
    """A column with gaps where it is empty, such as the tolerance of a solver with fixed steps."""
    if not len(known(history, name)[0]):
        return np.empty(0), np.empty(0)
    values = np.asarray(history[name], dtype=float)
    return np.asarray(history["iteration"], dtype=float), np.where(
        np.isfinite(values), values, np.nan
    )


def _right_axis(axes: Axes, label: str, tint: str) -> Axes:
    """A second y axis on the right, without a grid."""
    right = axes.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    right.set_ylabel(label, color=tint)
    return right


def _unit(largest: float) -> tuple[float, str]:
    """A unit for numbers with few digits."""
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= 2 * unit:
            return unit, f"\n({name})"
    return 1.0, ""


def _from_zero(axes: Axes) -> None:
    """An axis of counts that begins at zero."""
    axes.set_ylim(0, max(1.0, axes.dataLim.y1) * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
