"""Figures of adaptive runs: what the rule saw, what it chose, what came of it, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from trueode.figures.history import (
    Array,
    History,
    draw_curves,
    draw_steps,
    every,
    known,
    running_mean,
    thinned,
)
from trueode.figures.swap import MARKS as SOLVERS
from trueode.figures.theme import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    VERMILION,
    drawn_y,
    logarithmic_y,
    new_figure,
    tell_empty,
    themed,
    two_rows,
)

WIDE, NARROW = 0.09, 0.02  # shares of the width that "order 4" and "4" take
MARKS = 80  # hollow marks of a line, at most
DASHES = (0, (2.4, 1.6))


@themed
def adaptation(history: History, metric: str) -> Figure:
    """An adaptive run: metric, steps and tolerance, signal and target, evaluations, all against the
    iteration.

    Args:
        history: of the run.
        metric: ``"accuracy"``, a share shown in per cent, or ``"mse"``.
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


@themed
def adaptation_runs(
    runs: Mapping[str, Sequence[History]], metric: str, moments: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """The paper's Figure 5: several seeds of each rule, side by side; metric above, number of steps
    below.

    Args:
        runs: the histories of each rule, by its name.
        metric: ``"accuracy"``, a share shown in per cent, or ``"mse"``.
        moments: tests under other solvers, drawn over the last of ``runs``: each with
            ``iteration``, ``solver``, ``metric`` and ``n_steps``.

    Thin lines are seeds, strong ones their mean as far as all of them go.
    """
    groups = dict(runs) or {"": ()}
    width, height = max(6.4, 1.2 + 3.7 * len(groups)), 5.8
    figure = new_figure(width, height)
    figure.subplots_adjust(
        top=1 - (0.88 if moments else 0.66) / height
    )  # room for the legend above the titles
    panels = two_rows(figure, len(groups), 1.5, 0.12, 0.07, sharex="col", sharey="row")
    share = metric == "accuracy"
    scale = 100.0 if share else 1.0
    for (upper, lower), (name, histories) in zip(panels.T, groups.items(), strict=True):
        upper.set_title(name)
        lower.set_xlabel("iteration")
        lower.xaxis.set_major_locator(MaxNLocator(nbins=5))
        _seeds(
            upper, [_scaled(history, f"test_{metric}", scale) for history in histories], VERMILION
        )
        _seeds(
            upper,
            [_scaled(history, f"test_{metric}_reference", scale) for history in histories],
            DARK,
            above=True,
        )
        _seeds(lower, [known(history, "n_steps") for history in histories], GREEN, steps=True)
        for axes in (upper, lower):
            if not axes.lines:
                tell_empty(axes)
    tested = list(dict.fromkeys(moment["solver"] for moment in moments))
    for solver in tested:
        own = [moment for moment in moments if moment["solver"] == solver]
        for axes, name, factor in (
            (panels[0, -1], "metric", scale),
            (panels[1, -1], "n_steps", 1.0),
        ):
            axes.plot(
                [m["iteration"] for m in own], [m[name] * factor for m in own], **_marked(solver)
            )
    panels[0, 0].set_ylabel("test accuracy (%)" if share else f"test {metric}")
    panels[1, 0].set_ylabel("steps")
    if share:
        _per_cent(panels[0])
    else:
        _logarithmic(panels[0])
    _step_axis(panels[1])
    figure.align_ylabels(panels[:, 0])
    handles = [
        Line2D([], [], color=VERMILION, linewidth=2.6, label="training solver"),
        Line2D([], [], color=DARK, linewidth=1.6, linestyle=DASHES, label="finer solver"),
        Line2D([], [], color=GREY, linewidth=0.7, label="one seed"),
        Line2D([], [], color=GREY, linewidth=2.6, label="mean of the seeds"),
    ]
    handles += [
        Line2D([], [], label=f"tested with {solver}", **_marked(solver)) for solver in tested
    ]
    figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(figure.subplotpars.right, 1 - 0.08 / height),
        ncols=4,
        borderaxespad=0.0,
        handlelength=2.2,
        columnspacing=1.6,
    )
    return figure


