"""The paper's qualitative claims, checked with the numbers of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import isnan

from trueode.evaluation.decision import MARGIN
from trueode.reproduction.numbers import Row, fraction, grouped, percent, spread
from trueode.solvers import get_tableau

ALLOWED = 0.1
"""Test accuracy that a better solver may cost: the threshold of the paper's rule, and our criterion
of the grid search.
"""
ALIKE = 0.02
"""Mean test accuracies that differ by at most this are considered equal (our choice)."""


def loss_under_better(rows: Sequence[Row]) -> float | None:
    """The largest loss of accuracy of a run under a better solver than its training solver.

    A better solver has at least its order, and at most its step or tolerance.
    """
    trained = next(row for row in rows if row["is_training"])
    order = get_tableau(trained["test_solver"]).order
    better = [
        row["metric"]
        for row in rows
        if row["factor"] <= 1
        and get_tableau(row["test_solver"]).order >= order
        and not row["is_training"]
        and row["metric"] is not None
    ]
    return trained["metric"] - min(better) if better and trained["metric"] is not None else None


def swap_claims(rows: Sequence[Row], key: str) -> str:
    """Check the claims of Figure 4, and whether the exact flow confirms its test solvers.

    Args:
        rows: of a sweep over ``key`` with one training solver.
        key: ``"step_size"`` or ``"tol"``.

    Returns:
        A list in Markdown.
    """
    what = {"step_size": "step", "tol": "tolerance"}[key]
    tested = [row for row in rows if row["test_solver"]]
    # from coarse to fine: setting, accuracy as trained, loss under a better solver
    found, flips = [], {}
    for (setting,), own in sorted(grouped(tested, (key,)).items(), reverse=True):
        runs = [
            each
            for each in grouped(own, ("hash",)).values()
            if any(row["is_training"] for row in each)
        ]
        accuracy = spread([row["metric"] for row in own if row["is_training"]])
        lost = spread([loss_under_better(each) for each in runs])
        if lost["n"]:
            found.append((setting, accuracy["mean"], lost["mean"]))
            flips[setting] = spread([each[0]["flips"] for each in runs])["mean"]
    if not found:
        return ""
    low, high = min(accuracy for _, accuracy, _ in found), max(accuracy for _, accuracy, _ in found)
    coarsest, _, most = found[0]
    worst_from = list(accumulate((lost for *_, lost in reversed(found)), max))[::-1]
    safe = [
        (setting, worst)
        for (setting, *_), worst in zip(found, worst_from, strict=True)
        if worst <= ALLOWED
    ]
    if safe:
        critical = f"from {fraction(safe[0][0])} on it costs at most {percent(safe[0][1])}"
    else:
        finest, _, cost = found[-1]
        critical = f"not in this range: at the finest, {fraction(finest)}, it costs {percent(cost)}"
    lines = [
        (
            f"Test accuracy as trained does not depend on the training {what}",
            f"means from {percent(low)} to {percent(high)}",
            high - low <= ALIKE,
        ),
        (
            f"Above a critical {what} a better solver costs accuracy",
            f"at {fraction(coarsest)} it costs {percent(most)}",
            most > ALLOWED,
        ),
        ("Below it the test solver no longer matters", critical, bool(safe)),
    ]
    judged = [(flips[setting], setting) for setting, _ in safe if not isnan(flips[setting])]
    if judged:
        worst, at = max(judged)
        number = f"at {fraction(at)} it changes {percent(worst)} of the predictions"
        lines.append(
            (
                f"There the exact flow does not matter either (ours, {percent(MARGIN)} allowed)",
                number,
                worst <= MARGIN,
            )
        )
    told = "\n".join(
        f"* {claim}: {'yes' if holds else '**no**'} ({number})." for claim, number, holds in lines
    )
    return (
        "The paper's claims, checked with these numbers (means over seeds; a better solver has at "
        f"least the order and at most the {what} of the training solver; it matters if it costs "
        f"more than {percent(ALLOWED)}; means within {percent(ALIKE)} are considered equal):"
        f"\n\n{told}"
    )
