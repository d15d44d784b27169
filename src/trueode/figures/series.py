"""Predicted time series against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from trueode.figures.theme import DARK, colour, new_figure, tell_empty, themed

SHOWN = 4


@themed
def time_series(
    t: ArrayLike, truth: ArrayLike, predicted: ArrayLike, names: Sequence[str] | None = None
) -> Figure:
    """Truth (dots) and prediction (lines) of the first four trajectories, with a colour for each
    component.

    Args:
        t: times ``(times,)``.
        truth: ``(n, times, d)``, NaN where not observed.
        predicted: ``(n, times, d)``.
        names: of the ``d`` components; ``z1, z2, …`` by default.
    """
    times, true, own = (np.asarray(values, dtype=float) for values in (t, truth, predicted))
    figure = new_figure(7.2, 4.8)
    n = min(SHOWN, len(true)) if true.ndim == 3 else 0
    if not n:
        tell_empty(figure.add_subplot(title="Predicted trajectories", xlabel="time"))
        return figure
    columns = min(n, 2)
    panels = figure.subplots(
        -(-n // columns),
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={"hspace": 0.16, "wspace": 0.08},
    )
    width = true.shape[2]
    labels = list(names) if names is not None else [f"$z_{{{k + 1}}}$" for k in range(width)]
    for number, axes in enumerate(panels.flat):
        if number >= n:
            axes.set_axis_off()
            continue
        for k in range(width):
            axes.plot(
                times,
                true[number, :, k],
                "o",
                color=colour(k),
                markersize=3.2,
                alpha=0.55,
                markeredgewidth=0,
            )
            axes.plot(times, own[number, :, k], color=colour(k), linewidth=1.3)
    for axes in panels[-1]:
        axes.set_xlabel("time")
    panels[0, 0].set_title("Predicted trajectories")
    handles = [Line2D([], [], color=colour(k), label=labels[k]) for k in range(min(width, 4))]
    handles += [
        Line2D([], [], marker="o", linestyle="none", color=DARK, markersize=3.2, label="truth"),
        Line2D([], [], color=DARK, label="predicted"),
    ]
    panels[0, -1].legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=6,
        borderaxespad=0.2,
        columnspacing=1.2,
    )
    return figure
