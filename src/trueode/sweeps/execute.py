"""Carry out a plan: what is finished stays, what was interrupted goes on, what fails is tried once
more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from trueode.console import open_console
from trueode.errors import UsageError, WorkersLostError
from trueode.interrupts import INTERRUPTED, interrupts
from trueode.options import Options
from trueode.solvers import get_tableau
from trueode.sweeps.bar import Bar
from trueode.sweeps.directory import SweepDirectory, done_share, finished, last_lines
from trueode.sweeps.jobs import Job, Result, Workers
from trueode.sweeps.local import LocalWorkers, cores
from trueode.sweeps.plan import Plan, PlannedRun
from trueode.sweeps.table import write_table

PULSE = 0.5  # seconds between looks at the running runs
ITERATION = 20  # field evaluations that everything else in an iteration costs about as much as
ADAPTED = 50  # guess of the evaluations of an iteration whose solver is not fixed


def run_sweep(
    plan: Plan,
    directory: SweepDirectory,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    console: Console | None = None,
) -> int:
    """Do all runs of a plan that are not finished yet, and write its table.

    Args:
        plan: the runs.
        directory: where they go, and where earlier ones are.
        workers: processes on this machine; None: one for each core.
        scheduler: address of a Dask scheduler whose workers do the runs instead.
        console: where progress is shown.

    Returns:
        0 when all runs are in the table, or 1 when runs have failed or are missing, or 130 when the
        user interrupted.

    Raises:
        UsageError: another sweep works in the directory, or the scheduler cannot be reached.
        RunDamagedError: the directory was removed or replaced.
    """
    console = console or open_console()
    with directory:
        todo = [run for run in plan.runs if directory.state(run) != "finished"]
        # the longest first: the last ones to end are short, and no worker waits long for another
        todo.sort(key=lambda run: -weight(run.options))
        told = f"{plan.name}: {len(plan.runs)} runs"
        console.print(
            told
            + (
                f", {len(plan.runs) - len(todo)} of them finished before"
                if len(todo) < len(plan.runs)
                else ""
            )
        )
        session = _Session(plan, directory, todo, console)
        code = 0
        pool = _workers(workers, scheduler, len(todo), directory) if todo else None
        try:
            directory.keep(plan)  # not before there is somebody to carry it out
            if pool is not None:
                with interrupts() as interrupted:
                    code = session.carry_out(pool, interrupted)
        except WorkersLostError as failure:
            console.print(str(failure), markup=False)
            code = 1
        finally:
            if pool is not None:
                pool.close()
        path = write_table(directory, plan)
        console.print(f"table: {path}")
        missing = [
            run.name for run in plan.runs if directory.state(run) not in ("finished", "failed")
        ]
        if missing and code != INTERRUPTED:
            console.print(
                f"{len(missing)} of {len(plan.runs)} runs are not in the table; the same command goes on with them:\n"
                + "\n".join(missing),
                markup=False,
            )
            code = 1
        return code


def _workers(
    count: int | None, scheduler: str | None, jobs: int, directory: SweepDirectory
) -> Workers:
    if scheduler is None:
        return LocalWorkers(min(count or cores(), jobs))
    try:
        from trueode.sweeps.cluster import ClusterWorkers
    except ImportError:
        raise UsageError(
            '--scheduler needs dask.distributed: pip install "trueode[cluster]".'
        ) from None
    return ClusterWorkers(scheduler, directory)


@dataclass
class _Session:
    """One call of `run_sweep`."""

    plan: Plan
    directory: SweepDirectory
    todo: list[PlannedRun]
    console: Console
    failed: list[PlannedRun] = field(default_factory=list)

    def carry_out(self, pool: Workers, interrupted: Callable[[], bool]) -> int:
        """Do what is to do; see `run_sweep`."""
        runs = {run.hash: run for run in self.todo}
        tries = dict.fromkeys(runs, 0)
        begin = {
            key: done_share(self.directory.place(run), run.options.niter)
            for key, run in runs.items()
        }
        with Bar(
            self.console, {key: weight(run.options) for key, run in runs.items()}, begin
        ) as bar:
            for run in self.todo:
                pool.submit(self._job(run))
            left = set(runs)
            stopping = False
            while left:
                result = pool.next(PULSE)
                self.directory.check()
                if interrupted() and not stopping:
                    stopping = True
                    self.console.print("interrupted: waiting for checkpoints")
                    pool.interrupt()
                if result is not None:
                    run = runs[result.hash]
                    result = self._believed(run, result, stopping)
                    if result.status == "failed" and not tries[run.hash] and not stopping:
                        tries[run.hash] += 1
                        self.console.print(
                            f"{run.name} failed and is tried once more. {result.message}",
                            markup=False,
                        )
                        pool.submit(self._job(run))
                    else:
                        left.discard(result.hash)
                        self._end(run, result, bar)
                elif stopping:
                    left = {key for key in left if self.directory.state(runs[key]) == "running"}
                elif bar.visible:
                    bar.look(
                        {
                            key: done_share(
                                self.directory.place(runs[key]), runs[key].options.niter
                            )
                            for key in left
                        }
                    )
        if stopping:
            self.console.print("interrupted; the same command goes on")
            return INTERRUPTED
        for run in self.failed:
            path = self.directory.log(run)
            self.console.print(
                f"\n{run.name} has failed twice; the end of {path}:\n{last_lines(path)}",
                markup=False,
            )
        if self.failed:
            self.console.print(f"\n{len(self.failed)} of {len(self.plan.runs)} runs have failed")
        return 1 if self.failed else 0

    def _believed(self, run: PlannedRun, result: Result, stopping: bool) -> Result:
        """What a worker has answered, where it can be true; else a failure."""
        if result.status == "finished" and not finished(self.directory.place(run)):
            why = "It is said to be finished, and its directory has no audit.json that can be read."
            return replace(result, status="failed", message=why)
        if result.status == "interrupted" and not stopping:
            return replace(
                result, status="failed", message="It was interrupted, and the sweep was not."
            )
        return result

    def _end(self, run: PlannedRun, result: Result, bar: Bar) -> None:
        if result.status == "finished":
            self.directory.remember_failure(run, None)
        elif result.status == "failed":
            self.failed.append(run)
            self.directory.remember_failure(run, result.message or "failed")
        if result.status != "interrupted":
            bar.ended(run.hash, f"{run.name}: {result.status}")

    def _job(self, run: PlannedRun) -> Job:
        place = self.directory.place(run)
        values: dict[str, Any] = run.options.model_dump(mode="json")
        values |= {"name": place.name, "output_dir": str(self.directory.runs)}
        values["torch_threads"] = run.options.torch_threads or 1
        return Job(run.hash, values, str(self.directory.log(run)))


def weight(options: Options) -> float:
    """About how many field evaluations a run costs for each sample: for the order of runs and the
    time that is left.
    """
    evaluations = float(ADAPTED)
    if options.fixed_step and not options.use_step_adaption_algo:
        length = options.t_end or 1.0
        evaluations = (
            max(length / options.training_step(length), 1.0)
            * get_tableau(options.method).advancing_stages
        )
    return options.niter * (evaluations + ITERATION)
