"""The paper's Figure 4 for one model: accuracy under other solvers than the one it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from trueode.figures.theme import BLUE, DARK, GREEN, GREY, PURPLE, VERMILION, new_figure, tell_empty, themed

Row = Mapping[str, Any]

# Circle, cross and triangle as in the paper.
MARKS: dict[str, tuple[str, str]] = {
    "euler": ("o", BLUE),
    "midpoint": ("x", VERMILION),
    "rk4": ("^", GREEN),
    "heun2": ("s", PURPLE),
    "rk4_38": ("v", "#8c6d1f"),
    "fehlberg2": ("o", BLUE),
    "bosh3": ("s", PURPLE),
    "dopri5": ("D", VERMILION),
    "tsit5": ("v", GREEN),
}


@themed
def solver_swap(rows: Sequence[Row], training: object = "") -> Figure:
    """Accuracy (or mse) above, share of changed predictions below, against the fineness of the solver.

    Args:
        rows: one per solver value, with ``solver``, ``kind`` (``"fixed"`` or ``"adaptive"``), ``n_steps`` (realised),
            ``tol``, ``accuracy`` or ``mse``, ``flips`` (share of predictions that differ from the training solver's) and
            ``is_training``.
        training: the training solver in words, for the title.

    Fixed solvers stand on a logarithmic axis of realised steps, adaptive ones on 1/tolerance, side by side.
    """
    name = "mse" if any("mse" in row for row in rows) else "accuracy"
    kinds = [kind for kind in ("fixed", "adaptive") if any(row.get("kind") == kind for row in rows)] or ["fixed"]
    figure = new_figure(6.8 if len(kinds) == 1 else 9.2, 5.0)
    panels = figure.subplots(
        2, len(kinds), sharex="col", sharey="row", squeeze=False,
        gridspec_kw={"height_ratios": [2.2, 1], "hspace": 0.14, "wspace": 0.08},
    )  # fmt: skip
    for (upper, lower), kind in zip(panels.T, kinds, strict=True):
        chosen = [row for row in rows if row.get("kind") == kind and np.isfinite(_fineness(row))]
        lower.set_xlabel("steps" if kind == "fixed" else "1 / tolerance")
        if not chosen:
            tell_empty(upper)
            tell_empty(lower)
            continue
        _draw(upper, chosen, name, scale=100.0 if name == "accuracy" else 1.0)
        _draw(lower, chosen, "flips", scale=100.0)
        _fineness_axis(lower, chosen, kind)
        for row in chosen:
            if row.get("is_training"):
                _point_out(upper, row, name, scale=100.0 if name == "accuracy" else 1.0)
    first, below = panels[:, 0]
    first.set_ylabel("accuracy (%)" if name == "accuracy" else name)
    first.set_title(f"Other solvers than in training ({training})" if training else "Other solvers than in training")
    below.set_ylabel("predictions\nchanged (%)")
    figure.align_ylabels(panels[:, 0])
    _value_axes(first, below, name)
    _legend(figure, panels[0])
    return figure


def _draw(axes: Axes, rows: Sequence[Row], name: str, scale: float) -> None:
    """One line per solver through its points."""
    for solver in dict.fromkeys(str(row["solver"]) for row in rows):
        own = sorted((row for row in rows if row["solver"] == solver), key=_fineness)
        marker, tint = MARKS.get(solver, ("P", GREY))
        axes.plot(
            [_fineness(row) for row in own],
            [_number(row, name) * scale for row in own],
            marker=marker, color=tint, linewidth=1.0, markersize=7, markeredgewidth=1.6,
            markerfacecolor="none" if marker != "x" else tint, label=solver, clip_on=False,
        )  # fmt: skip


def _point_out(axes: Axes, row: Row, name: str, scale: float) -> None:
    """The training point: dark, larger, with its name."""
    x, y = _fineness(row), _number(row, name) * scale
    if not np.isfinite(y):
        return
    marker, _ = MARKS.get(str(row["solver"]), ("P", GREY))
    axes.plot([x], [y], marker=marker, color=DARK, markersize=9, markeredgewidth=1.8, linestyle="none", zorder=4,
              label="_training", clip_on=False)  # fmt: skip
    axes.annotate("trained here", (x, y), xytext=(0, -11), textcoords="offset points", ha="center", va="top",
                  fontsize=9, fontweight="bold")  # fmt: skip


def _fineness_axis(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    """Logarithmic axis; few numbers of steps are written out."""
    axes.set_xscale("log")
    values = sorted({_fineness(row) for row in rows})
    axes.set_xlim(values[0] / 1.35, values[-1] * 1.35)
    if kind == "fixed":
        kept = values[:1]
        for value in values[1:]:
            if value >= 1.18 * kept[-1] or len(values) <= 3:  # labels closer than this would touch
                kept.append(value)
        axes.xaxis.set_major_locator(FixedLocator(kept))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _value_axes(upper: Axes, lower: Axes, name: str) -> None:
    """Room for the labels, and the natural ends of shares."""
    values = [y for axes in upper.figure.axes for line in axes.lines for y in np.asarray(line.get_ydata(), dtype=float)
              if axes.get_shared_y_axes().joined(axes, upper) and np.isfinite(y)]  # fmt: skip
    if values and name == "accuracy":
        low = min(values)
        upper.set_ylim(max(0.0, low - max(2.0, 0.18 * (100 - low))), 100.0 + 0.03 * max(2.0, 100 - low))
    elif values and min(values) > 0:
        upper.set_yscale("log")
        upper.margins(y=0.2)
    highest = [np.nanmax(line.get_ydata()) for line in lower.lines if np.isfinite(line.get_ydata()).any()]
    lower.set_ylim(0, max([1.0, *highest]) * 1.15)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        panels[-1].legend(entries.values(), entries.keys(), loc="lower right", bbox_to_anchor=(1, 1), ncols=6,
                          borderaxespad=0.2, columnspacing=1.2)  # fmt: skip


def _fineness(row: Row) -> float:
    """Realised steps of a fixed solver, 1/tolerance of an adaptive one; NaN where there is none."""
    if row.get("kind") == "adaptive":
        tolerance = _number(row, "tol")
        return 1.0 / tolerance if tolerance > 0 else float("nan")
    steps = _number(row, "n_steps")
    return steps if steps > 0 else float("nan")


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)
