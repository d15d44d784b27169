"""The paper's figures from synthetic numbers: marks, colours, axes and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tests.figures.samples import portrait
from trueode import figures
from trueode.figures.theme import DARK


def points(kind: str = "fixed") -> list[dict[str, Any]]:
    """Two training configurations, three solvers, three factors."""
    return [
        {
            "training": f"h = 1/{n}",
            "solver": solver,
            "x": n / factor if kind == "fixed" else 0.01 * factor / n,
            "mean": 0.9 - 0.1 * place,
            "low": 0.8 - 0.1 * place,
            "high": 0.95 - 0.1 * place,
            "is_training": place == 0 and factor == 1,
        }
        for n in (4, 16)
        for place, solver in enumerate(("euler", "midpoint", "rk4"))
        for factor in (0.5, 1, 2)
    ]


def marks(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_marker() not in ("None", "", None)]


def test_one_colour_for_each_training_configuration_and_one_mark_for_each_solver() -> None:
    (axes,) = figures.swap_sweep({"title": points()}).axes
    light = [line for line in marks(axes) if len(line.get_xdata()) > 1]
    assert {(line.get_marker()) for line in light} == {"o", "x", "^"}
    assert len({line.get_color() for line in light}) == 2
    assert len(light) == 6


def test_dark_is_the_training_configuration() -> None:
    (axes,) = figures.swap_sweep({"title": points()}).axes
    dark = [line for line in marks(axes) if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in dark] == [
        (4, 90, "o"),
        (16, 90, "o"),
    ]
    light = {to_rgb(line.get_color()) for line in marks(axes) if len(line.get_xdata()) > 1}
    assert max(sum(to_rgb(line.get_color())) for line in dark) < min(map(sum, light))


def test_bars_reach_from_the_lowest_to_the_highest_seed() -> None:
    (axes,) = figures.swap_sweep({"title": points()}).axes
    ends = {
        tuple(np.round(segment[:, 1], 6))
        for bars in axes.collections
        for segment in bars.get_segments()
    }
    assert ends == {(80, 95), (70, 85), (60, 75)}


@pytest.mark.parametrize(("kind", "label"), [("fixed", "steps"), ("adaptive", "tolerance")])
def test_logarithmic_axes_and_finer_solvers_to_the_right(kind: str, label: str) -> None:
    (axes,) = figures.swap_sweep({"title": points(kind)}, kind=kind).axes
    assert axes.get_xscale() == "log"
    assert label in axes.get_xlabel()
    left, right = axes.get_xlim()
    assert (left < right) == (kind == "fixed")


def test_failed_solvers_are_left_out() -> None:
    (axes,) = figures.swap_sweep(
        {"title": [{**point, "mean": float("nan")} for point in points()]}
    ).axes
    assert [text.get_text() for text in axes.texts] == ["no data"]


def test_panels_share_colours_and_legends() -> None:
    figure = figures.swap_sweep({"one": points(), "other": points()[:3]})
    assert [axes.get_title("left") for axes in figure.axes] == ["one", "other"]
    one, other = ({line.get_color() for line in marks(axes)} for axes in figure.axes)
    assert other <= one


def test_figure_1_has_trajectories_above_and_accuracies_below() -> None:
    figure = figures.fine_and_coarse(
        [portrait(), portrait()], [points(), points()], ["fine", "coarse"]
    )
    assert [axes.get_title("left")[:1] for axes in figure.axes] == ["a", "b", "c", "d"]
    for below in figure.axes[2:]:
        assert below.get_xscale() == "log"
        assert {line.get_xdata()[0] for line in marks(below) if line.get_color() == DARK} == {4, 16}


def test_figure_2_shows_all_outputs_over_the_regions_of_the_first() -> None:
    first, second = portrait(), {**portrait(), "regions": np.zeros((30, 40))}
    panels = figures.two_outputs([first, second], ["h = 1/2", "h = 1/4"]).axes
    assert [len(panel.images) for panel in panels] == [1, 1]
    assert np.array_equal(panels[1].images[0].get_array(), first["regions"])
    assert "99.6 %" in panels[0].get_title("left")


def test_figure_3_draws_a_line_only_where_there_is_one() -> None:
    panel = {
        "title": "x",
        "paths": np.random.default_rng(0).normal(size=(9, 4, 2)),
        "labels": [0, 0, 1, 1],
        "line": None,
    }
    lined = {**panel, "line": (np.array([0.6, 0.8]), 0.1)}
    a, b, c = figures.fan([lined, panel], (np.zeros((5, 2)), np.array([0, 0, 1, 1, 1]))).axes
    assert len(a.lines) == len(b.lines) + 1
    assert len(c.lines) == 2


def test_critical_steps_have_a_line_for_each_group_and_what_is_allowed() -> None:
    group = [
        {"x": 2.0**k, "mean": 0.5 / 2**k, "low": 0.4 / 2**k, "high": 0.6 / 2**k} for k in range(4)
    ]
    (axes,) = figures.critical_steps({"a": group, "b": group}, 0.1).axes
    assert [line.get_label() for line in axes.lines] == ["a", "b", "allowed: 10 %"]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_all_forms_with_equal_bytes_and_a_foot(form: str, tmp_path: Path) -> None:
    contents = []
    for k in range(2):
        figure = figures.swap_sweep({"title": points()})
        height = figure.get_size_inches()[1]
        figures.footer(figure, "scale: small; seeds 0–2")
        assert figure.get_size_inches()[1] > height
        contents.append(figures.save(figure, tmp_path / f"{k}.{form}").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form])
