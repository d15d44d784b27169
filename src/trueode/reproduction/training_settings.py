"""Figures over the training step or tolerance: Figure 4 and critical step sizes."""

from __future__ import annotations

from collections.abc import Callable

from trueode import figures
from trueode.reproduction.claims import ALLOWED, swap_claims
from trueode.reproduction.exact_flow import flips_text
from trueode.reproduction.numbers import Row, fraction, grouped, markdown, percent, swap_points
from trueode.reproduction.recipe import Context, Made
from trueode.reproduction.table import better_solver_losses


def steps_figure(title: str) -> Callable[[Context], Made]:
    """Figure 4 for training step sizes."""

    def make(context: Context) -> Made:
        points = swap_points(context.rows, lambda row: f"h = {fraction(row['step_size'])}")
        figure = figures.swap_sweep({title: points}, legend="trained with")
        text = (
            f"{flips_text(context.rows, 'step_size')}\n\n{swap_claims(context.rows, 'step_size')}"
        )
        return Made(figure, points, text)

    return make


def tolerances_figure(title: str) -> Callable[[Context], Made]:
    """Figure 4 for training tolerances."""

    def make(context: Context) -> Made:
        by_solver = grouped(context.rows, [key for key in ("solver",) if key in context.rows[0]])
        several = len(by_solver) > 1
        panels = {}
        text = [flips_text(context.rows, *(["solver"] if several else []), "tol")]
        for solver, own in by_solver.items():
            name = f"Trained with {solver[0]}" if several else title
            panels[name] = swap_points(own, lambda row: f"tol = {row['tol']:g}", tolerance=True)
            claims = swap_claims(own, "tol")
            text.append(f"{name}. {claims}" if several else claims)
        figure = figures.swap_sweep(panels, kind="adaptive", legend="trained with")
        numbers = [{"panel": name, **point} for name, points in panels.items() for point in points]
        return Made(figure, numbers, "\n\n".join(text))

    return make


def critical(by: str, name: str = "training steps") -> Callable[[Context], Made]:
    """Accuracy lost under a better solver, and the coarsest step at which it is small enough."""

    def make(context: Context) -> Made:
        losses = better_solver_losses(context.rows, by)
        groups: dict[str, list[Row]] = {}
        for point in losses:
            groups.setdefault(point["group"], []).append(point)
        table = []
        for label, points in groups.items():
            ordered = sorted(points, key=lambda point: point["x"])
            passing = [
                k
                for k, point in enumerate(ordered)
                if all(later["mean"] <= ALLOWED for later in ordered[k:])
            ]
            at = ordered[passing[0]] if passing else ordered[-1]
            first = f"{'' if passing else 'finer than '}{fraction(at['step_size'])}"
            ends = (
                f"{fraction(point['step_size'])}: {percent(point['accuracy'])}"
                for point in (ordered[0], ordered[-1])
            )
            there = (at["accuracy"], at["mean"], at["flips"])
            table.append((label, first, *map(percent, there), ", ".join(ends)))
        head = (
            by,
            "critical step",
            "test accuracy there",
            "lost under the better solver",
            "flips against the exact flow",
            "test accuracy with the coarsest and the finest step",
        )
        text = (
            "The critical step is the coarsest training step from which on solvers of higher order "
            f"with the same step lose at most {100 * ALLOWED:g} % test accuracy, averaged over "
            f"seeds (our criterion):\n\n{markdown(head, table)}"
        )
        return Made(figures.critical_steps(groups, ALLOWED, name=name), losses, text)

    return make
