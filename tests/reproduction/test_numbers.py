"""Means over seeds, the grid search's criterion and Table 1, from synthetic tables."""

from __future__ import annotations

from typing import Any

import pytest

from trueode.reproduction import fan
from trueode.reproduction.exact_flow import flips_text
from trueode.reproduction.numbers import fraction, plus_minus, spread, swap_points
from trueode.reproduction.table import ADAPTED, better_solver_losses, table_1


def rows(grid: str, steps: dict[float, float], *, nfe: float = 64.0) -> list[dict[str, Any]]:
    """Runs with two seeds and the given steps, with their losses under midpoint and rk4."""
    found = []
    for h, lost in steps.items():
        for seed in (0, 1):
            run = {
                "hash": f"{grid}-{h}-{seed}",
                "grid": grid,
                "step_size": h,
                "random_seed": seed,
                "verdict": "ode",
                "metric_exact": 0.98 - lost,
                "flips": lost,
                "nfe_per_iteration": nfe,
                "seconds": 1.0,
                "samples": 1000,
            }
            for solver in ("euler", "midpoint", "rk4"):
                for factor in (0.5, 1.0):
                    own = 0.98 + 0.01 * seed
                    tested = {
                        "test_solver": solver,
                        "factor": factor,
                        "n_steps": 1 / (h * factor),
                        "nfe": 1.0,
                        "setting": h,
                    }
                    metric = (
                        own if solver == "euler" else own - lost * (1 if solver == "rk4" else 0.5)
                    )
                    training = solver == "euler" and factor == 1
                    found.append({**run, **tested, "metric": metric, "is_training": training})
    return found


def test_spread() -> None:
    found = spread([0.1, 0.3, None, float("nan")])
    assert found == pytest.approx(
        {"mean": 0.2, "std": 0.2 / 2**0.5, "low": 0.1, "high": 0.3, "n": 2}
    )
    assert plus_minus([0.5]) == "50.0 %"
    assert plus_minus([None]) == "–"


def test_points_are_means_over_seeds() -> None:
    points = swap_points(rows("", {0.5: 0.2}), lambda row: "x")
    assert len(points) == 6
    point = next(point for point in points if point["solver"] == "rk4" and point["factor"] == 0.5)
    assert (point["x"], point["mean"], point["low"], point["high"]) == pytest.approx(
        (4, 0.785, 0.78, 0.79)
    )
    assert [point["solver"] for point in points if point["is_training"]] == ["euler"]
    assert points[0]["hashes"] == "-0.5-0 -0.5-1"


def test_the_criterion_takes_the_worst_solver_of_higher_order_at_the_same_step() -> None:
    found = better_solver_losses(rows("", {0.5: 0.2, 0.25: 0.05}))
    assert [(row["x"], row["n"]) for row in found] == [(2, 2), (4, 2)]
    assert [row["mean"] for row in found] == pytest.approx([0.2, 0.05])


@pytest.mark.parametrize(
    ("steps", "bracket"),
    [
        ({1.0: 0.4, 0.5: 0.2, 0.25: 0.05, 0.125: 0.0}, "2–4"),
        ({1.0: 0.4, 0.5: 0.05, 0.25: 0.2, 0.125: 0.0}, "4–8"),
        ({1.0: 0.0, 0.5: 0.0}, "≤ 1"),
        ({1.0: 0.4, 0.5: 0.3}, "> 2"),
    ],
)
def test_the_bracket_of_the_critical_step(steps: dict[float, float], bracket: str) -> None:
    numbers, text = table_1(
        rows("grid search", steps) + rows(ADAPTED, {1.0: 0.01}, nfe=99.5), "spheres"
    )
    assert [row["nfe"] for row in numbers] == [bracket, "99.5 ± 0.0"]
    assert f"| {bracket} | 65–129 |" in text
    assert "| 99.5 ± 0.0 | 100.5 |" in text
    assert "98.5 ± 0.7 % agrees with the paper's 98.7 ± 1.0 %" in text


def test_flips_of_each_training_step() -> None:
    text = flips_text(rows("", {0.5: 0.2, 0.25: 0.05}), "step_size")
    assert "| 1/2 | 98.5 ± 0.7 % | 78.0 ± 0.0 % | 20.0 ± 0.0 % | 2 of 2 |" in text
    assert text.endswith("The exact flow is computed for the first 1000 test samples.")


@pytest.mark.parametrize(
    ("value", "told"),
    [(1.0, "1"), (0.0078125, "1/128"), (0.1, "0.1"), (1e-5, "1e-05"), (0.5, "1/2")],
)
def test_fractions(value: float, told: str) -> None:
    assert fraction(value) == told


def test_the_chosen_fan_shows_the_effect_and_so_do_its_neighbours() -> None:
    coarse, fine, true = fan.margins(fan.CHOSEN)
    assert fan.shows(coarse, fine, true)
    assert fan.robustness(fan.CHOSEN, 0.01, n=25) == 1


def test_margins_of_points_that_can_and_cannot_be_separated() -> None:
    square = fan.XOR
    assert fan.margin(square)[0] < 0
    gap, normal, offset = fan.margin(square[[0, 2, 1, 3]])  # the classes are two sides
    assert gap > 0
    assert ((square[[0, 2]] @ normal) > offset).all()
    assert ((square[[1, 3]] @ normal) < offset).all()


def test_euler_converges_to_the_exact_fan() -> None:
    true = fan.exact(fan.CHOSEN)
    errors = [abs(fan.euler(fan.CHOSEN, n) - true).max() for n in (20000, 40000)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