def _marked(solver: str) -> dict[str, Any]:
    """How tests under a solver are marked."""
    mark, tint = SOLVERS[solver]
    return {
        "marker": mark,
        "color": tint,
        "linestyle": "none",
        "markersize": 6,
        "markerfacecolor": "none",
        "zorder": 5,
    }


def _metric(axes: Axes, history: History, metric: str) -> None:
    """The metric on training batches and on the test set, there also under the finer solver; gaps
    between are shaded.
    """
    share = metric == "accuracy"
    scale = 100.0 if share else 1.0
    axes.set(
        title="Accuracy" if share else "Mean squared error",
        ylabel="accuracy (%)" if share else metric,
    )
    draw_curves(axes, history, metric, scale=scale)
    iteration, reference = _scaled(history, f"test_{metric}_reference", scale)
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
            zorder=1.9,  # where both agree, the test set's own line runs through the marks
            label="test set, finer solver",
        )
    if not axes.lines:
        return tell_empty(axes)
    tested, own = _scaled(history, f"test_{metric}", scale)
    both, here, there = np.intersect1d(tested, iteration, return_indices=True)
    axes.fill_between(both, own[here], reference[there], color=VERMILION, alpha=0.25, linewidth=0)
    if share:
        _per_cent([axes])
    else:
        logarithmic_y(axes)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2
    )


def _solver(axes: Axes, history: History) -> None:
    """Number of steps; the tolerance on an axis of its own; where the method changes."""
    axes.set(title="Solver", ylabel="steps")
    iteration, tolerance = _with_gaps(history, "tolerance")
    adaptive = bool(np.isfinite(tolerance).any())
    _counts(axes, history, "n_steps", GREEN, alone=not adaptive)
    if adaptive:
        right = _right_axis(axes, "tolerance", DARK)
        right.margins(y=0.2)  # room for the names of methods
        x, y = thinned(iteration, tolerance)
        right.plot(
            x, y, color=DARK, linewidth=1.2, marker=_mark(y), markersize=3, drawstyle="steps-post"
        )
        logarithmic_y(right)
    _methods(axes, *known(history, "order"))


def _methods(axes: Axes, iteration: Array, order: Array) -> None:
    """A thin line at each change of the method, and its order at the top of the panel where there
    is room for it.
    """
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
    """What the rule saw at its checks, and what it wants to see."""
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
            marker=_mark(y),
            drawstyle="steps-post",
            label="target",
        )
    if not axes.lines:
        return tell_empty(axes)
    logarithmic_y(axes)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def _effort(axes: Axes, history: History) -> None:
    """Evaluations of an iteration, those of checks among them, and of all up to it."""
    axes.set(title="Field evaluations", ylabel="per iteration")
    iteration, total = known(history, "nfe_total")
    _counts(axes, history, "nfe", BLUE, alone=not len(total))
    if len(total):
        unit, name = _unit(total.max())
        right = _right_axis(axes, f"cumulative{name}", DARK)
        x, y = thinned(iteration, total / unit)
        right.plot(x, y, color=DARK, linewidth=1.4, marker=_mark(y), markersize=3)
        _from_zero(right)
    iteration, calls = known(history, "nfe")
    if len(calls) > 1:  # checks make a comb: it is faint, and a mean runs through it
        axes.lines[0].set_alpha(0.35)
        axes.plot(*every(iteration, running_mean(calls)), color=BLUE, label="running mean")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _counts(axes: Axes, history: History, name: str, tint: str, *, alone: bool) -> None:
    """Counts on an axis from zero, in the colour of its label unless it stands ``alone``."""
    if not alone:
        axes.yaxis.label.set_color(tint)
    if len(known(history, name)[0]):
        draw_steps(axes, history, name, tint, width=1.2)
        _from_zero(axes)
    elif alone:
        tell_empty(axes)
    else:
        axes.yaxis.set_visible(False)  # the other axis has data


