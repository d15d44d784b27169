"""The description of a solver that an audit finds."""

from __future__ import annotations

import json

from trueode.auditing.problem import FoundSolver

FOUND = FoundSolver("torchdiffeq", "euler", {"step_size": 0.125}, False, 1, "euler")


def test_what_was_found_says_itself_and_is_plain() -> None:
    tight = FoundSolver("torchdyn", "dopri5", {"rtol": 0.1, "atol": 0.1}, True, 5, "dopri5")
    loose = FoundSolver("torchdiffeq", "dopri8", {"rtol": 1e-7, "atol": 1e-9}, True, 8, None)
    assert str(FOUND) == "torchdiffeq euler, h = 0.125"
    assert str(tight) == "torchdyn dopri5, tol = 0.1"
    assert str(loose) == "torchdiffeq dopri8, tol = 1e-07 (rel), 1e-09 (abs)"
    assert str(FoundSolver("torchdiffeq", "rk4", {}, False, 4, "rk4_38")) == "torchdiffeq rk4"
    assert json.loads(json.dumps(tight.settings)) == tight.settings
    assert (
        len({FOUND, FoundSolver("torchdiffeq", "euler", {"step_size": 0.125}, False, 1, "euler")})
        == 1
    )
