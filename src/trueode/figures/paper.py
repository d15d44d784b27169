"""The paper's Figures 1 to 4, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from trueode.figures.portrait import Portrait, draw_paths, draw_regions
from trueode.figures.swap import MARKS
from trueode.figures.theme import (
    DARK,
    GREY,
    PALETTE,
    colour,
    new_figure,
    tell_empty,
    themed,
    two_rows,
)

Point = Mapping[str, Any]

READABLE = tuple(tint for tint in PALETTE if tint != "#f0e442")  # small yellow marks are invisible


@themed
def swap_sweep(
    panels: Mapping[str, Sequence[Point]], *, kind: str = "fixed", legend: str = "trained with"
) -> Figure:
    """Figure 4: models trained with several steps or tolerances, each under other solvers.

    Each training configuration has a colour, each solver the paper's mark. Bars reach from low to
    high. The solver and step of training are dark.

    Args:
        panels: the points of each panel, by its title: one for each training configuration, test
            solver and factor, with ``training`` (in words), ``solver``, ``x`` (realised steps, or
            tolerance), ``mean``, ``low``, ``high`` (accuracies as shares) and ``is_training``.
        kind: ``"fixed"`` if x is a number of steps, ``"adaptive"`` if it is a tolerance. Finer
            solvers are on the right.
        legend: title of the legend of colours.
    """
    figure = new_figure(8.6, 4.8 * len(panels))
    figure.subplots_adjust(right=0.76, hspace=0.35)
    drawn = {
        title: [point for point in points if np.isfinite(point["mean"]) and point["x"] > 0]
        for title, points in panels.items()
    }
    every = [point for points in drawn.values() for point in points]
    trained = list(dict.fromkeys(point["training"] for point in every))
    solvers = list(dict.fromkeys(point["solver"] for point in every))
    tints = {name: READABLE[k % len(READABLE)] for k, name in enumerate(trained)}
    for axes, (title, points) in zip(
        figure.subplots(len(panels), squeeze=False).flat, drawn.items(), strict=True
    ):
        axes.set_title(title)
        axes.set_ylabel("test accuracy (%)")
        axes.set_xlabel("steps in the test" if kind == "fixed" else "tolerance in the test")
        if points:
            _swaps(axes, points, tints, kind)
        else:
            tell_empty(axes)
    if not every:
        return figure
    handles = [
        Line2D([], [], marker="s", linestyle="none", color=tint, label=name)
        for name, tint in tints.items()
    ]
    marks = [_handle(solver, GREY, f"tested with {solver}") for solver in solvers]
    marks.append(_handle(solvers[0], DARK, "dark: as trained"))
    first = figure.legend(
        handles=handles,
        title=legend,
        loc="upper left",
        bbox_to_anchor=(0.77, 0.93),
        alignment="left",
    )
    figure.add_artist(first)
    figure.legend(handles=marks, loc="lower left", bbox_to_anchor=(0.77, 0.1), alignment="left")
    return figure


def _swaps(axes: Axes, points: Sequence[Point], tints: Mapping[str, str], kind: str) -> None:
    """One panel."""
    axes.set_xscale("log")
    for (name, solver), own in _sorted(points).items():
        _series(axes, own, solver, tints[name])
    for point in points:
        if point["is_training"]:
            _mark(
                axes,
                [point],
                point["solver"],
                _darker(tints[point["training"]]),
                size=8.0,
                zorder=5,
            )
    if kind == "adaptive":
        axes.invert_xaxis()
    else:
        _steps_axis(axes, [point["x"] for point in points])
    _accuracy_axis(axes, [100 * point[end] for point in points for end in ("low", "high")])


def _sorted(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points of each model and test solver, from left to right."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in sorted(points, key=lambda point: point["x"]):
        found.setdefault((point["training"], point["solver"]), []).append(point)
    return found


def _series(axes: Axes, own: Sequence[Point], solver: str, tint: str) -> None:
    """One model under one solver: a thin line, marks, and bars over the seeds."""
    x = [point["x"] for point in own]
    mean, low, high = (
        100 * np.array([point[name] for point in own], dtype=float)
        for name in ("mean", "low", "high")
    )
    axes.plot(x, mean, color=tint, linewidth=0.7, alpha=0.5)
    axes.vlines(x, low, high, color=tint, linewidth=1.0, alpha=0.45)
    _mark(axes, own, solver, tint, size=6.0, zorder=3)


def _mark(
    axes: Axes, own: Sequence[Point], solver: str, tint: Any, size: float, zorder: int
) -> None:
    axes.plot(
        [point["x"] for point in own],
        [100 * point["mean"] for point in own],
        marker=MARKS[solver][0],
        linestyle="none",
        color=tint,
        markersize=size,
        markeredgewidth=1.6,
        markerfacecolor=tint if zorder > 3 and solver != "midpoint" else "none",
        zorder=zorder,
        clip_on=False,
    )


def _handle(solver: str, tint: str, label: str) -> Line2D:
    filled = tint if tint == DARK else "none"
    return Line2D(
        [],
        [],
        marker=MARKS[solver][0],
        linestyle="none",
        color=tint,
        markerfacecolor=filled,
        label=label,
    )


def _darker(tint: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(tint)
    return 0.45 * red, 0.45 * green, 0.45 * blue


def _steps_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks at powers of two."""
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.25, high * 1.25)
    ticks = [2**k for k in range(20) if low / 1.25 <= 2**k <= high * 1.25]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _accuracy_axis(axes: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if np.isfinite(value)]
    low, high = min([95.0, *finite]), max([0.0, *finite])
    # low accuracies must not leave most of the panel empty
    top = 100.0 if high > 80 else high + 0.25 * (high - low)
    axes.set_ylim(max(0.0, low - 0.06 * (top - low) - 0.5), top + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))