def _seeds(
    axes: Axes,
    curves: Sequence[tuple[Array, Array]],
    tint: str,
    *,
    steps: bool = False,
    above: bool = False,
) -> None:
    """A thin line per seed, and their mean; one ``above`` another lets it shine through where they
    agree.
    """
    curves = [curve for curve in curves if len(curve[0])]
    drawing = "steps-post" if steps else "default"
    for x, y in curves:
        x, y = thinned(x, y)
        axes.plot(
            x,
            y,
            color=tint,
            linewidth=0.7,
            alpha=0.45,
            marker=_mark(y),
            markersize=3,
            drawstyle=drawing,
            zorder=1.5,
        )
    if curves:
        x, y = thinned(*_mean(curves, _held if steps else np.interp))
        width, dashes = (1.6, DASHES) if above else (2.6 if not steps else 2.0, "-")
        axes.plot(
            x,
            y,
            color=tint,
            linewidth=width,
            linestyle=dashes,
            marker=_mark(y),
            drawstyle=drawing,
            label="mean",
        )


def _mean(
    curves: Sequence[tuple[Array, Array]], between: Callable[[Array, Array, Array], Array]
) -> tuple[Array, Array]:
    """Mean of curves where all of them are known; ``between`` gives values between the points of
    one.
    """
    points = np.unique(np.concatenate([x for x, _ in curves]))
    points = points[
        (points >= max(x[0] for x, _ in curves)) & (points <= min(x[-1] for x, _ in curves))
    ]
    return points, np.mean([between(points, x, y) for x, y in curves], axis=0)


def _held(points: Array, x: Array, y: Array) -> Array:
    """Values that hold until the next one."""
    return y[np.searchsorted(x, points, side="right") - 1]


def _scaled(history: History, name: str, scale: float) -> tuple[Array, Array]:
    iteration, values = known(history, name)
    return iteration, values * scale


def _with_gaps(history: History, name: str) -> tuple[Array, Array]:
    """A column that breaks off where it is empty, as the tolerance does where the solver takes
    fixed steps.
    """
    if not len(known(history, name)[0]):
        return np.empty(0), np.empty(0)
    values = np.asarray(history[name], dtype=float)
    return np.asarray(history["iteration"], dtype=float), np.where(
        np.isfinite(values), values, np.nan
    )


def _right_axis(axes: Axes, label: str, tint: str) -> Axes:
    """A second y axis on the right, without a grid of its own."""
    right = axes.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    right.set_ylabel(label, color=tint)
    return right


def _mark(y: Array) -> str:
    """A single point is no line: it needs a mark."""
    return "o" if len(y) == 1 else ""


def _unit(largest: float) -> tuple[float, str]:
    """A unit that leaves few digits."""
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= 2 * unit:
            return unit, f"\n({name})"
    return 1.0, ""


def _from_zero(axes: Axes) -> None:
    """An axis of counts."""
    axes.set_ylim(0, max(1.0, axes.dataLim.y1) * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _per_cent(panels: Sequence[Axes]) -> None:
    """A common axis of shares, which ends at 100 if the data come near."""
    low, high = panels[0].get_ylim()
    low = max(0.0, low)
    panels[0].set_ylim(low, min(high, 100 + 0.03 * (100 - low)))
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _logarithmic(panels: Sequence[Axes]) -> None:
    """A common logarithmic axis, unless a value of any panel forbids it."""
    drawn = {axes: values for axes in panels if len(values := drawn_y([axes]))}
    if drawn and all(values.min() > 0 for values in drawn.values()):
        logarithmic_y(max(drawn, key=lambda axes: drawn[axes].max() / drawn[axes].min()))


def _step_axis(panels: Sequence[Axes]) -> None:
    """A common axis of numbers of steps: logarithmic where a linear one would hide the small ones."""
    values = drawn_y(panels)
    if len(values) and values.max() > 20 * values.min() > 0:
        _logarithmic(panels)
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    elif len(values):
        panels[0].set_ylim(0, 1.15 * max(1.0, values.max()))
        panels[0].yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
