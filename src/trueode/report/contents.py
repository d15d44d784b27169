"""The contents of a page: charts, tables and facts as plain values, from saved results."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trueode.evaluation import Row
from trueode.evaluation.wording import shown, spoken
from trueode.files import plain

POINTS = 400  # most points of a line
STILLS = 350_000  # bytes of all pictures
Contents = dict[str, Any]

LABELS = {
    "trajectories": "trajectories of samples through the ODE block",
    "regions": "output of the ODE block over the regions of the classifier",
    "density": "densities under the training solver and under the exact flow",
    "time_series": "predicted and true time series",
    "solver_swap": "the metric under other solvers",
    "swap": "the metric under other solvers",
    "order": "errors of solvers by their steps",
    "cost": "predictions that flip by the cost of a solver",
    "loss": "loss during training",
    "accuracy": "accuracy during training",
    "mse": "mean squared error during training",
    "effort": "field evaluations during training",
    "adaptation": "the course of the adaptation",
}
"""What pictures show, by the end of their name."""
LASTING = ("density", "solver_swap", "swap", "order", "cost")
"""The pictures of which nothing in a page moves."""


def page(
    kind: str, title: str, subtitle: str = "", sentence: str = "", status: str = "none"
) -> Contents:
    """The contents of a page with an answer and nothing else."""
    return {
        "kind": kind,
        "title": title,
        "subtitle": subtitle,
        "answer": {"sentence": sentence, "status": status},
        "slider": None,
        "charts": [],
        "tables": [],
        "facts": [],
        "runs": None,
        "stills": [],
    }


def judged(
    kind: str, title: str, subtitle: str, found: Mapping[str, Any], rows: Iterable[Row] = ()
) -> Contents:
    """The contents that follow from ``audit.json``: answer, solvers, their cost, and what an audit
    cannot see.

    Args:
        kind: ``"run"`` or ``"audit"``.
        title: of the page.
        subtitle: of the page.
        found: the content of ``audit.json``.
        rows: further rows of the table of solvers; those of the audit replace equal ones.
    """
    made = page(kind, title, subtitle, found["sentence"], found["verdict"])
    table = {row["solver"]: row for row in plain([row.to_dict() for row in rows])}
    table |= {row["solver"]: row for row in found["rows"] if "solver" in row}
    shown_rows = sorted(table.values(), key=lambda row: not row["is_training"])
    if shown_rows:
        made["tables"].append(solvers(shown_rows, found["performance"]["name"]))
        made["charts"] += _by_cost(shown_rows, found["performance"]["name"])
    made["facts"] = [
        fact("Cheapest safe solver", [_cheapest(found, shown_rows)]),
        fact("Why", (found.get("reasons") or {}).get("texts") or []),
        fact("Notes", found.get("notes") or []),
        fact("What the audit cannot see", unseen(found)),
    ]
    made["facts"] = [each for each in made["facts"] if each["items"]]
    return made


def fact(title: str, items: Sequence[str], code: str | None = None) -> Contents:
    """A list of sentences, and text that stays as it is."""
    return {"title": title, "items": list(items), "code": code}


def missing(what: str, how: str) -> Contents:
    """The fact that something is missing, and the command that makes it."""
    return fact("What is missing", [what, "To get it:"], how)


def table(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = ""
) -> Contents:
    """A table. A column is numeric if it holds numbers alone."""
    cells = [[_cell(value) for value in row] for row in plain([list(row) for row in rows])]
    numeric = [
        all(isinstance(row[k], int | float | None) for row in cells) and bool(cells)
        for k in range(len(columns))
    ]
    heads = zip(columns, numeric, strict=True)
    return {
        "id": name,
        "title": title,
        "columns": [{"label": label, "numeric": number} for label, number in heads],
        "rows": [{"cells": row, "marked": False} for row in cells],
        "note": note,
    }


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return float(f"{value:.12g}") if isinstance(value, float) else value


def solvers(rows: Sequence[Mapping[str, Any]], metric: str) -> Contents:
    """The table of solvers, from rows of ``audit.json``."""
    columns = {
        "solver": "solver",
        "steps": "n_steps",
        "NFE": "nfe",
        spoken(metric): "metric",
        "loss": "loss",
        "changed": "changed",
        "flips": "flips",
        "at most": "upper",
    }
    if any(row.get("change") is not None for row in rows):
        columns["change"] = "change"
    if any(row.get("sliced") is not None for row in rows):
        columns["sliced"] = "sliced"
    found = table(
        "solvers",
        "Solvers",
        [*columns, "safe"],
        [[*(row.get(key) for key in columns.values()), bool(row.get("safe"))] for row in rows],
        "Changed: share of predictions unlike those of the training solver. Flips: share unlike "
        "those of the exact flow; at most: its upper bound, with 95 % confidence. Safe: with this "
        "solver, by these samples, the answer would be an ODE. The training solver is marked.",
    )
    for row, made in zip(rows, found["rows"], strict=True):
        made["marked"] = bool(row["is_training"])
    return found


def chart(
    name: str,
    title: str,
    x: tuple[str, Sequence[Any]],
    lines: Mapping[str, Sequence[Any]],
    y: str,
    *,
    log: bool = False,
    log_x: bool = False,
    right: Sequence[str] = (),
) -> Contents:
    """A chart of lines over common values.

    Args:
        name: of the chart.
        title: of the chart.
        x: label and values of the horizontal axis.
        lines: values of each line, by its label.
        y: label of the vertical axis.
        log: whether it is logarithmic.
        log_x: whether the horizontal one is.
        right: the lines that have an axis of their own, on the right.
    """
    step = max(1, -(-len(x[1]) // POINTS))
    kept = sorted({*range(0, len(x[1]), step), len(x[1]) - 1}) if len(x[1]) else []
    ends = {
        label: known for label, values in lines.items() if (known := [v for v in values if v == v])
    }
    told = "; ".join(f"{label} from {v[0]:.3g} to {v[-1]:.3g}" for label, v in ends.items())
    found: Contents = plain({
        "id": name,
        "title": title,
        "x": {"label": x[0], "log": log_x, "values": [x[1][k] for k in kept]},
        "lines": [
            {
                "label": label,
                "values": [_rounded(values[k]) for k in kept],
                "axis": int(label in right),
            }
            for label, values in lines.items()
            if label in ends
        ],
        "y": {"label": y, "log": log},
        "alt": f"{title}, over {x[0]}: {told}.",
    })  # fmt: skip
    return found


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def training(history: Mapping[str, Sequence[float]], metric: str) -> list[Contents]:
    """The charts of ``history.csv``: loss, metric, effort, and the course of an adaptation."""
    x = "iteration", history.get("iteration", [])
    wanted: list[tuple[str, str, dict[str, str], bool]] = [
        ("loss", "Loss", {"loss": "training", "test_loss": "test"}, True),
        (
            "metric",
            spoken(metric).capitalize(),
            {
                metric: "training",
                f"test_{metric}": "test",
                f"test_{metric}_reference": "test, finer solver",
            },
            metric != "accuracy",
        ),
        ("effort", "Effort", {"nfe": "NFE, forward", "nfe_backward": "NFE, backward"}, True),
        ("steps", "Steps", {"n_steps": "steps", "tolerance": "tolerance"}, True),
        (
            "adaptation",
            "Adaptation",
            {"signal": "difference from a finer solver", "target": "target"},
            True,
        ),
    ]
    found = []
    for name, title, columns, log in wanted:
        lines = {
            label: history[key]
            for key, label in columns.items()
            if any(v == v and v for v in history.get(key, []))
        }
        varies = any(len({v for v in values if v == v}) > 1 for values in lines.values())
        if varies or (lines and name != "steps"):
            positive = all(v > 0 for values in lines.values() for v in values if v == v)
            found.append(
                chart(name, title, x, lines, title, log=log and positive, right=["tolerance"])
            )
    return found


def _by_cost(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Contents]:
    """The metric and the flips of the training method's rows, by their cost."""
    method = next((row["method"] for row in rows if row["is_training"]), None)
    own = [row for row in rows if row["method"] == method and row["nfe"]]
    own.sort(key=lambda row: float(row["nfe"]))
    if len(own) < 2:
        return []
    nan = float("nan")
    columns = {
        label: [nan if row.get(key) is None else row[key] for row in own]
        for key, label in (("metric", spoken(metric)), ("flips", "flips"), ("changed", "changed"))
    }
    x = "field evaluations of a sample", [row["nfe"] for row in own]
    other = [] if metric == "accuracy" else [spoken(metric)]
    title = f"{method} from coarse to fine"
    return [chart("cost", title, x, columns, "share", log_x=True, right=other)]


