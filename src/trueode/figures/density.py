"""A density in the plane under its solver and under the exact flow, beside the data.

A portrait is a mapping with ``data (n, 2)``, ``grid_x (m,)``, ``grid_y (k,)``, and for ``own`` and
``exact`` a mapping with ``solver`` (in words), ``log_density (k, m)`` and ``mean`` in nats, ``mass``
and ``samples (n, 2)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trueode.figures.theme import BLUE, DARK, GREY, VERMILION, new_figure, tell_empty, themed

DENSE = LinearSegmentedColormap.from_list("dense", ["white", BLUE, DARK])
CHANGE = LinearSegmentedColormap.from_list("change", [BLUE, "white", VERMILION])
FAINT = 1e-3  # of the highest density; changes of lower ones are not shown
NATS = 3.0  # the largest change with a colour of its own


@themed
def density(portrait: Mapping[str, Any]) -> Figure:
    """Above: the data, and the density under the solver and under the exact flow, in equal colours.
    Below: by how much their log densities differ, and samples.

    A model that is an ODE has equal columns, and a mass of 1 under both.
    """
    figure = new_figure(10.2, 7.0)
    figure.subplots_adjust(left=0.05, right=0.985, top=0.9, bottom=0.05, hspace=0.3, wspace=0.16)
    panels = figure.subplots(2, 3)
    x, y = (np.asarray(portrait[name], dtype=float) for name in ("grid_x", "grid_y"))
    half_x, half_y = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
    for axes in panels.flat:
        axes.grid(False)
        axes.set(xlim=extent[:2], ylim=extent[2:])
        axes.set_aspect("equal", adjustable="box")
        axes.locator_params(nbins=5)
    _points(panels[0, 0], portrait["data"], f"Data\n{len(portrait['data'])} points")
    both = [portrait["own"], portrait["exact"]]
    logs = [np.asarray(each["log_density"], dtype=float) for each in both]
    peak = np.exp(np.nanmax(logs[1])) if np.isfinite(logs[1]).any() else 1.0
    for i, (each, values) in enumerate(zip(both, logs, strict=True), start=1):
        panels[0, i].imshow(
            np.exp(values), origin="lower", extent=extent, cmap=DENSE, vmin=0, vmax=peak
        )
        facts = f"mean log density {each['mean']:.2f} nats, mass {each['mass']:.2f}"
        panels[0, i].set_title(f"Density under {each['solver']}\n{facts}")
        _points(panels[1, i], each["samples"], f"Samples under {each['solver']}")
    change = np.where(np.maximum(*logs) > np.log(FAINT * peak), logs[0] - logs[1], 0.0)
    drawn = panels[1, 0].imshow(
        change, origin="lower", extent=extent, cmap=CHANGE, vmin=-NATS, vmax=NATS
    )
    panels[1, 0].set_title("Log density under the solver\nminus under the exact flow, in nats")
    bar = figure.colorbar(drawn, ax=panels[1, 0], shrink=0.8, extend="both")
    bar.outline.set_edgecolor(GREY)  # type: ignore[operator]
    return figure


def _points(axes: Axes, points: Any, title: str) -> None:
    axes.set_title(title)
    shown: NDArray[Any] = np.asarray(points, dtype=float).reshape(-1, 2)
    shown = shown[np.isfinite(shown).all(axis=1)]
    if not len(shown):
        tell_empty(axes)
    axes.plot(*shown.T, "o", color=BLUE, markersize=1.6, markeredgewidth=0, alpha=0.6)
