"""The paper's Figure 5: several adaptive runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from trueode.figures.history import Array, History, known, thinned
from trueode.figures.swap import MARKS
from trueode.figures.theme import (
    DARK,
    GREEN,
    GREY,
    VERMILION,
    drawn_y,
    logarithmic_y,
    lone_mark,
    new_figure,
    per_cent_y,
    tell_empty,
    themed,
    two_rows,
)

DASHES = (0, (2.4, 1.6))


@themed
def adaptation_runs(
    runs: Mapping[str, Sequence[History]], metric: str, moments: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """The paper's Figure 5: the metric (above) and the number of steps (below) of several seeds of
    each rule.

    Thin lines are seeds, thick lines their mean over the iterations that all of them have.

    Args:
        runs: the histories of each rule, by its name.
        metric: ``"accuracy"``, a share shown in per cent, or ``"mse"``.
        moments: tests under other solvers, drawn over the last of ``runs``: each with
            ``iteration``, ``solver``, ``metric`` and ``n_steps``.
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
        _seeds(upper, [known(history, f"test_{metric}", scale) for history in histories], VERMILION)
        _seeds(
            upper,
            [known(history, f"test_{metric}_reference", scale) for history in histories],
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
        per_cent_y(panels[0])
    else:
        _common_logarithmic(panels[0])
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
    """The style of the tests under a solver."""
    mark, tint = MARKS[solver]
    return {
        "marker": mark,
        "color": tint,
        "linestyle": "none",
        "markersize": 6,
        "markerfacecolor": "none",
        "zorder": 5,
    }


def _seeds(
    axes: Axes,
    curves: Sequence[tuple[Array, Array]],
    tint: str,
    *,
    steps: bool = False,
    above: bool = False,
) -> None:
    """A thin line per seed, and their mean; a mean ``above`` another is dashed, to show it too."""
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
            marker=lone_mark(y),
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
            marker=lone_mark(y),
            drawstyle=drawing,
            label="mean",
        )


def _mean(
    curves: Sequence[tuple[Array, Array]], between: Callable[[Array, Array, Array], Array]
) -> tuple[Array, Array]:
    """Mean of curves over their common interval; ``between`` interpolates a curve."""
    points = np.unique(np.concatenate([x for x, _ in curves]))
    points = points[
        (points >= max(x[0] for x, _ in curves)) & (points <= min(x[-1] for x, _ in curves))
    ]
    return points, np.mean([between(points, x, y) for x, y in curves], axis=0)


def _held(points: Array, x: Array, y: Array) -> Array:
    """Interpolate by the last value, which holds until the next one."""
    return y[np.searchsorted(x, points, side="right") - 1]


def _common_logarithmic(panels: Sequence[Axes]) -> None:
    """A common logarithmic axis, if the values of all panels are positive."""
    drawn = {axes: values for axes in panels if len(values := drawn_y([axes]))}
    if drawn and all(values.min() > 0 for values in drawn.values()):
        logarithmic_y(max(drawn, key=lambda axes: drawn[axes].max() / drawn[axes].min()))


def _step_axis(panels: Sequence[Axes]) -> None:
    """A common axis of numbers of steps, logarithmic if a linear one would hide small numbers."""
    values = drawn_y(panels)
    if len(values) and values.max() > 20 * values.min() > 0:
        _common_logarithmic(panels)
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    elif len(values):
        panels[0].set_ylim(0, 1.15 * max(1.0, values.max()))
        panels[0].yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
