"""A density in the plane under its solver and under the exact flow, beside the data.

A portrait is a mapping with ``data (n, 2)``, ``grid_x (m,)``, ``grid_y (k,)``, and for ``own`` and
``exact`` a mapping with ``solver`` (in words), ``log_density (k, m)`` and ``mean`` in nats,
``mass`` and ``samples (n, 2)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trueode.figures.theme import BLUE, DARK, VERMILION, new_figure, tell_empty, themed

DENSE = LinearSegmentedColormap.from_list("dense", ["white", BLUE, DARK])
CHANGE = LinearSegmentedColormap.from_list("change", [BLUE, "white", VERMILION])
FAINT = 1e-3  # of the highest density of the data; changes of lower ones are not shown
NATS = 3.0  # the largest change with a colour of its own
WIDTH, GAP, HEADING, FOOT = 2.9, 0.72, 0.58, 0.32  # of a panel, and around it: inches


@themed
def density(portrait: Mapping[str, Any]) -> Figure:
    """Above: the data, and the density under the solver and under the exact flow, in equal colours,
    the darkest as dense as the data. Below: by how much their log densities differ, and samples.

    A model that is an ODE has equal columns, and a mass of 1 under both.
    """
    x, y = (np.asarray(portrait[name], dtype=float) for name in ("grid_x", "grid_y"))
    half_x, half_y = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
    high = WIDTH * min(max((extent[3] - extent[2]) / (extent[1] - extent[0]), 0.4), 1.6)
    width, height = 3 * (WIDTH + GAP), 2 * (high + HEADING + FOOT)
    figure = new_figure(width, height)
    figure.subplots_adjust(
        left=0.55 * GAP / width,
        right=1 - 0.45 * GAP / width,
        bottom=FOOT / height,
        top=1 - HEADING / height,
        wspace=GAP / WIDTH,
        hspace=(HEADING + FOOT) / high,
    )
    panels = figure.subplots(2, 3)
    for axes in panels.flat:
        axes.grid(False)
        axes.set(xlim=extent[:2], ylim=extent[2:])
        axes.set_aspect("equal", adjustable="box")
        axes.locator_params(nbins=5)
    data = _points(panels[0, 0], portrait["data"], f"Data\n{len(portrait['data'])} points")
    both = [portrait["own"], portrait["exact"]]
    logs = [np.asarray(each["log_density"], dtype=float) for each in both]
    peak = _peak(data, (extent[:2], extent[2:]))
    for i, (each, values) in enumerate(zip(both, logs, strict=True), start=1):
        panels[0, i].imshow(
            np.exp(values), origin="lower", extent=extent, cmap=DENSE, vmin=0, vmax=peak
        )
        facts = f"data: {each['mean']:.2f} nats on average; mass {each['mass']:.3g}"
        panels[0, i].set_title(f"Density under {each['solver']}\n{facts}")
        _points(panels[1, i], each["samples"], f"Samples under {each['solver']}")
    seen = np.maximum(*logs) > np.log(FAINT * peak)
    change = np.zeros_like(logs[0])
    change[seen] = logs[0][seen] - logs[1][seen]
    drawn = panels[1, 0].imshow(
        change, origin="lower", extent=extent, cmap=CHANGE, vmin=-NATS, vmax=NATS
    )
    panels[1, 0].set_title("Log density under the solver\nminus the exact one, in nats")
    beside = panels[1, 0].inset_axes((1.03, 0.0, 0.04, 1.0))
    figure.colorbar(drawn, cax=beside, extend="both").outline.set_visible(False)
    return figure


def _points(axes: Axes, points: Any, title: str) -> NDArray[np.float64]:
    """Draw and return the points that are finite."""
    axes.set_title(title)
    shown: NDArray[np.float64] = np.asarray(points, dtype=float).reshape(-1, 2)
    shown = shown[np.isfinite(shown).all(axis=1)]
    if not len(shown):
        tell_empty(axes)
    axes.plot(*shown.T, "o", color=BLUE, markersize=1.6, markeredgewidth=0, alpha=0.6)
    return shown


def _peak(data: NDArray[np.float64], frame: Any) -> float:
    """The highest density of the data within a frame, by a histogram of n^(1/3) bins an axis."""
    if not len(data):
        return 1.0
    bins = max(1, round(len(data) ** (1 / 3)))
    counts = np.histogram2d(data[:, 0], data[:, 1], bins=bins, range=frame, density=True)[0]
    return float(counts.max())
