"""The figures of an audit, drawn from its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from trueode import figures
from trueode.catalog import METHODS
from trueode.figures.theme import DARK, colour

N = 1000
TRAINING = "euler, h = 0.5"


def row(method: str, setting: float, error: float, flips: int, **more: Any) -> dict[str, Any]:
    fixed = METHODS[method].kind == "fixed" if method in METHODS else True
    steps = setting if fixed else 3.0
    values = {
        "method": method,
        "kind": "fixed" if fixed else "adaptive",
        "setting": setting,
        "n_steps": steps,
        "nfe": 2 * steps,
        "metric": 0.9 - error / 10,
        "output_error": error,
        "solver": f"{method} x {setting:g}",
        "changed": flips / N,
        "flips": flips / N,
        "upper": (flips + 3) / N,
        "is_training": False,
        "status": "success",
    }
    return {**values, **more}


def rows() -> list[dict[str, Any]]:
    """Rows of a model trained with two Euler steps."""
    return [
        row("euler", 2, 0.4, 300, is_training=True),
        *(row("euler", s, 0.8 / s, round(600 / s**2)) for s in (1, 4, 8, 16, 23)),
        *(row("rk4", s, 0.1 / s**4, 20 if s == 1 else 0) for s in (1, 2, 4)),
        *(row("dopri5", tol, tol, round(100 * tol)) for tol in (0.1, 0.01, 0.001)),
    ]


ORDERS = [
    {
        "method": "rk4",
        "nominal": 4,
        "observed": 3.9,
        "lower": 3.7,
        "upper": 4.1,
        "floor": 1e-6,
        "steps": [1, 2, 4],
    }
]
SAFE = [
    {
        "method": "rk4",
        "kind": "fixed",
        "setting": 2.0,
        "solver": "rk4 x 2",
        "nfe": 8.0,
        "output_error": 0.01,
        "flips": 0,
        "upper": 0.003,
    }
]


def paths(n: int = 12, points: int = 9) -> Any:
    start = np.random.default_rng(0).normal(size=(n, 2))
    return start + np.linspace(0, 1, points)[:, None, None] * np.array([1.0, 0.5])


def lines(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.lines}


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def inside(figure: Figure, texts: list[Any]) -> bool:
    """Whether texts lie within the figure and do not overlap."""
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    whole = figure.bbox
    held = all(
        whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1
        for b in boxes
    )
    return held and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_swap_shows_shares_against_the_exact_flow() -> None:
    figure = figures.solver_swap(
        [*rows(), row("rk4", 8, np.inf, N, status="non_finite")], TRAINING, exact=0.8
    )
    upper, _, lower, _ = figure.axes
    assert lines(lower)["euler"].get_ydata() == pytest.approx([60, 30, 3.8, 0.9, 0.2, 0.1])
    assert list(lines(lower)["rk4"].get_xdata()) == [1, 2, 4], "a solve that failed has no point"
    assert lines(upper)["exact flow"].get_ydata() == pytest.approx([80, 80])
    assert "exact flow" in lower.get_ylabel()
    assert [text.get_text() for text in upper.texts] == [f"trained with {TRAINING}"]
    assert legend(figure.axes[1])[-1] == "exact flow"


def test_steps_are_written_out_as_they_double() -> None:
    """Numbers of steps in between, tried by bisection, have labels only if there is room."""
    tried = [row("euler", s, 0.1, 1) for s in (1, 2, 4, 6, 7, 8, 16, 32, 64)]
    _, lower = figures.solver_swap(tried, name="mse", exact=0.8).axes
    ticks = list(lower.get_xticks())
    assert {1, 2, 4, 8, 16, 32, 64} <= set(ticks)
    assert 7 not in ticks


def test_the_title_makes_room_for_a_long_legend() -> None:
    many = [row(method, s, 0.1, 1) for method in METHODS for s in (0.5, 0.25)]
    for chosen, there in ((many, False), (rows(), True)):
        figure = figures.solver_swap(chosen, TRAINING, exact=0.8)
        axes = figure.axes[0]
        assert bool(axes.get_title(loc="left")) is there
        shown = figure.axes[1].get_legend()
        assert shown is not None
        assert inside(figure, [axes._left_title, *shown.get_texts()])


def test_order_tells_what_was_observed() -> None:
    (axes,) = figures.audit_order(rows(), ORDERS).axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert legend(axes) == ["euler", "rk4: 3.90 ± 0.20\n(nominal order 4)"]
    assert list(lines(axes)["euler"].get_xdata()) == [1, 2, 4, 8, 16, 23]
    assert [text.get_text() for text in axes.texts] == ["rounding"]
    assert not figures.audit_order(rows(), []).axes[0].texts


def test_cost_shows_who_is_safe() -> None:
    """The bound of the share is drawn: safe solvers lie below the line of the margin."""
    (axes,) = figures.audit_cost(rows(), 0.01, SAFE).axes
    assert lines(axes)["dopri5"].get_ydata() == pytest.approx([1.3, 0.4, 0.3])
    trained, safe = (
        lines(axes)["trained with\neuler x 2"],
        lines(axes)["cheapest safe\nrk4 x 2"],
    )
    assert (trained.get_color(), trained.get_marker()) == (DARK, "o")
    assert trained.get_ydata() == pytest.approx([30.3])
    assert (safe.get_xdata(), safe.get_ydata()) == (pytest.approx([8]), pytest.approx([0.3]))
    assert [text.get_text() for text in axes.texts] == ["margin 1 %"]
    assert axes.get_ylim()[0] < 0.3
    assert not any(
        label.startswith("cheapest")
        for label in lines(figures.audit_cost(rows(), 0.01, []).axes[0])
    )


def test_names_of_other_libraries_fit() -> None:
    foreign = "torchdiffeq explicit_adams"
    for figure in (
        figures.audit_cost([row(foreign, 20, 0.1, 3, is_training=True), *rows()[1:]], 0.01, SAFE),
        figures.audit_order(
            [row(foreign, 20, 0.1, 3), *rows()], [ORDERS[0] | {"method": "midpoint"}, *ORDERS]
        ),
    ):
        shown = figure.axes[0].get_legend()
        assert shown is not None
        assert inside(figure, [*shown.get_texts(), figure.axes[0]._left_title])


def test_trajectories_have_the_colour_of_the_prediction() -> None:
    labels = np.arange(12) % 3
    figure = figures.audit_trajectories(paths(), paths() + 0.1, labels, np.zeros(12, int), TRAINING)
    own, exact = figure.axes
    assert (own.get_title(loc="left"), exact.get_title(loc="left")) == (
        f"trained with {TRAINING}",
        "exact flow",
    )
    for axes, expected in ((own, [0, 1, 2]), (exact, [0])):
        drawn = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
        assert [to_hex(artist.get_color()[0]) for artist in drawn] == [
            colour(label) for label in expected
        ]
        assert sum(len(artist.get_segments()) for artist in drawn) == 12
    (shown,) = figure.legends
    assert [text.get_text() for text in shown.get_texts()] == [
        *(f"predicted {k}" for k in range(3)),
        "start",
        "end",
    ]
    ten = figures.audit_trajectories(
        paths(), paths(), np.arange(12) % 10, np.arange(12) % 10, TRAINING
    )
    titles = [axes._left_title for axes in ten.axes]
    assert inside(ten, [*titles, *ten.legends[0].get_texts()])


NOTHING = np.empty((9, 0, 2)), np.empty(0, int)
DEGENERATE = {
    "no rows, swap": lambda: figures.solver_swap([], TRAINING, name="mse"),
    "no rows, order": lambda: figures.audit_order([], []),
    "no rows, cost": lambda: figures.audit_cost([], 0.01, []),
    "one row, swap": lambda: figures.solver_swap(rows()[:1], TRAINING, exact=0.8),
    "one row, order": lambda: figures.audit_order(rows()[:1], []),
    "one row, cost": lambda: figures.audit_cost(rows()[:1], 0.01, []),
    "not finite, swap": lambda: figures.solver_swap(
        [r | {"metric": np.nan} for r in rows()], TRAINING, name="mse"
    ),
    "not finite, order": lambda: figures.audit_order(
        [r | {"output_error": np.inf} for r in rows()], []
    ),
    "null, order": lambda: figures.audit_order(
        [r | {"output_error": None} for r in rows()], ORDERS
    ),
    "no error, order": lambda: figures.audit_order([r | {"output_error": 0.0} for r in rows()], []),
    "all failed, cost": lambda: figures.audit_cost(
        [r | {"status": "non_finite"} for r in rows()], 0.01, []
    ),
    "many methods, swap": lambda: figures.solver_swap(
        [row(m, s, s, 1) for m in METHODS for s in (0.1, 0.2)], name="mse", exact=1.0
    ),
    "many methods, cost": lambda: figures.audit_cost(
        [row(m, s, s, 1) for m in METHODS for s in (0.1, 0.2)], 0.5, SAFE
    ),
    "no paths": lambda: figures.audit_trajectories(
        NOTHING[0], NOTHING[0], NOTHING[1], NOTHING[1], TRAINING
    ),
    "paths of NaN": lambda: figures.audit_trajectories(
        paths() * np.nan, paths(), np.zeros(12), np.zeros(12), TRAINING
    ),
    "one path": lambda: figures.audit_trajectories(
        paths(1), paths(1), np.zeros(1), np.zeros(1), TRAINING
    ),
}


@pytest.mark.parametrize("draw", DEGENERATE.values(), ids=DEGENERATE)
def test_every_figure_is_written_whole(draw: Any, tmp_path: Any) -> None:
    path = figures.save(draw(), tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")


# densities and samplers


def test_costs_of_densities_are_in_bits_and_those_of_samplers_in_per_cent() -> None:
    given = [{**each, "change": -0.01 * each["output_error"]} for each in rows()]
    axes = figures.audit_cost(given, 0.01, SAFE).axes[0]
    assert "bits" in axes.get_ylabel()
    assert max(axes.lines[0].get_ydata()) == pytest.approx(
        max(each["upper"] for each in given if each["method"] == "euler")
    )
    given = [{**each, "sliced": each["output_error"] / 2} for each in rows()]
    axes = figures.audit_cost(given, 0.01, SAFE).axes[0]
    assert "samples" in axes.get_ylabel()
    assert max(axes.lines[0].get_ydata()) == pytest.approx(
        100 * max(each["upper"] for each in given if each["method"] == "euler")
    )
    unknown = [{**each, "upper": float("inf")} for each in given]
    assert not figures.audit_cost(unknown, 0.01, []).axes[0].lines


def test_swaps_of_densities_and_samplers() -> None:
    given = [{**each, "change": -0.01 * each["output_error"]} for each in rows()]
    upper, lower = figures.solver_swap(given, TRAINING, name="bits_per_dim", exact=0.8).axes[::2]
    euler = [each for each in given if each["method"] == "euler"]
    assert sorted(lower.lines[0].get_ydata()) == pytest.approx(
        sorted(-each["change"] for each in euler)
    )
    assert upper.get_ylabel() == "bits per dimension"
    given = [{**each, "sliced": each["output_error"] / 2} for each in rows()]
    upper, lower = figures.solver_swap(given, TRAINING, exact=0.03).axes[::2]
    assert sorted(upper.lines[0].get_ydata()) == pytest.approx(
        sorted(50 * each["output_error"] for each in euler)
    )
    assert sorted(lower.lines[0].get_ydata()) == pytest.approx(
        sorted(100 * each["output_error"] for each in euler)
    )
    assert any(line.get_ydata()[0] == pytest.approx(3.0) for line in upper.lines[-2:])
