"""Estimate the field evaluations and time of a plan from a few iterations of each kind of run."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trueode.build import build_run
from trueode.catalog import METHODS
from trueode.console import open_console
from trueode.distributed import Ranks
from trueode.errors import TrueodeError, told
from trueode.evaluation import evaluate
from trueode.options import Options
from trueode.solvers import get_tableau
from trueode.sweeps.bar import shown_time
from trueode.sweeps.directory import SweepDirectory, done_share
from trueode.sweeps.execute import weight
from trueode.sweeps.local import cores
from trueode.sweeps.plan import Plan
from trueode.training import Schedule

ITERATIONS = 20
WARM = 5  # iterations before the measurement: the first ones allocate memory
MEASURED = 1e5  # evaluations of a measurement: fewer iterations are measured if each needs many
CLOSING = 1.0  # seconds for figures and files
NEVER = 10**9  # iterations
ALONE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Cost:
    """The cost of a whole run: field evaluations per sample of a batch, over all iterations, and
    seconds on one core.
    """

    evaluations: float
    seconds: float


def estimate(options: Options) -> Cost:
    """Measure a few iterations and one evaluation of a run, and store nothing.

    If an adaptation changes the solver later, the real run is cheaper or more expensive.

    Raises:
        TrueodeError: the run is impossible.
    """
    with tempfile.TemporaryDirectory() as scratch:
        share = min(1.0, MEASURED / (weight(options) / options.niter * ITERATIONS))
        warm, iterations = (max(1, int(share * count)) for count in (WARM, ITERATIONS))
        place: dict[str, Any] = {
            "niter": warm + iterations,
            "output_dir": scratch,
            "evaluate_test_acc": False,
        }
        few = options.model_copy(update=place)
        _, trainer = build_run(few, ALONE)
        state = trainer.state
        # the usual schedule would certify the model at the end
        trainer.schedule = Schedule(NEVER, NEVER, None, options.adaption_interval, NEVER)
        trainer.run(warm)
        begin, before, seen = time.perf_counter(), state.evaluations, state.samples
        trainer.run(iterations)
        iteration = (time.perf_counter() - begin) / iterations
        nfe = (state.evaluations - before) / (state.samples - seen)
        begin = time.perf_counter()
        tested = evaluate(state.model, trainer.dataset.test.first(256), trainer.task, state.solver)
        # seconds for one field evaluation of one sample
        each = (time.perf_counter() - begin) / (tested.n * tested.nfe)
    samples = len(trainer.dataset.test)
    tests = options.niter // options.eval_interval if options.evaluate_test_acc else 0
    others = _swaps(options, tested.nfe) if options.evaluate_with_dif_solver else 0.0
    budget = options.verdict_budget * nfe * options.niter * options.batch_size / max(samples, 1)
    exact = min(budget, 4 * 32 * 7 * max(1.0, nfe / 32))
    after = each * samples * (tested.nfe * (tests + 1) + others + 2 * exact)  # in double precision
    return Cost(nfe * options.niter, iteration * options.niter + after + CLOSING)


def _swaps(options: Options, nfe: float) -> float:
    """Field evaluations per sample of all other solvers."""
    steps = nfe / get_tableau(options.method).advancing_stages
    fixed = [name for name in options.test_solver_list if METHODS[name].kind == "fixed"]
    total = sum(
        steps / factor * get_tableau(name).advancing_stages
        for name in fixed
        for factor in options.test_factor_list
    )
    return total + nfe * len(options.test_factor_list) * (
        len(options.test_solver_list) - len(fixed)
    )


def print_estimate(
    plan: Plan,
    directory: SweepDirectory,
    workers: int | None = None,
    console: Console | None = None,
) -> int:
    """Print the state and the estimated cost of each run, and the sum. Nothing is stored.

    Returns:
        0, or 1 if a run is impossible.
    """
    console = console or open_console()
    if not console.is_terminal:
        console.width = 140
    torch.set_num_threads(1)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for column in ("state", "evaluations", "time"):
        table.add_column(column, justify="right")
    known: dict[str, Cost] = {}
    evaluations = seconds = longest = 0.0
    impossible, warm = 0, False
    with console.status("measuring"):
        for run in plan.runs:
            state = directory.state(run)
            if state == "finished":
                table.add_row(run.name, state, "", "")
                continue
            kind = _kind(run.options)
            try:
                if not warm:  # leave out what happens only once
                    estimate(run.options)
                    warm = True
                cost = (
                    known[kind] if kind in known else known.setdefault(kind, estimate(run.options))
                )
            # torch raises RuntimeError if there is not enough memory
            except (TrueodeError, MemoryError, RuntimeError) as failure:
                impossible += 1
                why = failure if isinstance(failure, TrueodeError) else told(failure)
                table.add_row(run.name, f"impossible: {escape(str(why))}", "", "")
                continue
            left = 1 - done_share(directory.place(run), run.options.niter)
            table.add_row(
                run.name, state, f"{left * cost.evaluations:.3g}", shown_time(left * cost.seconds)
            )
            evaluations += left * cost.evaluations
            seconds += left * cost.seconds
            longest = max(longest, left * cost.seconds)
    console.print(table)
    count = workers or cores()
    console.print(
        f"{len(plan.runs)} runs: {evaluations:.3g} field evaluations (for each sample of a batch), "
        f"{shown_time(seconds)} on one core, about {shown_time(max(seconds / count, longest))} on "
        f"{count}"
    )
    return 1 if impossible else 0


def _kind(options: Options) -> str:
    """A key of the cost: runs that differ only in their seed cost the same."""
    return json.dumps(
        options.model_dump(mode="json", exclude={"random_seed", "name", "output_dir"}),
        sort_keys=True,
    )