@themed
def fine_and_coarse(
    portraits: Sequence[Portrait], curves: Sequence[Sequence[Point]], names: Sequence[str]
) -> Figure:
    """Figure 1: trajectories of each model (above) and its accuracy against the number of steps
    (below).

    Args:
        portraits: one for each model, see figures/portrait.py.
        curves: points of each model, as in `swap_sweep`.
        names: of the models.
    """
    figure = new_figure(8.8, 7.8)
    figure.subplots_adjust(top=0.9)
    panels = two_rows(figure, len(names), 1.7, 0.3, 0.12)
    for place, ((upper, lower), portrait, points, name) in enumerate(
        zip(panels.T, portraits, curves, names, strict=True)
    ):
        upper.set(title=f"{chr(97 + place)}  {name}", xlabel="$z_1$")
        draw_paths(upper, portrait)
        upper.set_aspect("equal", adjustable="box")
        if place:
            lower.sharey(panels[1, 0])
        lower.set(
            xlabel="steps in the test", title=f"{chr(97 + place + len(names))}  the same model"
        )
        lower.set_xscale("log")
        for k, solver in enumerate(dict.fromkeys(point["solver"] for point in points)):
            own = sorted(
                (point for point in points if point["solver"] == solver),
                key=lambda point: point["x"],
            )
            _series(lower, own, solver, colour(k))
        for point in points:
            if point["is_training"]:
                _mark(lower, [point], point["solver"], DARK, size=8.5, zorder=5)
        _steps_axis(lower, [point["x"] for point in points])
    panels[0, 0].set_ylabel("$z_2$")
    panels[1, 0].set_ylabel("test accuracy (%)")
    every = [point for points in curves for point in points]
    _accuracy_axis(panels[1, 0], [100 * point[end] for point in every for end in ("low", "high")])
    solvers = list(dict.fromkeys(point["solver"] for point in every))
    handles = [_handle(solver, colour(k), solver) for k, solver in enumerate(solvers)]
    handles.append(_handle(solvers[0], DARK, "as trained"))
    figure.legend(
        handles=handles, loc="upper right", ncols=4, bbox_to_anchor=(figure.subplotpars.right, 1.0)
    )
    return figure


@themed
def two_outputs(portraits: Sequence[Portrait], names: Sequence[str]) -> Figure:
    """Figure 2: outputs of one model under several solvers, over the regions of its classifier.

    Args:
        portraits: one for each solver, see figures/portrait.py; all panels show the regions of the
            first.
        names: of the solvers.
    """
    figure = new_figure(8.8, 4.4)
    figure.subplots_adjust(top=0.86)
    panels = figure.subplots(
        1, len(names), sharex=True, sharey=True, gridspec_kw={"wspace": 0.06}, squeeze=False
    )[0]
    for place, (axes, portrait, name) in enumerate(zip(panels, portraits, names, strict=True)):
        draw_regions(axes, portrait, frame=portraits[0])
        axes.set_aspect("auto")  # outputs are often stretched in one direction
        axes.set(
            title=f"{chr(97 + place)}  {name}: {100 * portrait['accuracy']:.1f} %", xlabel="$z_1$"
        )
    panels[0].set_ylabel("$z_2$")
    labels = np.unique(np.asarray(portraits[0]["labels"]))
    handles = [
        Line2D(
            [], [], marker="o", linestyle="none", color=colour(int(label)), label=f"class {label}"
        )
        for label in labels
    ]
    figure.legend(handles=handles, loc="upper right", ncols=4)
    return figure


