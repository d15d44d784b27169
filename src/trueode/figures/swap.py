"""The paper's Figure 4 for one model: its accuracy under other solvers than the training solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from trueode.figures.theme import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    drawn_y,
    logarithmic_y,
    new_figure,
    tell_empty,
    themed,
    two_rows,
)

Row = Mapping[str, Any]


class _Shown(NamedTuple):
    """What the two panels show: keys of the rows, labels, and factors on the values."""

    above: str
    above_label: str
    above_scale: float
    below: str
    below_label: str
    below_scale: float
    line: str = "exact flow"


ROW = 7  # entries in a row of the legend

# circle, cross and triangle as in the paper
MARKS: dict[str, tuple[str, str]] = {
    "euler": ("o", BLUE),
    "midpoint": ("x", VERMILION),
    "rk4": ("^", GREEN),
    "heun2": ("s", PURPLE),
    "rk4_38": ("v", "#8c6d1f"),
    "fehlberg2": ("P", "#56b4e9"),
    "bosh3": ("p", "#e69f00"),
    "dopri5": ("D", "#7b3294"),
    "tsit5": ("h", "#555555"),
    "heun3": ("<", "#44aa99"),
    "adaptive_heun": (">", "#cc6677"),
    "dopri8": ("*", "#332288"),
}


@themed
def solver_swap(
    rows: Sequence[Row],
    training: object = "",
    *,
    name: str = "accuracy",
    exact: float = float("nan"),
) -> Figure:
    """Accuracy or mse (above) and share of changed predictions (below) against the fineness of the
    solver.

    Fixed solvers are shown against the realised steps, adaptive ones against 1/tolerance, side by
    side. For densities the panel below shows the mean change of the log density. For samplers the
    panels show the sliced distance to the exact samples, and the RMS error.

    Args:
        rows: one per solver, as in ``audit.json``: with ``method``, ``kind`` (``"fixed"`` or
            ``"adaptive"``), ``setting`` (realised steps, or tolerance), ``metric``, ``changed`` and
            ``flips`` (shares of predictions unlike the training solver's, and unlike the exact
            flow's), ``is_training`` and ``status``; for densities ``change``, for samplers
            ``sliced`` and ``output_error``.
        training: the training solver in words, for the label of its point.
        name: of the metric.
        exact: the metric under the exact flow: it is drawn as a horizontal line, with ``flips``
            instead of ``changed`` below. For samplers: the sliced distance between two independent
            sets of exact samples.
    """
    rows = [row for row in rows if row.get("status", "success") == "success"]
    shown = _shown(rows, name, bool(np.isfinite(exact)))
    kinds = [
        kind for kind in ("fixed", "adaptive") if any(row.get("kind") == kind for row in rows)
    ] or ["fixed"]
    figure = new_figure(6.8 if len(kinds) == 1 else 9.2, 5.0)
    panels = two_rows(figure, len(kinds), 2.2, 0.14, 0.08, sharex="col", sharey="row")
    for (upper, lower), kind in zip(panels.T, kinds, strict=True):
        chosen = [row for row in rows if row.get("kind") == kind and np.isfinite(_fineness(row))]
        lower.set_xlabel("steps" if kind == "fixed" else "1 / tolerance")
        if not chosen:
            tell_empty(upper)
            tell_empty(lower)
            continue
        _draw(upper, chosen, shown.above, shown.above_scale)
        _draw(lower, chosen, shown.below, shown.below_scale)
        _fineness_axis(lower, chosen, kind)
        if np.isfinite(exact):
            across = exact * shown.above_scale
            upper.axhline(across, color=GREY, linewidth=1.0, linestyle="--", label=shown.line)
        for row in chosen:
            if row.get("is_training"):
                _point_out(upper, row, training, shown)
    first, below = panels[:, 0]
    first.set_ylabel(shown.above_label)
    first.set_title("One model, many solvers")
    below.set_ylabel(shown.below_label)
    figure.align_ylabels(panels[:, 0])
    _value_axes(panels[0], name if shown.above == "metric" else "sliced")
    if shown.below in ("flips", "changed"):
        panels[1][0].set_ylim(0, 1.15 * max(1.0, drawn_y(panels[1]).max(initial=0.0)))
    else:
        _errors_axis(panels[1])
    if shown.above == "sliced":
        first.set_title("")  # the legend takes its place
    _legend(figure, panels[0])
    return figure


def _shown(rows: Sequence[Row], name: str, exact: bool) -> _Shown:
    """What to show of these rows."""
    if any(np.isfinite(_number(row, "sliced")) for row in rows):
        return _Shown(
            "sliced", "sliced distance (% of the spread)", 100.0,
            "output_error", "error (%)", 100.0, "two exact sets",
        )  # fmt: skip
    above = ("metric", *(("accuracy (%)", 100.0) if name == "accuracy" else (name, 1.0)))
    if any(np.isfinite(_number(row, "change")) for row in rows):
        label = "bits per dimension" if name == "bits_per_dim" else name
        return _Shown("metric", label, 1.0, "change", "off by\n(bits)", 1.0)
    if exact:
        return _Shown(*above, "flips", "unlike the\nexact flow (%)", 100.0)
    return _Shown(*above, "changed", "predictions\nchanged (%)", 100.0)


def _draw(axes: Axes, rows: Sequence[Row], name: str, scale: float) -> None:
    """One line per solver through its points."""
    size = abs if name == "change" else float
    for solver in dict.fromkeys(str(row["method"]) for row in rows):
        own = sorted((row for row in rows if row["method"] == solver), key=_fineness)
        marker, tint = MARKS.get(solver, ("P", GREY))
        axes.plot(
            [_fineness(row) for row in own],
            [size(_number(row, name)) * scale for row in own],
            marker=marker,
            color=tint,
            linewidth=1.0,
            markersize=7,
            markeredgewidth=1.6,
            markerfacecolor="none" if marker != "x" else tint,
            label=solver,
            clip_on=False,
        )


def _point_out(axes: Axes, row: Row, training: object, shown: _Shown) -> None:
    """The training point: dark, larger, with its name above, or where the curve leaves room."""
    x, y = _fineness(row), _number(row, shown.above) * shown.above_scale
    if not np.isfinite(y):
        return
    marker, _ = MARKS.get(str(row["method"]), ("P", GREY))
    axes.plot(
        [x],
        [y],
        marker=marker,
        color=DARK,
        markersize=9,
        markeredgewidth=1.8,
        linestyle="none",
        zorder=4,
        label="_training",
        clip_on=False,
    )
    left, right = axes.get_xlim()
    place = np.log(x / left) / np.log(right / left)
    align, shift = ("left", -6) if place < 0.3 else ("right", 6) if place > 0.7 else ("center", 0)
    low, high = axes.get_ylim()
    # an accuracy rises from there, an error falls
    below = y < low + 0.35 * (high - low) and shown.above == "metric"
    if shown.above == "sliced":  # the curves fall past it
        below = place > 0.45
        align, shift = ("right", 6) if below else ("left", -6)
    axes.annotate(
        f"{'its own solver, ' if shown.above == 'sliced' else 'trained with '}{training}"
        if training
        else "trained here",
        (x, y),
        xytext=(shift, -9 if below else 9),
        textcoords="offset points",
        ha=align,
        va="top" if below else "bottom",
        fontsize=9,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],  # curves may pass behind it
    )


def _fineness_axis(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    """A logarithmic axis; if there are few numbers of steps, all of them are ticks."""
    axes.set_xscale("log")
    values = sorted({_fineness(row) for row in rows})
    axes.set_xlim(values[0] / 1.35, values[-1] * 1.35)
    if kind == "fixed":
        doubled = {values[0] * 2**k for k in range(32)}
        apart = max(1.18, (values[-1] / values[0]) ** (1 / 16))
        kept: list[float] = []
        for value in sorted(values, key=lambda value: value not in doubled):  # doubled ones first
            if len(values) <= 3 or all(
                max(value / other, other / value) >= apart for other in kept
            ):
                kept.append(value)  # labels closer than this would touch
        axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _value_axes(uppers: Sequence[Axes], name: str) -> None:
    """Limits that leave room for the training label, and end at 0 and 100 per cent."""
    values = drawn_y(uppers)
    if len(values) and name == "accuracy":
        span = max(2.0, np.ptp(values))
        uppers[0].set_ylim(max(0.0, values.min() - 0.15 * span), values.max() + 0.2 * span)
        uppers[0].yaxis.set_major_locator(_UpTo(100.0, nbins=7))
    elif len(values):
        uppers[0].margins(y=0.2)
        if name != "bits_per_dim":
            logarithmic_y(uppers[0])


def _errors_axis(panels: Sequence[Axes]) -> None:
    """A common logarithmic axis of errors."""
    if (drawn_y(panels) > 0).any():
        panels[0].set_yscale("log", nonpositive="mask")
        panels[0].yaxis.set_major_locator(LogLocator(numticks=5))
        panels[0].yaxis.set_minor_formatter(NullFormatter())


class _UpTo(MaxNLocator):
    """Ticks up to the largest possible value, such as an accuracy of 100 per cent."""

    def __init__(self, largest: float, nbins: int) -> None:
        super().__init__(nbins=nbins, steps=[1, 2, 5, 10])
        self.largest = largest

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks = np.asarray(super().tick_values(vmin, vmax))
        return ticks[ticks <= self.largest]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    entries = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for line in ("exact flow", "two exact sets"):
        if line in entries:
            entries[line] = entries.pop(line)  # after the solvers
    if len(entries) > ROW:
        panels[0].set_title("")  # the legend takes its place
    if entries:
        panels[-1].legend(
            entries.values(),
            entries.keys(),
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=ROW,
            borderaxespad=0.2,
            columnspacing=1.2,
        )


def _fineness(row: Row) -> float:
    """Realised steps of a fixed solver, 1/tolerance of an adaptive one; NaN if it is missing."""
    setting = _number(row, "setting")
    if not setting > 0:
        return float("nan")
    return 1.0 / setting if row.get("kind") == "adaptive" else setting


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)
