"""The verdict of a run: ``audit.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trueode.errors import RunNotFoundError

SCHEMA = 2
"""Version of ``audit.json``; docs/audit.md describes its fields."""


def read_audit(run: Path) -> dict[str, Any]:
    """``audit.json`` of a run; one written by a version before schema 2 is brought into its form, as far as sweeps need it.

    Raises:
        RunNotFoundError: the file is missing or cannot be read, or a later version wrote it.
    """
    try:
        found = json.loads((run / "audit.json").read_text(encoding="utf-8"))
        if "schema" not in found:
            found = _brought_up(found, run)
        if found["schema"] == SCHEMA:
            return dict(found)
        reason = f"it has the schema {found['schema']}, this version of trueode reads {SCHEMA}"
    except (OSError, ValueError, KeyError, TypeError) as failure:
        reason = f"{type(failure).__name__}: {failure}"
    raise RunNotFoundError(
        f"{run / 'audit.json'} cannot be read ({reason}). The version that wrote it can, or repeat the run: python train.py "
        f"--resume true --output_dir {run.parent} --name {run.name}."
    )


def _brought_up(old: dict[str, Any], run: Path) -> dict[str, Any]:
    """The closing verdict as it was written before audits and runs had one form."""
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
        "performance": {"name": old["metric_name"], "own": old["metric"], "exact": old["metric_exact"]},
        "exact_flow": {"n_steps": old["n_steps_exact"]} if checked else None,
        "rows": rows,
    }
