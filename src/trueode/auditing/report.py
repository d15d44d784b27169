"""The report of an audit: in words, as plain values, as a table, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueode.auditing.convergence import Order, pareto
from trueode.auditing.density import DensityChecks
from trueode.auditing.gradient import GradientChange
from trueode.auditing.preconditions import Precondition
from trueode.auditing.reasons import Paths, Reasons
from trueode.errors import UsageError
from trueode.evaluation import Decision, Evaluation, ExactFlow, Performance, Row, Status, sentence
from trueode.evaluation.runnable import Runnable
from trueode.evaluation.solver_table import to_rich
from trueode.evaluation.wording import sampler_sentence
from trueode.files import plain, write_text
from trueode.runs.audits import SCHEMA

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("swap", "order", "cost", "trajectories")
EXIT_CODES = {Status.ODE: 0, Status.SOLVER_DEPENDENT: 3, Status.INCONCLUSIVE: 4}
COLOURS = {Status.ODE: "green", Status.SOLVER_DEPENDENT: "red", Status.INCONCLUSIVE: "yellow"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Audit:
    """Whether a model is an ODE, with the evidence.

    Attributes:
        decision: the verdict on the predictions.
        performance: whether the metric depends on the solver.
        own: results under the training solver.
        exact: results under the exact flow; None if a violated precondition leaves nothing to
            compare.
        task: name of the task.
        what: how the sentence calls the metric; ``{}`` stands for its name.
        chance: the metric of the best constant prediction; NaN if there is none.
        preconditions: the conditions for a verdict.
        rows: the table of solvers, the training solver first.
        orders: the observed orders of the methods.
        safe: the coarsest safe row of each method that has one, the cheapest first.
        reasons: the explanation of the verdict; None in an audit without a table.
        gradient: how the gradient of the loss changes; None without ``loss=``.
        density: mass, forth and back, and noise of a density; None for other tasks, and in an audit
            without a table.
        notes: what a reader should know beside the verdict.
        provenance: the model, its weights, solver and versions.
        certificate: the certificate of the training run, as plain values; if present, its answer
            replaces that of the audit.
        paths: trajectories of two-dimensional states, for the figure.
        subject: what was audited, for the page of `save`; None if it is not at hand.
    """

    decision: Decision
    performance: Performance
    own: Evaluation
    exact: ExactFlow | None = None
    task: str
    what: str = "{}"
    chance: float = nan
    preconditions: tuple[Precondition, ...]
    rows: tuple[Row, ...] = ()
    orders: tuple[Order, ...] = ()
    safe: tuple[Row, ...] = ()
    reasons: Reasons | None = None
    gradient: GradientChange | None = None
    density: DensityChecks | None = None
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any]
    certificate: Mapping[str, Any] | None = None
    paths: Paths | None = None
    subject: Runnable | None = field(default=None, compare=False)

    @property
    def status(self) -> Status:
        """The verdict, of the certificate if there is one."""
        return (
            self.decision.status if self.certificate is None else Status(self.certificate["status"])
        )

    @property
    def verdict(self) -> str:
        """The verdict in a word: ``"ode"``, ``"solver-dependent"`` or ``"inconclusive"``."""
        return self.status.value

    @property
    def sentence(self) -> str:
        """The verdict in a sentence. If there is a certificate, its sentence, followed by the
        number of samples that change.
        """
        if self.task == "sampler":
            own = self.rows[0] if self.rows else None
            return sampler_sentence(self.decision, own, next(iter(self.safe), None))
        if self.certificate is None:
            best = next((str(row.solver) for row in self.safe if not row.is_training), "")
            return sentence(self.decision, self.performance, self.solver, self.what, best)
        counts = self.decision.counts
        if counts.mean is not None:
            return (
                f"{self.certificate['sentence']}. For {counts.mean.n} test samples it is "
                f"{counts.mean.told(counts.mean.estimate)}"
            )
        return (
            f"{self.certificate['sentence']}. "
            f"Of {counts.n} test predictions {counts.changed} change"
        )

    def __str__(self) -> str:
        """The verdict, and a line for each note."""
        return "\n* ".join(self.lines(everything=False))

    def __repr__(self) -> str:
        return f"<Audit: {self.sentence}>"

    @property
    def colour(self) -> str:
        """The colour of the verdict in a terminal."""
        return COLOURS[self.status]

    @property
    def n(self) -> int:
        """Number of samples that count."""
        return self.decision.counts.n

    @property
    def flips(self) -> int:
        """Number of predictions that the exact flow changes, including blow-ups."""
        return self.decision.counts.changed

    @property
    def state_error(self) -> float:
        """RMS error of the final states relative to their spread, or of the outputs if the states
        are unknown; NaN without an exact flow.
        """
        if not self.rows:
            return nan
        row = self.rows[0]
        return row.state_error if row.state_error == row.state_error else row.output_error

    @property
    def solver(self) -> str:
        """The training solver in words."""
        return str(self.own.solver)

    @property
    def metric_name(self) -> str:
        """Name of the metric: accuracy, mse, or that of your own metric."""
        return self.performance.name

    @property
    def metric(self) -> float:
        """Mean of the metric under the training solver; NaN without targets."""
        return self.performance.own

    @property
    def metric_exact(self) -> float:
        """Mean of the metric under the exact flow."""
        return self.performance.exact

    @property
    def reference(self) -> ExactFlow | None:
        """The exact flow."""
        return self.exact

    @property
    def exit_code(self) -> int:
        """0 for an ODE, 3 for a model that depends on its solver, 4 if undecided."""
        return EXIT_CODES[self.status]

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain values, as in ``audit.json``; numbers that are not finite become None.
        docs/audit-reference.md describes the fields.
        """
        exact, decision, counts = self.exact, self.decision, self.decision.counts
        found: dict[str, Any] = plain({
            "schema": SCHEMA,
            "verdict": self.verdict,
            "sentence": self.sentence,
            **counts.to_dict(),
            **{
                key: value
                for key, value in decision.to_dict().items()
                if key not in ("status", "counts")
            },
            "solver": self.solver,
            "task": self.task,
            "performance": self.performance,
            "chance": self.chance,
            "preconditions": self.preconditions,
            "exact_flow": None
            if exact is None
            else {
                "description": str(exact),
                "n_steps": exact.n_steps,
                "tolerance": exact.tolerance,
                "floor": exact.floor,
                "double": exact.double,
                "width": exact.width,
            },
            "trajectory": counts.trajectory,
            "rows": [row.to_dict() for row in self.rows],
            "orders": self.orders,
            "safe": [row.to_dict() for row in self.safe],
            "pareto": [row.to_dict() for row in pareto(self.rows)],
            "reasons": self.reasons,
            "gradient": self.gradient,
            "density": self.density,
            "notes": self.notes,
            "certificate": self.certificate,
            "provenance": self.provenance,
        })  # fmt: skip
        return found

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, folder: str | Path, *, overwrite: bool = False, report: bool = False) -> Path:
        """Write ``audit.json`` and the figures into a folder.

        Args:
            folder: where to.
            overwrite: whether an audit in that folder may be replaced.
            report: whether to write ``report.html`` as well, a page whose slider shows the model
                under solvers from coarse to fine. It runs the model again.

        Raises:
            UsageError: the folder holds an audit (or a page, if there is to be one) already, and
                ``overwrite`` is False.
        """
        folder = Path(folder)
        path = folder / "audit.json"
        taken = in_the_way(folder, report)
        if taken is not None and not overwrite:
            raise UsageError(
                f"{taken} exists already: choose another folder, or pass overwrite=True."
            )
        replaced = path.exists()
        write_text(path, self.to_json())
        from trueode import figures

        drawn = self.figures()
        for name in FIGURES:
            place = folder / f"audit_{name}.png"
            if name in drawn:
                figures.save(drawn[name], place)
            elif replaced:
                place.unlink(missing_ok=True)
        if report:
            from trueode.auditing.page import write_page

            write_page(folder, self)
        elif replaced:
            (folder / "report.html").unlink(missing_ok=True)
        return path

    def figures(self) -> dict[str, Any]:
        """Draw the figures ``swap``, ``order``, ``cost`` and, for two-dimensional states,
        ``trajectories``; none if there is nothing to compare.
        """
        from trueode import figures

        sampler = self.task == "sampler"
        if not any(isfinite(row.sliced) or not sampler for row in self.rows):
            return {}
        rows = [row.to_dict() for row in self.rows]
        found = self.decision.counts.discrepancy
        drawn = {
            "swap": figures.solver_swap(
                rows,
                self.solver,
                name=self.metric_name,
                exact=self.metric_exact if found is None else found.floor,
            ),
            "order": figures.audit_order(rows, plain(self.orders)),
            "cost": figures.audit_cost(
                rows, self.decision.margin, [row.to_dict() for row in self.safe]
            ),
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

    def to_rich(self, *, everything: bool = True) -> Table:
        """The table of solvers for the terminal: all rows, or with ``everything=False`` the
        training solver, the cheapest safe one and the Pareto front.
        """
        rows = self.rows
        if not everything:
            kept = [*self.safe[:1], *pareto(self.rows)]
            rows = tuple(
                row for row in (*self.rows, *self.safe[:1]) if row.is_training or row in kept
            )
            rows = tuple(dict.fromkeys(rows))
        caption = "" if self.exact is None else f"Exact flow: {self.exact}."
        return to_rich(rows, self.metric_name, caption)

    def lines(self, *, everything: bool = True) -> list[str]:
        """The verdict, the notes, and with ``everything`` the reasons, each as a sentence."""
        found = [self.sentence, *self.notes]
        if self.reasons is not None and everything:
            found += self.reasons.texts
        return found


def in_the_way(folder: Path, report: bool) -> Path | None:
    """A file of a folder that saving an audit there, with its page or not, would replace."""
    places = (folder / name for name in ("audit.json", *(["report.html"] if report else [])))
    return next(filter(Path.exists, places), None)