def _cheapest(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    safe = found.get("safe") or sorted(
        (row for row in rows if row.get("safe")), key=lambda row: float(row["nfe"])
    )
    if not safe:
        return (
            "None of the solvers tried is safe, that is, has the answer ode. `trueode audit` tries "
            "five methods, each with up to hundreds of steps."
        )
    best = safe[0]
    score = "" if best["metric"] is None else (
        f" and {spoken(found['performance']['name'])} "
        f"{shown(found['performance']['name'], best['metric'])}"
    )  # fmt: skip
    status = (found.get("certificate") or {}).get("status", "ode")
    alone = "" if status == "ode" else " By these samples alone: the model is not certified."
    return f"{best['solver']}, with {best['nfe']:.4g} field evaluations for a sample{score}.{alone}"


def unseen(found: Mapping[str, Any]) -> list[str]:
    """What an audit cannot see, in sentences."""
    exact, items = found.get("exact_flow"), list[str]()
    items.append(
        f"It looked at {found['n']} samples. Inputs unlike these may depend on the solver all the "
        "same."
    )
    if found.get("unresolved"):
        items.append(
            f"{found['unresolved']} of them have no exact flow, or no solution"
            f"{': ' + found['trouble'] if found.get('trouble') else ''}."
        )
    if exact is None:
        items.append("There is no exact flow to compare with.")
    elif exact.get("description"):
        items.append(f"The exact flow is {exact['description']}.")
        if exact.get("width") is not None:
            items.append(
                f"Features of the field in time that are narrower than {exact['width']:.2g} of the "
                "interval may be missed."
            )
    items += [
        f"{each['text']}" for each in found.get("preconditions", []) if not each.get("holds", True)
    ]
    items.append(
        "It judges the solver alone: not the data, not the model's accuracy, and not whether "
        "dynamics that were learned are those of the system that was measured."
    )
    return items


def stills(paths: Iterable[Path], moving: bool = False) -> tuple[list[Contents], list[str]]:
    """PNG files as data URIs, up to 350 kB, and the names of those left out.

    Args:
        paths: the files.
        moving: whether the page has a slider and charts, which replace their pictures where a
            script may run.
    """
    made, left, room = list[Contents](), list[str](), STILLS
    for path in paths:
        content = path.read_bytes()
        if len(content) > room:
            left.append(str(path))
            continue
        room -= len(content)
        name = path.stem.removeprefix("audit_")
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        alt = LABELS.get(name, f"{name} during training")
        made.append({"alt": alt, "src": source, "fallback": moving and name not in LASTING})
    return made, left


def made_by(
    info: Mapping[str, Any], found: Mapping[str, Any], command: str, options: str = ""
) -> Contents:
    """The fact how a result was made: command, versions, machine, hash of the weights, options."""
    origin = found.get("provenance") or {}
    versions = {**origin.get("versions", {}), **info.get("versions", {})}
    items = [f"Command: {command}"] if command else []
    items += [f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}"] if versions else []
    facts = {
        "Commit": info.get("git_commit"),
        "Started": info.get("started"),
        "Seconds": None if info.get("seconds") is None else f"{info['seconds']:.4g}",
        "Seed": info.get("seed", origin.get("seed")),
        "Device": origin.get("device"),
        "Parameters": origin.get("parameters"),
        "SHA-256 of the weights": origin.get("weights"),
    }
    items += [f"{name}: {value}" for name, value in facts.items() if value is not None]
    return fact("How it was made", items, options or None)
