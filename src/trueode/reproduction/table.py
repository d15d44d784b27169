"""Table 1: grid search by our criterion, the paper's adaptation, ours, and the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import Any

from trueode.reproduction.claims import ALLOWED, loss_under_better
from trueode.reproduction.numbers import (
    Row,
    fraction,
    grouped,
    markdown,
    mean_and_deviation,
    percent,
    plus_minus,
    spread,
)

KEYS = ("grid", "grid accuracy", "adapted", "adapted accuracy")
PAPER = {
    "spheres": dict(zip(KEYS, ("65–129", "98.7 ± 1.0 %", "100.5", "98.9 ± 0.6 %"), strict=True)),
    "cifar10": dict(zip(KEYS, ("17–33", "54.7 ± 0.3 %", "21.9", "55.0 ± 0.8 %"), strict=True)),
}
HEAD = (
    "rule | evaluations per iteration, checks included | paper | of the final solver alone | "
    "test accuracy | paper | accuracy under the exact flow | flips against the exact flow | "
    "lost under a better solver | verdict: ODE"
)
ADAPTED = "adaptation of the paper"


def better_solver_losses(rows: Sequence[Row], by: str | None = None) -> list[Row]:
    """For each number of training steps, the largest loss of accuracy under solvers of higher order
    with the same step.

    Args:
        rows: of a sweep over ``step_size``.
        by: another column to group by.

    Returns:
        Rows with ``group``, ``step_size``, ``x`` (steps); ``mean``, ``std``, ``low``, ``high`` and
        ``n`` of the loss; the mean ``accuracy`` as trained, ``flips`` against the exact flow, and
        ``hashes``.
    """
    found = []
    keys = [*([by] if by else []), "step_size"]
    for values, group in grouped([row for row in rows if row["test_solver"]], keys).items():
        own, lost, flips, hashes = [], [], [], []
        for (run,), each in grouped(group, ("hash",)).items():
            trained = next(row for row in each if row["is_training"])
            better = [
                row["metric"] for row in each if row["factor"] == 1 and not row["is_training"]
            ]
            known = [value for value in better if value is not None]
            own.append(trained["metric"])
            lost.append(trained["metric"] - min(known) if known else nan)
            flips.append(trained["flips"])
            hashes.append(run)
        found.append(
            {
                "group": str(values[0]) if by else "",
                "step_size": values[-1],
                "x": 1 / values[-1],
                **spread(lost),
                "accuracy": spread(own)["mean"],
                "accuracy_std": spread(own)["std"],
                "flips": spread(flips)["mean"],
                "hashes": " ".join(hashes),
            }
        )
    return found


def table_1(rows: Sequence[Row], data: str) -> tuple[list[Row], str]:
    """The numbers of Table 1 and its text.

    Args:
        rows: of a sweep with the grids ``"grid search"``, ``ADAPTED`` and others.
        data: a key of ``PAPER``.
    """
    paper = PAPER[data]
    grid = sorted(
        better_solver_losses([row for row in rows if row["grid"] == "grid search"]),
        key=lambda row: row["x"],
    )
    passing = [k for k in range(len(grid)) if all(row["mean"] <= ALLOWED for row in grid[k:])]
    numbers: list[Row] = []
    lines: list[tuple[str, ...]] = []
    if grid:
        last = passing[0] if passing else len(grid) - 1
        chosen = grid[last]
        below = f"{grid[last - 1]['x']:g}–" if last else "≤ "
        bracket = f"{below}{chosen['x']:g}" if passing else f"> {chosen['x']:g}"
        group = [
            row
            for row in rows
            if row["grid"] == "grid search" and row["step_size"] == chosen["step_size"]
        ]
        numbers.append(_numbers("grid search", group, bracket))
        lines.append(
            _line(
                "grid search (our criterion)", group, bracket, paper["grid"], paper["grid accuracy"]
            )
        )
    for (name,), group in grouped(
        [row for row in rows if row["grid"] != "grid search"], ("grid",)
    ).items():
        nfe = mean_and_deviation([row["nfe_per_iteration"] for row in _trained(group)])
        theirs = (paper["adapted"], paper["adapted accuracy"]) if name == ADAPTED else ("–", "–")
        numbers.append(_numbers(name, group, nfe))
        lines.append(_line(name, group, nfe, *theirs))
    parts = [markdown(tuple(HEAD.split(" | ")), lines), _steps(grid), _comparison(numbers, paper)]
    return numbers, "\n\n".join(part for part in parts if part)


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["is_training"]]


def _lost(group: Sequence[Row]) -> list[float | None]:
    """The accuracy that each run loses under a better solver."""
    runs = grouped([row for row in group if row["test_solver"]], ("hash",)).values()
    return [loss_under_better(run) for run in runs if any(row["is_training"] for row in run)]


def _numbers(name: str, group: Sequence[Row], nfe: str) -> Row:
    own = _trained(group)
    found: dict[str, Any] = {
        "rule": name,
        "nfe": nfe,
        "lost_under_better": spread(_lost(group))["mean"],
    }
    for column in ("metric", "metric_exact", "flips", "nfe_per_iteration"):
        values = spread([row[column] for row in own])
        found |= {column: values["mean"], f"{column}_std": values["std"]}
    found["nfe_final_solver"] = spread([row["nfe"] for row in own])["mean"]
    return {**found, "runs": len(own), "hashes": " ".join(row["hash"] for row in own)}


def _line(
    name: str, group: Sequence[Row], nfe: str, paper_nfe: str, paper_accuracy: str
) -> tuple[str, ...]:
    own = _trained(group)
    accuracy, exact, flips = (
        plus_minus([row[column] for row in own]) for column in ("metric", "metric_exact", "flips")
    )
    certain = f"{sum(row['verdict'] == 'ode' for row in own)} of {len(own)}"
    final = f"{spread([row['nfe'] for row in own])['mean']:.1f}"
    return (
        name,
        nfe,
        paper_nfe,
        final,
        accuracy,
        paper_accuracy,
        exact,
        flips,
        plus_minus(_lost(group)),
        certain,
    )


def _steps(grid: Sequence[Row]) -> str:
    """The grid search step by step."""
    lines = [
        (
            fraction(row["step_size"]),
            f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f} %",
            f"{100 * row['mean']:.1f} %",
            "–" if isnan(row["flips"]) else f"{100 * row['flips']:.1f} %",
        )
        for row in grid
    ]
    head = (
        "training step",
        "test accuracy",
        "lost under a solver of higher order",
        "flips against the exact flow",
    )
    return f"The grid search:\n\n{markdown(head, lines)}" if lines else ""


def _comparison(numbers: Sequence[Row], paper: dict[str, str]) -> str:
    """Sentences that compare these numbers with the paper's."""
    said = []
    for row in numbers:
        if row["rule"] not in ("grid search", ADAPTED):
            continue
        nfe = "grid" if row["rule"] == "grid search" else "adapted"
        kind = f"{nfe} accuracy"
        centre, deviation = (float(part) for part in paper[kind].removesuffix(" %").split(" ± "))
        theirs = float(paper[nfe].split("–")[-1])  # the finer end of a bracket, which was trained
        own, width = 100 * row["metric"], 100 * row["metric_std"]
        verb = "agrees" if abs(own - centre) <= deviation + width else "does not agree"
        said.append(
            f"{row['rule'].capitalize()}: {row['nfe']} evaluations per iteration, "
            f"{row['nfe_per_iteration'] / theirs:.2f} times the paper's {paper[nfe]}; test "
            f"accuracy {own:.1f} ± {width:.1f} % {verb} with the paper's {paper[kind]} (within the "
            "sum of the standard deviations)"
        )
        if row["rule"] == ADAPTED:
            lost = row["lost_under_better"]
            finds = "finds" if lost <= ALLOWED else "does **not** find"
            said.append(
                f"By these numbers, the adaptation {finds} a step that is fine enough: its models "
                f"lose {percent(lost)} under a better solver, averaged over seeds "
                f"({percent(ALLOWED)} allowed)"
            )
    return ". ".join(said) + "." if said else ""