@themed
def fan(panels: Sequence[Mapping[str, Any]], data: tuple[ArrayLike, ArrayLike]) -> Figure:
    """Figure 3: trajectories of the XOR points under Euler with two step sizes (a, b), and the
    concentric spheres (c).

    Args:
        panels: each with ``title``, ``paths (times, 4, 2)``, ``labels (4,)`` and ``line``: None, or
            ``(normal, offset)`` of a line ``normal · z = offset`` between the classes' ends.
        data: points ``(n, 2)`` and labels ``(n,)`` of the spheres.
    """
    figure = new_figure(11.4, 4.3)
    axes_of = figure.subplots(1, len(panels) + 1, gridspec_kw={"wspace": 0.24})
    whole = np.concatenate(
        [np.asarray(panel["paths"], dtype=float).reshape(-1, 2) for panel in panels]
    )
    low, high = whole.min(axis=0), whole.max(axis=0)
    margin = 0.12 * (high - low)
    for place, (axes, panel) in enumerate(zip(axes_of, panels, strict=False)):
        paths, labels = np.asarray(panel["paths"], dtype=float), np.asarray(panel["labels"])
        for sample, label in zip(paths.transpose(1, 0, 2), labels, strict=True):
            tint = colour(int(label))
            axes.plot(*sample.T, color=tint, linewidth=0.9, alpha=0.6)
            axes.plot(
                *sample[0],
                "o",
                markerfacecolor="white",
                markeredgecolor=tint,
                markersize=6,
                zorder=4,
            )
            axes.plot(*sample[-1], "o", color=tint, markersize=8, zorder=5, markeredgecolor="white")
        if panel["line"] is not None:
            normal, offset = panel["line"]
            axes.axline(
                offset * np.asarray(normal) / np.dot(normal, normal),
                slope=-normal[0] / normal[1],
                color=DARK,
                linestyle="--",
                linewidth=1.2,
            )
        axes.set(
            xlim=(low[0] - margin[0], high[0] + margin[0]),
            ylim=(low[1] - margin[1], high[1] + margin[1]),
        )
        axes.set(title=f"{chr(97 + place)}  {panel['title']}", xlabel="$z_1$")
    axes_of[0].set_ylabel("$z_2$")
    points, labels = (np.asarray(part) for part in data)
    for label in np.unique(labels):
        axes_of[-1].plot(
            *points[labels == label].T,
            "o",
            color=colour(int(label)),
            markersize=2.6,
            markeredgewidth=0,
        )
    axes_of[-1].set(
        title=f"{chr(97 + len(panels))}  concentric spheres", xlabel="$x_1$", aspect="equal"
    )
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=colour(0), label="class 0"),
        Line2D([], [], marker="o", linestyle="none", color=colour(1), label="class 1"),
        Line2D(
            [],
            [],
            marker="o",
            linestyle="none",
            markerfacecolor="white",
            markeredgecolor=DARK,
            label="start",
        ),
        Line2D([], [], color=DARK, linestyle="--", label="separates the ends"),
    ]
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.2, top=0.9)
    figure.legend(handles=handles, loc="lower right", ncols=4)
    return figure


@themed
def critical_steps(
    groups: Mapping[str, Sequence[Point]], allowed: float, *, name: str = "training steps"
) -> Figure:
    """Accuracy lost under a better solver, against the number of training steps: a line for each
    data set or method.

    Args:
        groups: points of each line, by its name, with ``x`` (training steps), ``mean``, ``low`` and
            ``high`` (accuracy under the training solver minus that under the better one, as
            shares).
        allowed: loss of accuracy that is allowed, drawn as a horizontal line.
        name: of the x axis.
    """
    figure = new_figure(6.8, 4.2)
    axes = figure.add_subplot(xlabel=name, ylabel="accuracy lost under the better solver (%)")
    axes.set_xscale("log")
    for k, (label, points) in enumerate(groups.items()):
        own = sorted(points, key=lambda point: point["x"])
        x = [point["x"] for point in own]
        mean, low, high = (
            100 * np.array([point[part] for point in own], dtype=float)
            for part in ("mean", "low", "high")
        )
        axes.plot(x, mean, marker="o", color=colour(k), label=label)
        axes.fill_between(x, low, high, color=colour(k), alpha=0.18, linewidth=0)
    axes.axhline(
        100 * allowed,
        color=DARK,
        linestyle="--",
        linewidth=1.0,
        label=f"allowed: {100 * allowed:g} %",
    )
    every = [point["x"] for points in groups.values() for point in points]
    if every:
        _steps_axis(axes, every)
    axes.legend()
    return figure
