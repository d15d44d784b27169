"""The style of all figures: colours for colour-blind readers, quiet axes, fixed margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

P = ParamSpec("P")

DARK, GREY, LIGHT = "#222222", "#8a8a8a", "#d9d9d9"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
# Okabe & Ito, Color Universal Design (2008), the most readable ones first, and two greys
PALETTE = (
    BLUE,
    VERMILION,
    GREEN,
    PURPLE,
    "#e69f00",
    "#56b4e9",
    "#8c6d1f",
    "#f0e442",
    "#555555",
    "#aaaaaa",
)

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": DARK,
    "ytick.labelcolor": DARK,
    "text.color": DARK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "svg.hashsalt": "trueode",  # equal figures get equal identifiers
    "savefig.dpi": "figure",
    "savefig.bbox": None,  # a tight box would draw each figure twice and change its size
}
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 0.9, 0.22, 0.42, 0.55  # inches
FOOTER = 0.22  # inches


def style() -> AbstractContextManager[None]:
    """The style as a context, for drawing and saving; the global style does not change."""
    return mpl.rc_context(cast(Any, STYLE))


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function to draw with the style of all figures."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return inside


def new_figure(width: float = 6.4, height: float = 3.8) -> Figure:
    """An empty figure of ``width`` x ``height`` inches, without a window or global state."""
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=MARGIN_LEFT / width,
        right=1 - MARGIN_RIGHT / width,
        top=1 - MARGIN_TOP / height,
        bottom=MARGIN_BOTTOM / height,
    )
    return figure


def two_rows(
    figure: Figure, columns: int, upper: float, hspace: float, wspace: float, **shared: Any
) -> Any:
    """Axes ``(2, columns)``; those above are ``upper`` times as high as those below."""
    grid = {"height_ratios": [upper, 1], "hspace": hspace, "wspace": wspace}
    return figure.subplots(2, columns, squeeze=False, gridspec_kw=grid, **shared)


def footer(figure: Figure, text: str) -> None:
    """Add a line of text at the lower edge of a figure, which grows by its height."""
    width, height = figure.get_size_inches()
    grown = height + FOOTER
    place = figure.subplotpars
    figure.set_size_inches(width, grown)
    figure.subplots_adjust(
        bottom=(place.bottom * height + FOOTER) / grown, top=(place.top * height + FOOTER) / grown
    )
    for legend in figure.legends:  # they are placed at the edges of the figure
        legend.set_in_layout(False)
    with style():
        figure.text(
            0.06 / width, 0.06 / grown, text, ha="left", va="bottom", fontsize=7.5, color=GREY
        )


def colour(index: int) -> str:
    """Colour of the class or series ``index``."""
    return PALETTE[index % len(PALETTE)]


def drawn_y(panels: Sequence[Axes]) -> NDArray[np.float64]:
    """All finite y values of the lines in some panels."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for axes in panels for line in axes.lines]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    return values[np.isfinite(values)]


def logarithmic_y(axes: Axes) -> None:
    """Make the y axis logarithmic with plain numbers, if all values drawn are positive."""
    values = drawn_y([axes])
    if not len(values) or values.min() <= 0:
        return
    axes.set_yscale("log")
    narrow = values.max() < 30 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def per_cent_y(panels: Sequence[Axes]) -> None:
    """A common y axis of shares in per cent, which ends at 100 if the data are near it."""
    low, high = panels[0].get_ylim()
    low = max(0.0, low)
    panels[0].set_ylim(low, min(high, 100 + 0.03 * (100 - low)))
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def lone_mark(y: NDArray[np.float64]) -> str:
    """The marker of a line: a dot if it has a single point, which would be invisible otherwise."""
    return "o" if len(y) == 1 else ""


def tell_empty(axes: Axes, text: str = "no data") -> None:
    """Write in an empty panel that it has no data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
