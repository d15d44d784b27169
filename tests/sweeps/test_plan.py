"""Plans: their runs, the hashes of runs, and error messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.errors import DataError, OptionError, UsageError
from trueode.options import RESULT, Options
from trueode.sweeps import make_plan, read_plan, run_hash
from trueode.sweeps import plan as module

AXES = {"step_size": [1, 0.5], "random_seed": [0, 1, 2]}
GENERATED = {"generator": 1}


def hashes(source: dict[str, Any], **overrides: Any) -> list[str]:
    return [run.hash for run in make_plan(source, overrides).runs]


def test_a_grid_is_the_product_of_its_axes() -> None:
    plan = make_plan({"base": {"lr": 0.5}, "axes": AXES})
    assert [(run.options.step_size, run.options.random_seed) for run in plan.runs] == [
        (step, seed) for step in (1, 0.5) for seed in (0, 1, 2)
    ]
    assert all(run.options.lr == 0.5 for run in plan.runs)
    assert plan.axes == ("step_size", "random_seed")
    assert plan.runs[3].name == f"step_size=0.5,random_seed=0-{plan.runs[3].hash}"


def test_lists_may_vary_and_other_spellings_are_known() -> None:
    plan = make_plan(
        {
            "base": {"evaluate_text_acc": True},
            "axes": {"test_solver_list": [["euler"], ["euler", "rk4"]]},
        }
    )
    assert [run.options.test_solver_list for run in plan.runs] == [("euler",), ("euler", "rk4")]
    assert plan.runs[1].name.startswith("test_solver_list=euler+rk4-")
    assert plan.runs[0].options.evaluate_test_acc


def test_several_grids_extend_what_stands_above_them_and_share_runs() -> None:
    grids = [
        {"name": "a"},
        {"name": "b", "axes": {"step_size": [0.5, 0.25]}},
        {"base": {"n_steps": 7}, "axes": {}},
    ]
    plan = make_plan({"base": {"step_size": 0.5}, "axes": {"random_seed": [0, 1]}, "grids": grids})
    assert [
        (run.grid, run.options.step_size, run.options.n_steps, run.options.random_seed)
        for run in plan.runs
    ] == [
        ("a", 0.5, None, 0),
        ("a", 0.5, None, 1),
        ("b", 0.25, None, 0),
        ("b", 0.25, None, 1),
        ("", 1.0, 7, 0),
        ("", 1.0, 7, 1),
    ]


@given(st.sampled_from(sorted(set(Options.model_fields) - RESULT)))
def test_what_does_not_change_the_result_does_not_change_the_hash(name: str) -> None:
    other = {"n": "x", "o": "x", "d": "/x", "p": "infer", "s": "test", "g": "1"}
    value = getattr(Options(), name)
    changed = (
        not value
        if isinstance(value, bool)
        else (value or 0) + 1
        if not isinstance(value, str)
        else other[name[0]]
    )
    assert run_hash(Options().model_copy(update={name: changed}), GENERATED) == run_hash(
        Options(), GENERATED
    )


@given(st.sampled_from(sorted(RESULT)))
def test_everything_else_changes_it(name: str) -> None:
    value = getattr(Options(), name)
    changed: Any = (
        f"{value}x"
        if isinstance(value, str)
        else (value or 0) + 1
        if not isinstance(value, tuple)
        else value[1:]
    )
    changed = not value if isinstance(value, bool) else changed
    assert run_hash(Options().model_copy(update={name: changed}), GENERATED) != run_hash(
        Options(), GENERATED
    )


def test_data_changes_the_hash() -> None:
    assert run_hash(Options(), {"generator": 2}) != run_hash(Options(), GENERATED)


@settings(max_examples=20)
@given(st.permutations(list(AXES)), st.permutations(AXES["random_seed"]))
def test_hashes_do_not_depend_on_the_order_of_the_plan(names: list[str], seeds: list[int]) -> None:
    shuffled = {name: seeds if name == "random_seed" else AXES[name] for name in names}
    assert sorted(hashes({"axes": shuffled})) == sorted(hashes({"axes": AXES}))


def test_hashes_do_not_depend_on_how_numbers_are_written_or_where_options_stand() -> None:
    assert hashes({"base": {"niter": "1e3"}, "axes": {"step_size": [1]}}) == hashes(
        {"base": {"niter": 1000, "step_size": 1.0}}
    )


def test_flags_win_and_the_plan_that_is_kept_leads_to_the_same_runs() -> None:
    source = {
        "base": {"niter": 10},
        "axes": AXES,
        "grids": [{"base": {"niter": 30}}, {"name": "x", "base": {"lr": 0.5}}],
    }
    plan = make_plan(source, {"niter": 20, "step_size": 0.25})
    assert {(run.options.niter, run.options.step_size) for run in plan.runs} == {(20, 0.25)}
    again = make_plan(yaml.safe_load(yaml.safe_dump(plan.source, sort_keys=False)))
    assert [(run.name, run.hash) for run in again.runs] == [
        (run.name, run.hash) for run in plan.runs
    ]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"bsae": {}}, "'base'"),
        ({"base": {"step_sise": 1}}, "'step_size'"),
        ({"axes": {"random_sed": [0]}}, "'random_seed'"),
        ({"axes": {"random_seed": 0}}, "must be a list"),
        ({"axes": {"random_seed": []}}, "must be a list"),
        ({"axes": {"random_seed": [0, 0]}}, "twice"),
        ({"axes": {"name": ["a"]}}, "the sweep chooses it"),
        ({"base": {"output_dir": "a"}}, "the sweep chooses it"),
        ({"axes": {"step_size": [0.5, 2]}}, "step_size=2 of the plan is impossible"),
        ({"base": {"solver": "rk5"}}, "'rk4'"),
        ({"grids": [{"axis": {}}]}, "'axes'"),
        ({"grids": {}}, "must be a list"),
        ({"base": [1]}, "option: value"),
        ({"name": "a/b"}, "without /"),
    ],
)
def test_mistakes_are_named(source: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_plan(source)


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    for text, told in (("a: [", "not valid YAML"), ("- 1", "must hold"), (None, "cannot be read")):
        path = tmp_path / "plan.yaml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=told):
            read_plan(path)


def test_a_plan_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("axes: {random_seed: [0]}")
    assert read_plan(path).name == "mine"


def test_arrays_are_identified_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(where: str, value: float) -> Path:
        np.savez(tmp_path / where, x=np.full((10, 2), value), y=np.arange(10) % 2)
        return tmp_path / where

    def run(path: Path) -> str:
        base = {"dataset": "arrays", "data_dir": str(path), "network": "linear_odenet"}
        return make_plan({"base": base}, cache=tmp_path / "cache.json").runs[0].hash

    first = run(save("a.npz", 0.0))
    assert run(save("b.npz", 0.0)) == first, "the same content elsewhere"
    assert run(save("c.npz", 1.0)) != first
    with pytest.raises(DataError, match="no data"):
        run(tmp_path / "nothing.npz")


def test_names_stay_names_of_folders() -> None:
    run = make_plan({"axes": {"data_dir": ["/a b/ü/" + "x" * 300], "random_seed": [0]}}).runs[0]
    assert "/" not in run.name
    assert len(run.name.encode()) <= 255
    assert run.name.endswith(run.hash)
    assert len(run.hash) == module.HASH


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            {"axes": {"random_seed": list(range(3000)), "niter": list(range(1, 3001))}},
            "9000000 runs",
        ),
        ({"axes": {"random_seed": list(range(10**6))}}, "1000000 values"),
        ({"axes": AXES, "grids": [{"axes": {"niter": list(range(1, 2001))}}] * 6}, "72000 runs"),
        ({"base": {"step_size": 1e-7, "max_steps": 10**7}}, "larger steps"),
        ({"base": {"n_steps": 5 * 10**6, "max_steps": 10**7}}, "larger steps"),
        (
            {
                "base": {
                    "evaluate_with_dif_solver": True,
                    "n_steps": 1000,
                    "max_steps": 1000,
                    "test_factor_list": [1e-4],
                }
            },
            "divided by the factor 0.0001",
        ),
    ],
)
def test_plans_without_end_are_refused_before_any_run_is_made(
    source: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        make_plan(source)


def test_equal_values_of_an_axis_are_found_however_they_are_written() -> None:
    for points in ([1, 1.0], [["euler"], ["euler"]], [[1, [2]], [1, [2]]], [{"a": 1}, {"a": 1}]):
        with pytest.raises(UsageError, match="twice"):
            make_plan({"axes": {"step_size": points}})


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", 2**40)
    (tmp_path / "date.yaml").write_text("base: {niter: 2001-99-99}")
    (tmp_path / "deep.yaml").write_text("[" * 2000)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, *tmp_path.glob("*.yaml")):
        with pytest.raises(UsageError, match=str(path)):
            read_plan(path)
