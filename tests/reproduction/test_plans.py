"""Plans of the paper's figures; the small scale changes only their size."""

from __future__ import annotations

from typing import Any

import pytest

from trueode.cli.reproduce import NAMES, SCALES
from trueode.reproduction import plans, recipes
from trueode.reproduction.plans import PAPER, SMALL, plan_of
from trueode.reproduction.scale import IMPLIED, differences, told_scale, whole
from trueode.sweeps import Plan, make_plan


def planned(name: str, scale: str, **overrides: Any) -> Plan:
    return make_plan(plan_of(name, scale), overrides, identify=lambda *_, **__: {})


def test_every_name_has_a_plan_and_a_recipe() -> None:
    assert set(NAMES) == set(PAPER) == set(SMALL) == set(recipes.RECIPES)
    assert SCALES == plans.SCALES


def test_figure_4a_is_the_paper_s() -> None:
    runs = planned("fig4a", "paper").runs
    assert len(runs) == 8 * 5
    assert {run.options.step_size for run in runs} == {2.0**-k for k in range(8)}
    assert {run.options.random_seed for run in runs} == set(range(5))
    for run in runs:
        o = run.options
        assert (o.dataset, o.network, o.solver) == ("concentric_sphere2", "simple_odenet", "euler")
        assert (o.ch_residual_block, o.batch_size, o.lr, o.niter) == (32, 128, 1e-4, 10000)
        assert o.test_solver_list == ("euler", "midpoint", "rk4")
        assert o.test_factor_list == (0.5, 0.75, 1.0, 1.5, 2.0)


def test_table_1_repeats_nothing_of_figure_4a() -> None:
    table, figure = planned("table1", "paper").runs, planned("fig4a", "paper").runs
    assert {run.hash for run in figure} < {run.hash for run in table}
    assert len(table) == len(figure) + 3 * 5


@pytest.mark.parametrize("name", sorted(PAPER))
def test_small_scale_is_told_apart_from_the_paper_s(name: str) -> None:
    small, paper = planned(name, "small"), planned(name, "paper")
    assert differences(paper, paper) == []
    changed = {text.split("`")[1] for text in differences(small, paper)}
    assert changed == {
        option
        for option, value in SMALL[name].items()
        if option not in IMPLIED
        and any(_differs(option, value, part) for part in _parts(PAPER[name]))
    }
    assert "scale: small" in told_scale(small, "small")


def _parts(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *plan.get("grids", [])]


def _differs(option: str, value: Any, part: dict[str, Any]) -> bool:
    return bool(value != part.get("axes", {}).get(option, part.get("base", {}).get(option, value)))


def test_flags_are_told_as_differences() -> None:
    found = differences(planned("fig4a", "paper", niter=7), planned("fig4a", "paper"))
    assert found == ["`niter` 7 (paper: 10000)"]


def test_the_foot_names_seeds_iterations_and_data() -> None:
    assert told_scale(planned("fig4a", "paper"), "paper") == (
        "scale: paper; seeds 0–4; 10000 iterations; concentric_sphere2; 32 channels"
    )


@pytest.mark.parametrize(
    ("niter", "first", "last"), [(None, 975, 6825), (800, 100, 700), (2, 1, 2)]
)
def test_moments_of_figure_5_are_eighths_of_its_run(
    niter: int | None, first: int, last: int
) -> None:
    plan = make_plan(plan_of("fig5", "paper", niter), identify=lambda *_, **__: {})
    moments = [run.options.niter for run in plan.runs if run.grid == plans.MOMENTS]
    assert moments[0] == first
    assert moments[-1] == last
    assert len({run.options.niter for run in whole(plan)}) == 1
