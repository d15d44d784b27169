"""Figures of an audit.

Rows are those of ``audit.json``: mappings with ``method``, ``kind``, ``setting``, ``n_steps``, …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from trueode.figures.swap import MARKS
from trueode.figures.theme import DARK, GREY, colour, logarithmic_y, new_figure, tell_empty, themed

Row = Mapping[str, Any]

BESIDE = 1.85  # inches for a legend beside the axes
WIDE = 21  # letters of one of its lines


@themed
def audit_order(rows: Sequence[Row], orders: Sequence[Row]) -> Figure:
    """Error of the outputs against the number of steps, with the observed orders.

    Args:
        rows: of the audit.
        orders: with ``method``, ``nominal``, ``observed``, ``lower``, ``upper``, ``floor`` and
            ``steps``.
    """
    figure, axes = _with_legend_beside("Error of the outputs and observed order")
    axes.set_xlabel("steps")
    axes.set_ylabel("error, relative to the outputs' scale")
    fixed = [row for row in rows if row["kind"] == "fixed" and _positive(row["output_error"])]
    if not fixed:
        tell_empty(axes)
        return figure
    found = {order["method"]: order for order in orders}
    if orders:
        _line(axes, orders[0]["floor"], "rounding")
    for method in dict.fromkeys(row["method"] for row in fixed):
        own = sorted(
            (row for row in fixed if row["method"] == method), key=lambda row: row["n_steps"]
        )
        label = fill(method, WIDE)
        if method in found:
            order = found[method]
            observed = f"{order['observed']:.2f} ± {(order['upper'] - order['lower']) / 2:.2f}"
            label = f"{method}: {observed}\n(nominal order {order['nominal']})"
        marker, tint = MARKS.get(method, ("P", GREY))
        x, y = [row["n_steps"] for row in own], [row["output_error"] for row in own]
        axes.plot(
            x, y, marker=marker, color=tint, linewidth=1.0, markerfacecolor="none", label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _legend_beside(axes)
    return figure


@themed
def audit_cost(rows: Sequence[Row], margin: float, safe: Sequence[Row]) -> Figure:
    """Upper bound of the share of predictions that a solver changes (95 % confidence), against
    field evaluations. Solvers below the margin are safe. For densities: of the mean change of the
    log density; for samplers: of the RMS error of the samples.

    Args:
        rows: of the audit.
        margin: share of predictions that may change, or mean.
        safe: with ``method``, ``kind``, ``setting``, ``nfe`` and ``upper``, the cheapest first.
    """
    title, label, scale, unit = _judged(rows)
    figure, axes = _with_legend_beside(title)
    axes.set_xlabel("field evaluations per sample")
    axes.set_ylabel(label)
    good = [
        row
        for row in rows
        if row["status"] == "success" and row["nfe"] > 0 and np.isfinite(_finite(row["upper"]))
    ]
    if not good:
        tell_empty(axes)
        return figure
    for method in dict.fromkeys(row["method"] for row in good):
        own = sorted((row for row in good if row["method"] == method), key=lambda row: row["nfe"])
        marker, tint = MARKS.get(method, ("P", GREY))
        x, y = [row["nfe"] for row in own], [scale * row["upper"] for row in own]
        axes.plot(
            x,
            y,
            marker=marker,
            color=tint,
            linewidth=1.0,
            markerfacecolor="none",
            label=fill(method, WIDE),
        )
    pointed: dict[str, Any] = {
        "marker": "o",
        "color": DARK,
        "markersize": 9,
        "markeredgewidth": 1.8,
        "linestyle": "none",
    }
    for row in good:
        if row["is_training"]:
            pointed["marker"], _ = MARKS.get(row["method"], ("P", GREY))
            axes.plot(
                row["nfe"],
                scale * row["upper"],
                label=f"{'its own solver' if _sampled(rows) else 'trained with'}\n"
                f"{fill(row['solver'], WIDE)}",
                zorder=4,
                **pointed,
            )
    if safe:
        star = {**pointed, "marker": "*", "markersize": 15, "markeredgewidth": 0.0}
        axes.plot(
            safe[0]["nfe"],
            scale * safe[0]["upper"],
            label=f"cheapest safe\n{fill(safe[0]['solver'], WIDE)}",
            zorder=5,
            **star,
        )
    _line(axes, scale * margin, f"margin {scale * margin:.3g}{unit}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _narrow(good) else (1,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    logarithmic_y(axes)
    _legend_beside(axes)
    return figure


@themed
def audit_trajectories(
    own: NDArray[Any],
    exact: NDArray[Any],
    predictions: NDArray[Any],
    predictions_exact: NDArray[Any],
    training: str,
) -> Figure:
    """Trajectories of two-dimensional states under the training solver and the exact flow, coloured
    by prediction.

    Args:
        own: ``(points, n, 2)`` under the training solver.
        exact: ``(points, n, 2)`` under the exact flow.
        predictions: classes ``(n,)`` under the training solver.
        predictions_exact: classes ``(n,)`` under the exact flow.
        training: the training solver in words.
    """
    figure = new_figure(9.4, 4.8)
    figure.subplots_adjust(top=1 - 0.72 / 4.8)
    panels = figure.subplots(1, 2, sharex=True, sharey=True, gridspec_kw={"wspace": 0.06})
    for axes, paths, labels, title in (
        (panels[0], own, predictions, f"trained with {training}"),
        (panels[1], exact, predictions_exact, "exact flow"),
    ):
        _plane(axes, np.asarray(paths, dtype=float), np.asarray(labels), title)
    panels[0].set_ylabel("$z_2$")
    shown = (
        np.unique(np.concatenate([np.asarray(predictions), np.asarray(predictions_exact)]))
        if len(predictions)
        else ()
    )
    dots: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 4.5}
    entries = [
        Line2D([], [], color=colour(int(label)), label=f"predicted {int(label)}") for label in shown
    ]
    entries += [
        Line2D([], [], markerfacecolor="white", markeredgecolor=DARK, label="start", **dots),
        Line2D([], [], color=DARK, label="end", **dots),
    ]
    figure.legend(
        handles=entries,
        loc="upper right",
        bbox_to_anchor=(1 - 0.22 / 9.4, 1.0),
        ncols=6,
        columnspacing=1.2,
    )
    return figure


def _judged(rows: Sequence[Row]) -> tuple[str, str, float, str]:
    """What decides in these rows: title, label, factor on the values, unit."""
    if _sampled(rows):
        label = "error of the samples, at most (% of spread)"
        return "Cost of a solver, and the error of its samples", label, 100.0, " %"
    if any(np.isfinite(_finite(row.get("change"))) for row in rows):
        label = "mean log density off by, at most (bits per dim.)"
        return "Cost of a solver, and its error of the log density", label, 1.0, ""
    label = "unlike the exact flow, at most (%)"
    return "Cost of a solver, and predictions that it changes", label, 100.0, " %"


def _sampled(rows: Sequence[Row]) -> bool:
    return any(np.isfinite(_finite(row.get("sliced"))) for row in rows)


def _finite(value: Any) -> float:
    """A value, NaN if it is unknown or infinite."""
    return float(value) if value is not None and np.isfinite(value) else float("nan")


def _with_legend_beside(title: str) -> tuple[Figure, Axes]:
    width = 8.4
    figure = new_figure(width, 4.4)
    figure.subplots_adjust(right=1 - BESIDE / width)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0, fontsize=8.5)


def _line(axes: Axes, height: float, text: str) -> None:
    """A horizontal line with a name at its left end, which curves that fall leave free."""
    axes.axhline(height, color=GREY, linewidth=1.0, linestyle="--")
    axes.annotate(
        text,
        (0.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=GREY,
        fontsize=8.5,
    )


def _narrow(rows: Sequence[Row]) -> bool:
    return bool(max(row["nfe"] for row in rows) < 300 * min(row["nfe"] for row in rows))


def _plane(axes: Axes, paths: NDArray[Any], labels: NDArray[Any], title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("$z_1$")
    axes.set_aspect("equal", adjustable="box")
    there = np.isfinite(paths).all(axis=(0, 2))
    if not there.any():
        tell_empty(axes)
        return
    for label in np.unique(labels[there]):
        chosen = paths[:, there & (labels == label)]
        tint = colour(int(label))
        axes.add_collection(
            LineCollection(list(chosen.transpose(1, 0, 2)), colors=tint, linewidths=0.8, alpha=0.6)
        )
        axes.plot(
            *chosen[0].T,
            "o",
            markerfacecolor="white",
            markeredgecolor=tint,
            markersize=4,
            markeredgewidth=1.0,
        )
        axes.plot(*chosen[-1].T, "o", color=tint, markersize=4, markeredgewidth=0)


def _positive(value: Any) -> bool:
    return value is not None and np.isfinite(value) and value > 0
