"""Reproduce a figure by name: do its runs, and write its picture, numbers and caption."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trueode import figures
from trueode.console import open_console
from trueode.data import identity
from trueode.options import canonical
from trueode.precision import ieee
from trueode.reproduction.plans import plan_of
from trueode.reproduction.recipe import Context, Made
from trueode.reproduction.recipes import RECIPES
from trueode.reproduction.scale import differences, images_in, told_scale
from trueode.runs import write_text
from trueode.sweeps import Plan, SweepDirectory, make_plan, rows_of, run_sweep
from trueode.sweeps.bar import shown_time
from trueode.sweeps.table import to_csv

FORMS = ("png", "pdf", "svg")


def planned(name: str, scale: str, overrides: Mapping[str, Any], directory: SweepDirectory) -> Plan:
    """The runs of a figure or table.

    Raises:
        TrueodeError: an override is not allowed, or data is missing.
    """
    flags = canonical(overrides, "the flags")
    plan = plan_of(name, scale, flags.pop("niter", None))
    return make_plan(plan, flags, directory.fingerprints)


@ieee()
def reproduce(
    name: str,
    scale: str = "small",
    *,
    output_dir: str | Path = "experiments/reproduction",
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    report: bool = False,
    console: Console | None = None,
) -> int:
    """Do the runs of a figure or table of the paper, and write it to
    ``OUTPUT_DIR/results/NAME-SCALE.*``.

    All figures and tables share the runs in ``OUTPUT_DIR``: a run that several need is done once.

    Args:
        name: a key of `trueode.reproduction.plans.PAPER`.
        scale: ``"small"`` or ``"paper"``.
        output_dir: folder of runs and results.
        overrides: options that replace those of the plan.
        workers: see `run_sweep`.
        scheduler: see `run_sweep`.
        report: whether to write ``results/NAME-SCALE.html`` as well, a page to look at.
        console: where progress is shown.

    Returns:
        0; 1 if runs have failed, so results are missing; 130 if the user interrupted.

    Raises:
        TrueodeError: data is missing, or an override is not allowed.
    """
    console = console or open_console()
    overrides = dict(overrides or {})
    directory = SweepDirectory(output_dir)
    plan = planned(name, scale, overrides, directory)
    begin, code = time.time(), 0
    new = sum(directory.state(run) != "finished" for run in plan.runs)
    if RECIPES[name].trains:
        code = run_sweep(plan, directory, workers=workers, scheduler=scheduler, console=console)
    if code == 130:
        return code
    context = Context(plan, directory, rows_of(directory, plan))
    if RECIPES[name].trains and not any(row["test_solver"] for row in context.rows):
        console.print(f"{name}: no run is finished, there is nothing to show")
        return 1
    made = RECIPES[name].make(context)
    paths = _write(
        name,
        scale,
        context,
        made,
        overrides,
        f"{new} of them were done by this call, in {shown_time(time.time() - begin)}",
    )
    console.print(f"{name}: {', '.join(map(str, paths))}")
    if report:
        from trueode.reproduction.page import write_page

        stem = directory.path / "results" / plan.name
        console.print(f"report: {write_page(stem)}")
    return code


def _write(
    name: str, scale: str, context: Context, made: Made, overrides: Mapping[str, Any], took: str
) -> list[Path]:
    plan, directory = context.plan, context.directory
    stem = directory.path / "results" / plan.name
    options = plan.runs[0].options
    data = identity(options.dataset, options.data_dir, cache=directory.fingerprints)
    foot = (
        told_scale(plan, scale, images_in(data))
        if RECIPES[name].trains
        else "computed as in the paper; nothing is trained"
    )
    paths = []
    if made.figure is not None:
        figures.footer(made.figure, f"{name}; {foot}")
        paths += [
            figures.save(made.figure, stem.with_name(f"{plan.name}.{form}")) for form in FORMS
        ]
    table = stem.with_name(f"{plan.name}.csv")
    write_text(table, to_csv(list(made.numbers)))
    caption = stem.with_name(f"{plan.name}.md")
    write_text(caption, _caption(name, scale, context, made, overrides, foot, took))
    return [*paths, table, caption]


def _caption(
    name: str,
    scale: str,
    context: Context,
    made: Made,
    overrides: Mapping[str, Any],
    foot: str,
    took: str,
) -> str:
    """The title, scale, differences from the paper, findings and command."""
    recipe, plan = RECIPES[name], context.plan
    shown = {key: "DIR" if key == "data_dir" else value for key, value in overrides.items()}
    flags = [word for key, value in shown.items() for word in (f"--{key}", *_words(value))]
    command = shlex.join(["trueode", "reproduce", name, "--scale", scale, *flags])
    parts = [f"**{recipe.title}.**"]
    if recipe.trains:
        paper = make_plan(plan_of(name, "paper"), identify=lambda *_, **__: {})
        differs = differences(plan, paper)
        missing = len(plan.runs) - len({row["hash"] for row in context.rows if row["test_solver"]})
        parts.append(
            f"{foot[0].upper()}{foot[1:]}. Lines, points and ± are means and spreads over the "
            "seeds."
        )
        parts.append(
            f"Differences from the paper: {'; '.join(differs)}."
            if differs
            else "As published, except where this caption says otherwise."
        )
        if missing:
            parts.append(
                f"**{missing} of {len(plan.runs)} runs are missing**: they have failed or are not "
                "finished."
            )
    if recipe.silent:
        parts.append(f"Choices of ours where the paper is silent: {'; '.join(recipe.silent)}.")
    if made.text:
        parts.append(made.text)
    parts.append(f"Command: `{command}`")
    if recipe.trains:
        spent = {row["hash"]: row["seconds"] for row in context.rows if row["seconds"]}
        runs = f"{len(plan.runs)} run{'s' if len(plan.runs) > 1 else ''}"
        parts.append(
            f"{runs}, {shown_time(sum(spent.values()))} of work on one core; {took}. Each row of "
            "the numbers names the hashes of its runs, with which the names of their directories "
            "end."
        )
    return "\n\n".join(parts) + "\n"


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value).lower() if value is None or isinstance(value, bool) else str(value)]
