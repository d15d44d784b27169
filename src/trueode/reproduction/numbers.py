"""Means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that agree in some columns, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def spread(values: Sequence[float | None]) -> dict[str, float]:
    """``mean``, ``std`` (0 for one value), ``low``, ``high`` and number ``n`` of the values that
    there are.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return {"mean": math.nan, "std": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    deviation = stdev(known) if len(known) > 1 else 0.0
    return {
        "mean": fmean(known),
        "std": deviation,
        "low": min(known),
        "high": max(known),
        "n": len(known),
    }


def swap_points(
    rows: Sequence[Row], training: Callable[[Row], str], *, tolerance: bool = False
) -> list[Row]:
    """Means over seeds for each training configuration, test solver and factor, as
    `figures.swap_sweep` takes them.

    Args:
        rows: of a sweep's table.
        training: names the training configuration of a row.
        tolerance: x is the tolerance of the test instead of its number of steps.
    """
    tested = [{**row, "training": training(row)} for row in rows if row["test_solver"]]
    points = []
    for (name, solver, factor), own in grouped(
        tested, ("training", "test_solver", "factor")
    ).items():
        points.append(
            {
                "training": name,
                "solver": solver,
                "factor": factor,
                "x": fmean(
                    row["setting"] if tolerance else row["n_steps"] or math.nan for row in own
                ),
                "nfe": fmean(row["nfe"] or math.nan for row in own),
                **spread([row["metric"] for row in own]),
                "is_training": any(row["is_training"] for row in own),
                "hashes": " ".join(row["hash"] for row in own),
            }
        )
    return points


def percent(share: float) -> str:
    """A share in per cent with one digit."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def plus_minus(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of shares, in per cent."""
    found = spread(values)
    return (
        percent(found["mean"])
        if found["n"] < 2
        else f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f} %"
    )


def fraction(value: float) -> str:
    """1/64 for 0.015625; other numbers as they are."""
    inverse = 1 / value if value else math.nan
    whole = (
        value < 1
        and abs(inverse - round(inverse)) < 1e-9
        and value > 1e-3
        and round(inverse) & (round(inverse) - 1) == 0
    )
    return f"1/{round(inverse)}" if whole else f"{value:g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
