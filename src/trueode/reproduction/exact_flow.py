"""How trained models perform under the exact flow, as text."""

from __future__ import annotations

from collections.abc import Sequence

from trueode.reproduction.numbers import Row, fraction, grouped, markdown, plus_minus


def flips_text(rows: Sequence[Row], *keys: str) -> str:
    """A table with a row for each training configuration: its accuracy with the training solver and
    under the exact flow, and its flips; then the number of samples.

    Args:
        rows: of a sweep's table.
        keys: the columns that define a training configuration.
    """
    trained = [row for row in rows if row["is_training"]]
    if not trained:
        return ""
    lines = [
        (
            ", ".join(fraction(v) if isinstance(v, float) else str(v) for v in values),
            plus_minus([row["metric"] for row in own]),
            plus_minus([row["metric_exact"] for row in own]),
            plus_minus([row["flips"] for row in own]),
            f"{sum(row['verdict'] == 'ode' for row in own)} of {len(own)}",
        )
        for values, own in grouped(trained, keys).items()
    ]
    head = (
        ", ".join(keys),
        "test accuracy as trained",
        "under the exact flow",
        "flips against the exact flow",
        "verdict: ODE",
    )
    return "\n\n".join(part for part in (markdown(head, lines), samples_text(trained)) if part)


def samples_text(rows: Sequence[Row]) -> str:
    """The number of samples that were solved by the exact flow."""
    samples = sorted({row["samples"] for row in rows if row["flips"] is not None})
    if not samples:
        return ""
    if len(samples) == 1:
        return f"The exact flow is computed for the first {samples[0]} test samples."
    return (
        "The exact flow is computed for as many of the first test samples as `verdict_budget` "
        f"allows, {samples[0]} to {samples[-1]}; the accuracy as trained is that on all."
    )
