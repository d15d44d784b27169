"""Read the verdict of a run from ``audit.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, TypeAdapter

from trueode.errors import RunNotFoundError, UsageError, told

SCHEMA = 2
"""Version of ``audit.json``; docs/audit-reference.md describes its fields."""


@dataclass(frozen=True)
class _Row:
    method: str
    kind: str
    setting: float | None
    n_steps: float | None
    nfe: float | None
    metric: float | None
    loss: float | None
    changed: float | None
    is_training: bool
    status: str
    factors: list[float]


@dataclass(frozen=True)
class _Performance:
    name: str
    own: float | None
    exact: float | None


@dataclass(frozen=True)
class _Judged:
    """The part of an audit that other modules read, with its types."""

    verdict: str
    n: PositiveInt
    flips: int
    blown_up: int
    solver: str
    performance: _Performance
    exact_flow: dict[str, Any] | None
    rows: list[_Row]


_JUDGED = TypeAdapter(_Judged)


def read_audit(run: Path) -> dict[str, Any]:
    """``audit.json`` of a run. One from before schema 2 is converted, as far as sweeps need it.

    Raises:
        RunNotFoundError: the file is missing or damaged.
        UsageError: the file has the schema of a later version.
    """
    try:
        found = json.loads((run / "audit.json").read_text(encoding="utf-8"))
        if "schema" not in found:
            found = _brought_up(found, run)
        if found["schema"] == SCHEMA:
            _JUDGED.validate_json(json.dumps(found), strict=True)
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise RunNotFoundError(
            f"{run / 'audit.json'} cannot be read ({told(failure)}). Repeat the end of the run: "
            f"python train.py --resume true --output_dir {run.parent} --name {run.name}."
        ) from None
    raise UsageError(
        f"{run / 'audit.json'} has the schema {found['schema']}, but this version of trueode reads "
        f"{SCHEMA}: use the version that wrote it."
    )


def _brought_up(old: dict[str, Any], run: Path) -> dict[str, Any]:
    """Convert a verdict from before schema 2."""
    checked = old["n_steps_exact"] > 0
    swapped = run / "solver_swap.json"
    rows = json.loads(swapped.read_text(encoding="utf-8"))["rows"] if swapped.exists() else []
    for row in rows:
        setting = row["tol"] if row["kind"] == "adaptive" else row["n_steps"]
        row |= {"method": row["solver"], "changed": row.pop("flips"), "setting": setting}
        row["metric"] = row.get(old["metric_name"])
    known = {key: old[key] for key in ("sentence", "n", "flips", "lower", "upper", "solver")}
    return known | {
        "schema": SCHEMA,
        "verdict": "inconclusive" if old["status"] == "not checked" else old["status"],
        "blown_up": 0,
        "unresolved": 0,
        "performance": {
            "name": old["metric_name"],
            "own": old["metric"],
            "exact": old["metric_exact"],
        },
        "exact_flow": {"n_steps": old["n_steps_exact"]} if checked else None,
        "rows": rows,
    }
