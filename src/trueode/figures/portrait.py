"""Two-dimensional models in phase space, as in the paper's Figures 1 and 2.

A portrait is a mapping with ``times (n_times,)``, ``paths (n_times, n, 2)``, ``labels (n,)``,
``predictions (n,)``, ``output (n, 2)``, ``grid_x (m,)``, ``grid_y (k,)``, ``regions (k, m)``
(predicted class at each grid point), ``solver`` (in words) and ``accuracy`` (a share).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from trueode.figures.theme import DARK, MARGIN_LEFT, colour, new_figure, tell_empty, themed

Portrait = Mapping[str, Any]

PATHS = 120  # more lines hide each other


@themed
def trajectories(portrait: Portrait) -> Figure:
    """Trajectories of the samples through the ODE block, coloured by class, with hollow starts and
    filled ends (Figure 1 a, b).

    Trajectories of an autonomous ODE cannot cross; if these do, the discretisation is too coarse.
    """
    figure, axes = _plane("Trajectories", portrait)
    shown = draw_paths(axes, portrait)
    if not len(shown):
        tell_empty(axes)
        return figure
    _classes(
        figure,
        np.asarray(portrait["labels"])[shown],
        extra=[
            Line2D(
                [],
                [],
                marker="o",
                linestyle="none",
                markerfacecolor="white",
                markeredgecolor=DARK,
                label="start",
            ),
            Line2D([], [], marker="o", linestyle="none", color=DARK, label="end"),
        ],
    )
    return figure


def draw_paths(axes: Axes, portrait: Portrait, limit: int = PATHS) -> NDArray[Any]:
    """Draw the paths of at most ``limit`` samples; return the indices of these samples."""
    paths = np.asarray(portrait["paths"], dtype=float)
    labels = np.asarray(portrait["labels"])
    chosen = np.flatnonzero(np.isfinite(paths).all(axis=(0, 2)))
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), limit)).astype(int))]
    for label in np.unique(labels[chosen]):
        own = paths[:, chosen[labels[chosen] == label]]
        tint = colour(int(label))
        axes.add_collection(
            LineCollection(list(own.transpose(1, 0, 2)), colors=tint, linewidths=0.8, alpha=0.55)
        )
        axes.plot(
            *own[0].T,
            "o",
            markerfacecolor="white",
            markeredgecolor=tint,
            markersize=4.2,
            markeredgewidth=1.0,
        )
        axes.plot(*own[-1].T, "o", color=tint, markersize=4.2, markeredgewidth=0)
    if len(chosen):
        _view(axes, paths[:, chosen])
    shown: NDArray[Any] = chosen
    return shown


@themed
def regions(portrait: Portrait) -> Figure:
    """Output of the ODE block over the regions of the classifier that follows it (Figure 2)."""
    figure, axes = _plane("Output of the ODE block over the classifier's regions", portrait)
    shown = draw_regions(axes, portrait)
    if not len(shown):
        tell_empty(axes)
        return figure
    _classes(figure, np.asarray(portrait["labels"])[shown])
    return figure


def draw_regions(axes: Axes, portrait: Portrait, frame: Portrait | None = None) -> NDArray[Any]:
    """Draw outputs over regions; return the indices of the samples shown.

    Args:
        axes: the panel.
        portrait: the outputs and their regions.
        frame: a portrait whose regions are drawn instead.
    """
    axes.grid(False)
    output = np.asarray(portrait["output"], dtype=float).reshape(-1, 2)
    labels = np.asarray(portrait["labels"])
    behind = portrait if frame is None else frame
    x, y, areas = (
        np.asarray(behind[name], dtype=float) for name in ("grid_x", "grid_y", "regions")
    )
    if len(x) > 1 and len(y) > 1:
        n_classes = int(max(np.nanmax(areas), labels.max(initial=0))) + 1
        pale = ListedColormap([0.72 + 0.28 * np.array(to_rgb(colour(k))) for k in range(n_classes)])
        half_x, half_y = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
        extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
        axes.imshow(
            areas,
            origin="lower",
            extent=extent,
            cmap=pale,
            vmin=-0.5,
            vmax=n_classes - 0.5,
            interpolation="nearest",
            zorder=0,
        )
        axes.autoscale(False)  # keep the frame of the regions
    finite: NDArray[Any] = np.flatnonzero(np.isfinite(output).all(axis=1))
    for label in np.unique(labels[finite]):
        own = output[finite[labels[finite] == label]]
        axes.plot(
            *own.T,
            "o",
            color=colour(int(label)),
            markersize=3.6,
            markeredgecolor="white",
            markeredgewidth=0.3,
        )
    return finite


def _plane(title: str, portrait: Portrait) -> tuple[Figure, Axes]:
    """A panel with equal units, and the solver and its accuracy below the title."""
    facts = [str(portrait.get("solver", ""))]
    accuracy = portrait.get("accuracy")
    if accuracy is not None and np.isfinite(accuracy):
        facts.append(f"accuracy {100 * float(accuracy):.1f} % on {len(portrait['labels'])} samples")
    figure = new_figure(5.4, 5.7)
    figure.subplots_adjust(top=0.89, bottom=0.15)
    axes = figure.add_subplot(xlabel="$z_1$", ylabel="$z_2$")
    heading = title + "\n" + ", ".join(filter(None, facts))
    figure.text(
        MARGIN_LEFT / 5.4, 0.985, heading, ha="left", va="top", fontsize="large", linespacing=1.4
    )
    axes.set_aspect("equal", adjustable="box")
    axes.locator_params(nbins=6)
    return figure, axes


def _view(axes: Axes, paths: NDArray[np.float64]) -> None:
    """Show all starts and the bulk of the ends: a few distant ends must not shrink the others to a
    dot.
    """
    whole = np.stack([paths.min(axis=(0, 1)), paths.max(axis=(0, 1))])
    bulk = np.concatenate([paths[0], np.quantile(paths[-1], [0.02, 0.98], axis=0)])
    bulk = np.stack([bulk.min(axis=0), bulk.max(axis=0)])
    low, high = whole if (np.ptp(whole, axis=0) < 4 * np.ptp(bulk, axis=0)).all() else bulk
    middle, half = (low + high) / 2, 0.54 * max(float((high - low).max()), 1e-9)
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))


def _classes(figure: Figure, labels: NDArray[Any], extra: list[Line2D] | None = None) -> None:
    """The legend of the classes."""
    handles = [
        Line2D(
            [], [], marker="o", linestyle="none", color=colour(int(label)), label=f"class {label}"
        )
        for label in np.unique(labels)
    ]
    figure.legend(handles=[*handles, *(extra or [])], loc="lower center", ncols=6)
