"""The paper's claims, from synthetic tables."""

from __future__ import annotations

import pytest

from tests.reproduction.test_numbers import rows
from trueode.reproduction.claims import loss_under_better, swap_claims


def test_what_a_better_solver_costs_a_run() -> None:
    run = [row for row in rows("", {0.5: 0.2}) if row["random_seed"] == 0]
    assert loss_under_better(run) == pytest.approx(0.2)
    worse = [
        {**row, "factor": 2.0} for row in run if not row["is_training"]
    ]  # coarser steps do not count
    assert loss_under_better([row for row in run if row["is_training"]] + worse) is None
    assert (
        loss_under_better(
            [{**row, "metric": row["metric"] if row["is_training"] else None} for row in run]
        )
        is None
    )


@pytest.mark.parametrize(
    ("steps", "answers", "told"),
    [
        (
            {1.0: 0.4, 0.5: 0.2, 0.25: 0.05},
            ["yes", "yes", "yes", "**no**"],
            "from 1/4 on it costs at most 5.0 %",
        ),
        (
            {1.0: 0.05, 0.5: 0.2, 0.25: 0.01},
            ["yes", "**no**", "yes", "yes"],
            "from 1/4 on it costs at most 1.0 %",
        ),
        ({1.0: 0.4, 0.5: 0.3}, ["yes", "yes", "**no**"], "at the finest, 1/2, it costs 30.0 %"),
    ],
)
def test_each_claim_is_answered_by_the_numbers(
    steps: dict[float, float], answers: list[str], told: str
) -> None:
    text = swap_claims(rows("", steps), "step_size")
    lines = [line for line in text.splitlines() if line.startswith("* ")]
    assert [line.split(": ")[1].split(" (")[0] for line in lines] == answers
    assert told in lines[2]


def test_the_exact_flow_can_tell_more_than_other_solvers_at_the_tested_settings() -> None:
    table = [{**row, "flips": 0.3} for row in rows("", {1.0: 0.4, 0.5: 0.01})]
    assert swap_claims(table, "step_size").endswith(
        "**no** (at 1/2 it changes 30.0 % of the predictions)."
    )
    unknown = [{**row, "flips": None} for row in table]
    assert "exact flow" not in swap_claims(unknown, "step_size")


def test_accuracy_that_depends_on_the_step_is_seen() -> None:
    table = rows("", {1.0: 0.4, 0.5: 0.0})
    for row in table:
        row["metric"] -= 0.05 * (row["step_size"] == 0.5)
    assert (
        "does not depend on the training step: **no** (means from 93.5 % to 98.5 %)"
        in swap_claims(table, "step_size")
    )


def test_without_runs_there_is_nothing_to_say() -> None:
    assert swap_claims([], "tol") == ""
