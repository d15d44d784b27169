"""Carry out a plan: skip finished runs, continue interrupted ones, and repeat failed ones once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from trueode import gpus
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

PULSE = 0.5  # seconds between checks of the running runs
ITERATION = 20  # approximate cost of the rest of an iteration, in field evaluations
ADAPTED = 50  # assumed evaluations of an iteration if the number of steps is not fixed


def run_sweep(
    plan: Plan,
    directory: SweepDirectory,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    console: Console | None = None,
) -> int:
    """Do all unfinished runs of a plan, and write its table.

    Args:
        plan: the runs.
        directory: of these runs, and of earlier ones.
        workers: number of processes on this machine; None: one for each core, or for each GPU if
            the runs use GPUs.
        scheduler: address of a Dask scheduler whose workers do the runs instead.
        console: where progress is shown.

    Returns:
        0 if all runs are in the table, 1 if runs have failed or are missing, 130 if the user
        interrupted.

    Raises:
        UsageError: another sweep works in the directory, the scheduler cannot be reached, or there
            is no GPU for runs that use one.
        RunDamagedError: the directory was removed or replaced.
    """
    console = console or open_console()
    with directory:
        todo = [run for run in plan.runs if directory.state(run) != "finished"]
        # the longest first: workers then end at about the same time
        todo.sort(key=lambda run: -weight(run.options))
        before = len(plan.runs) - len(todo)
        earlier = f", {before} of them finished before" if before else ""
        console.print(f"{plan.name}: {len(plan.runs)} runs{earlier}")
        session = _Session(plan, directory, todo, console)
        code = 0
        pool = _workers(workers, scheduler, todo, directory) if todo else None
        try:
            directory.keep(plan)  # only after the workers were found
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
                f"{len(missing)} of {len(plan.runs)} runs are not in the table; the same command "
                "continues with them:\n" + "\n".join(missing),
                markup=False,
            )
            code = 1
        return code


def _workers(
    count: int | None, scheduler: str | None, todo: list[PlannedRun], directory: SweepDirectory
) -> Workers:
    if scheduler is None:
        ids = {run.options.gpu_ids for run in todo if run.options.use_gpu}
        for each in ids:
            gpus.chosen(True, each)
        # a plan that names GPUs shares them out itself
        shared = gpus.names() if ids == {Options.model_fields["gpu_ids"].default} else []
        usual = len(shared) or (1 if ids else cores())
        return LocalWorkers(min(count or usual, len(todo)), shared)
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
        """Do the unfinished runs; see `run_sweep`."""
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
            self.console.print("interrupted; the same command continues the sweep")
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
        """The answer of a worker, or a failure if the answer cannot be true."""
        if result.status == "finished" and not finished(self.directory.place(run)):
            why = "Its worker says that it is finished, but its audit.json cannot be read."
            return replace(result, status="failed", message=why)
        if result.status == "interrupted" and not stopping:
            return replace(
                result, status="failed", message="It was interrupted, but the sweep was not."
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
        values |= {"name": place.name, "output_dir": str(self.directory.runs), "report": False}
        values["torch_threads"] = run.options.torch_threads or 1
        return Job(run.hash, values, str(self.directory.log(run)))


def weight(options: Options) -> float:
    """Approximate cost of a run in field evaluations per sample, for the order of runs and the
    remaining time.
    """
    evaluations = float(ADAPTED)
    if options.fixed_step and not options.use_step_adaption_algo:
        length = options.t_end or 1.0
        evaluations = (
            max(length / options.training_step(length), 1.0)
            * get_tableau(options.method).advancing_stages
        )
    return options.niter * (evaluations + ITERATION)
