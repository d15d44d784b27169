"""What an audit found: in words, as plain values, as a table, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueode.auditing.convergence import Order, Safe, pareto
from trueode.auditing.preconditions import Precondition
from trueode.auditing.reasons import Paths, Reasons
from trueode.auditing.reference import Reference, description
from trueode.auditing.swaps import Row
from trueode.errors import UsageError
from trueode.evaluation import percent, shown
from trueode.evaluation.decision import Decision
from trueode.runs.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
FIGURES = ("swap", "order", "cost", "trajectories")
EXIT_CODES = {"ode": 0, "solver-dependent": 3, "inconclusive": 4}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Whether a model is an ODE, with the evidence.

    Attributes:
        verdict: ``"ode"``, ``"solver-dependent"`` or ``"inconclusive"``.
        sentence: the verdict in words.
        margin: share of flips that is allowed.
        decision: what the flips say.
        solver: the training solver in words.
        task: what is learned.
        metric_name: accuracy, mse, or the name of one's own.
        metric: mean under the training solver; NaN without targets. Shown; never decides.
        metric_exact: mean under the exact flow.
        chance: the metric of the best constant prediction; NaN where there is none.
        p_value: of the exact McNemar test that the accuracy is the same under both; NaN where there is no accuracy.
        preconditions: what must hold.
        reference: how the exact flow was found; None where the preconditions left nothing to compare.
        rows: the swap grid, the training solver first.
        orders: observed orders.
        safe: the coarsest safe setting of each method that has one, the cheapest first.
        reasons: what explains the verdict; None where there is no reference.
        notes: what a reader should know beside the verdict.
        provenance: what was audited, with what.
        paths: trajectories of two-dimensional states, for the figure.
    """

    verdict: str
    sentence: str = ""
    margin: float
    decision: Decision
    solver: str
    task: str
    metric_name: str
    metric: float = nan
    metric_exact: float = nan
    chance: float = nan
    p_value: float = nan
    preconditions: tuple[Precondition, ...]
    reference: Reference | None = None
    rows: tuple[Row, ...] = ()
    orders: tuple[Order, ...] = ()
    safe: tuple[Safe, ...] = ()
    reasons: Reasons | None = None
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any]
    paths: Paths | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 for an ODE, 3 for a model that depends on its solver, 4 where that was not decided."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain values, as in ``audit.json``; docs/audit.md describes them."""
        reference, decision = self.reference, self.decision
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "margin": self.margin,
            "n": decision.n,
            "flips": decision.flips,
            "flips_lower": decision.lower,
            "flips_upper": decision.upper,
            "samples_needed": decision.needed,
            "solver": self.solver,
            "task": self.task,
            "metric_name": self.metric_name,
            "metric": self.metric,
            "metric_exact": self.metric_exact,
            "chance": self.chance,
            "p_value": self.p_value,
            "preconditions": [vars(each) for each in self.preconditions],
            "reference": None
            if reference is None
            else {
                "description": description(reference),
                "n_steps": reference.n_steps,
                "tolerance": reference.tolerance,
                "disagreeing": reference.disagreeing,
                "floor": reference.floor,
                "double": reference.double,
                "evaluations": reference.evaluations,
            },
            "rows": [row.to_dict() for row in self.rows],
            "orders": [order.to_dict() for order in self.orders],
            "safe": [safe.to_dict() for safe in self.safe],
            "pareto": [
                {"method": row.method, "setting": row.setting, "nfe": row.nfe, "output_error": row.output_error}
                for row in pareto(self.rows)
            ],
            "reasons": None if self.reasons is None else self.reasons.to_dict(),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text; what is not a finite number is null."""
        return json.dumps(_finite(self.to_dict()), indent=2) + "\n"

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``audit.json`` and the figures into a folder.

        Raises:
            UsageError: there is an audit already, and it may not be overwritten.
        """
        folder = Path(folder)
        path = folder / "audit.json"
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already: choose another folder, or overwrite it on purpose.")
        write_text(path, self.to_json())
        from trueode import figures

        drawn = self.figures()
        for name in FIGURES:
            place = folder / f"audit_{name}.png"
            if name in drawn:
                figures.save(drawn[name], place)
            else:
                place.unlink(missing_ok=True)  # of the audit that was here
        return path

    def figures(self) -> dict[str, Any]:
        """The figures, by name: ``swap``, ``order``, ``cost`` and, for two-dimensional states, ``trajectories``."""
        from trueode import figures

        if not self.rows:
            return {}
        rows = [row.to_dict() for row in self.rows]
        n = self.decision.n
        drawn = {
            "swap": figures.audit_swap(rows, n, self.metric_name, self.metric_exact, self.solver),
            "order": figures.audit_order(rows, [order.to_dict() for order in self.orders]),
            "cost": figures.audit_cost(rows, self.margin, [safe.to_dict() for safe in self.safe]),
        }
        if self.paths is not None:
            paths = self.paths
            drawn["trajectories"] = figures.audit_trajectories(
                paths.own.numpy(),
                paths.exact.numpy(),
                paths.predictions.numpy(),
                paths.predictions_exact.numpy(),
                self.solver,
            )
        return drawn

    def to_rich(self) -> Table:
        """The swap grid as a table for the terminal."""
        from rich import box
        from rich.table import Table

        caption = "" if self.reference is None else f"flips: against {description(self.reference)}"
        table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
        for column in ("solver", "steps", "NFE", self.metric_name, "loss", "error", "changed", "flips", "at most"):
            table.add_column(column, justify="left" if column == "solver" else "right")
        n = self.decision.n
        for row in self.rows:
            style = "bold" if row.is_training else None
            name = row.solver + (" (training)" if row.is_training else "")
            if row.status != "success":
                table.add_row(name, f"{row.n_steps:.4g}", f"{row.nfe:.4g}", row.status, *[""] * 5, style=style)
                continue
            table.add_row(
                name,
                f"{row.n_steps:.4g}",
                f"{row.nfe:.4g}",
                _shown(self.metric_name, row.metric),
                _shown("loss", row.loss),
                f"{row.output_error:.2g}",
                percent(row.changed / n),
                percent(row.flips / n),
                percent(row.upper),
                style=style,
            )
        return table

    def lines(self) -> list[str]:
        """The verdict, its reasons and the recommendation, a sentence each."""
        found = [self.sentence, *self.notes]
        if self.reasons is not None:
            found += self.reasons.texts
        return found


def _shown(name: str, value: float) -> str:
    return shown(name, value) if isfinite(value) else "-"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return value
