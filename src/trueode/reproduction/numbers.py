"""Means over seeds, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Groups of rows that agree in some columns, in their order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def spread(values: Sequence[float | None]) -> dict[str, float]:
    """``mean``, ``std`` (0 for one value), ``low``, ``high`` and number ``n`` of finite values."""
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
    """Means over seeds for each training configuration, test solver and factor.

    Args:
        rows: of a sweep's table.
        training: returns the training configuration of a row in words.
        tolerance: whether x is the tolerance of the test solver, not its number of steps.

    Returns:
        Points for `figures.swap_sweep`.
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
    if found["n"] < 2:
        return percent(found["mean"])
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f} %"


def mean_and_deviation(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, with one digit."""
    found = spread(values)
    return f"{found['mean']:.1f}" + (f" ± {found['std']:.1f}" if found["n"] > 1 else "")


def fraction(value: float) -> str:
    """1/64 for 0.015625 and other powers of 1/2; other numbers unchanged."""
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
