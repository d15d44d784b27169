import numpy as np
import pytest

from tests.figures.samples import rows
from trueode import figures
from trueode.figures.swap import MARKS
from trueode.figures.theme import DARK


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_each_solver_is_a_line_over_its_realised_steps():
    upper, lower = figures.solver_swap(rows(), "euler, h = 1/64").axes
    assert upper.get_xscale() == lower.get_xscale() == "log"
    assert lower.get_xlabel() == "steps"
    for solver in ("euler", "midpoint", "rk4"):
        own = sorted(
            (row for row in rows() if row["method"] == solver), key=lambda row: row["n_steps"]
        )
        assert list(lines(upper)[solver].get_xdata()) == [row["n_steps"] for row in own]
        assert lines(upper)[solver].get_ydata() == pytest.approx(
            [100 * row["metric"] for row in own]
        )
        assert lines(lower)[solver].get_ydata() == pytest.approx(
            [100 * row["changed"] for row in own]
        )


def test_circle_cross_and_triangle_as_in_the_paper():
    upper, _ = figures.solver_swap(rows()).axes
    assert [lines(upper)[solver].get_marker() for solver in ("euler", "midpoint", "rk4")] == [
        "o",
        "x",
        "^",
    ]


def test_solvers_of_one_panel_differ_in_marker_and_in_colour():
    for panel in (
        ("euler", "midpoint", "heun2", "rk4", "rk4_38"),
        ("fehlberg2", "bosh3", "dopri5", "tsit5"),
    ):
        assert (
            len({MARKS[solver][0] for solver in panel})
            == len({MARKS[solver][1] for solver in panel})
            == len(panel)
        )


def test_the_training_point_is_dark_and_named():
    upper, _ = figures.solver_swap(rows(), "euler, h = 1/64").axes
    point = lines(upper)["_training"]
    assert point.get_color() == DARK
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (64, pytest.approx(90))
    assert [text.get_text() for text in upper.texts] == ["trained with euler, h = 1/64"]


def test_adaptive_solvers_stand_over_one_over_the_tolerance():
    upper, lower = figures.solver_swap(rows(kind="adaptive"), "dopri5, tol = 0.001").axes
    assert "tolerance" in lower.get_xlabel()
    assert lines(upper)["dopri5"].get_xdata() == pytest.approx([500, 1000, 2000])


def test_both_kinds_stand_side_by_side():
    figure = figures.solver_swap(rows() + rows(kind="adaptive"))
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["steps", "1 / tolerance"]


def test_mse_is_not_turned_into_per_cent():
    upper, _ = figures.solver_swap(rows(), name="mse").axes
    assert upper.get_ylabel() == "mse"
    assert np.max(lines(upper)["euler"].get_ydata()) == 0.9


def test_no_tick_above_100_per_cent():
    upper, _ = figures.solver_swap([row | {"metric": 1.0} for row in rows()]).axes
    assert max(upper.get_yticks()) <= 100


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_labels_of_samplers_fit_into_the_figure(kind):
    """However small the errors are."""
    made = rows(kind=kind)
    for row, error in zip(made, np.geomspace(0.3, 2e-6, len(made)), strict=True):
        row |= {"sliced": error, "output_error": error}
    figure = figures.solver_swap(made, exact=0.03)
    figure.canvas.draw()
    whole = figure.bbox
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title]
        for box in (text.get_window_extent() for text in texts if text.get_text()):
            assert whole.x0 <= box.x0 < box.x1 <= whole.x1
            assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        words = " ".join(text.get_text() for text in texts)
        assert not any(word in words for word in ("model", "accuracy", "prediction", "metric"))
