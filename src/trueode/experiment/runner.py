"""A run from its options to its results: build, train, verdict, figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from typing import Any

from rich.console import Console

from trueode import distributed, gpus
from trueode.adaptation import Certifier
from trueode.build import Shape, build_run
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, SolveError
from trueode.evaluation import shown
from trueode.evaluation.solver_table import to_csv
from trueode.experiment.closing import draw, judge, where
from trueode.experiment.saved import fitting, read_stored, refuse_other_data, resumed, start
from trueode.interrupts import INTERRUPTED
from trueode.options import Options, dump_yaml
from trueode.precision import ieee
from trueode.runs import (
    History,
    RunDirectory,
    cut_history,
    load_latest,
    save_checkpoint,
    write_json,
    write_text,
)
from trueode.training import Hooks, Row, State, Trainer
from trueode.training.progress import Progress


@ieee()
def run(options: Options, given: frozenset[str] = frozenset()) -> int:
    """Train a model, and write its results to a run directory.

    Args:
        options: the options of the run.
        given: names of the options that the user gave. If ``name`` is not among them, another
            directory is used when NAME is taken.

    Returns:
        The exit code: 0, or 130 if the user interrupted.

    Raises:
        TrueodeError: the run failed; the message says why and what to do.
    """
    earlier = RunDirectory.open(options.output_dir, options.name) if options.resume else None
    if earlier is not None:
        options = resumed(options, given, earlier)
    ids = gpus.chosen(options.use_gpu, options.gpu_ids)
    if len(ids) > 1 and not distributed.launched():
        return distributed.launch(["-m", "trueode", "train", *options.flags(given)], len(ids))
    ranks, console = start(options)
    try:
        work = _lead if ranks.is_main else _follow
        return work(options, given, earlier, ranks, console)
    finally:
        ranks.close()


def _follow(
    options: Options,
    given: frozenset[str],
    earlier: RunDirectory | None,
    ranks: Ranks,
    console: Console,
) -> int:
    """Train on a rank other than the main one, which only computes."""
    _, trainer = build_run(options, ranks)
    if earlier is not None:
        _restore(trainer, earlier, console)
    return 0 if trainer.run() else INTERRUPTED


def _lead(
    options: Options,
    given: frozenset[str],
    earlier: RunDirectory | None,
    ranks: Ranks,
    console: Console,
) -> int:
    """Train on the main rank, which also writes, evaluates and prints."""
    place, name = options.output_dir, options.name
    if earlier is not None:
        directory = earlier
        directory.lock()
    else:
        directory = RunDirectory.create(
            place, name, explicit="name" in given, overwrite=options.overwrite
        )
    try:
        if directory.name != name:
            console.print(f"{place}/{name} exists: this run is called {directory.name}.")
            options = options.model_copy(update={"name": directory.name})
        return _train(options, directory, ranks, console)
    finally:
        directory.release()


def _train(options: Options, directory: RunDirectory, ranks: Ranks, console: Console) -> int:
    """Train, and report how the training ended."""
    begin = time.time()
    if options.use_tensorboard:
        from trueode.training.board import summary_writer

        summary_writer()  # check that it is installed, before anything is written
    shape, trainer = build_run(options, ranks)
    state = trainer.state
    if options.overwrite:  # only after everything that the options need was found
        directory.clear()
    directory.prepare()
    _restore(trainer, directory, console)
    _announce(options, directory, trainer, console)
    status = "failed"
    try:
        with _recorded(options, directory, shape, trainer, console):
            if state.iteration == 0:
                trainer.hooks.checkpoint(state)
            status = "finished" if trainer.run() else "interrupted"
    except (DivergenceError, SolveError) as failure:
        status = "diverged"
        kept = f"The last checkpoint before is kept in {directory.checkpoints}."
        failure.args = (f"Training stopped. {failure} {kept}",)
        raise
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        directory.update(
            status=status,
            iteration=state.iteration,
            evaluations=state.evaluations,
            nfe_per_iteration=state.evaluations / max(state.samples, 1),
            seconds=time.time() - begin,
        )
    if status == "interrupted":
        go_on = f"continue with: python train.py --resume true {where(options, directory)}"
        console.print(f"interrupted after iteration {state.iteration}; {go_on}")
        return INTERRUPTED
    ranks.close()
    _close(options, directory, shape, trainer, console, begin)
    return 0


def _restore(trainer: Trainer, directory: RunDirectory, console: Console) -> None:
    """Load the newest checkpoint of a directory, if there is one."""
    if directory.has_checkpoints:
        path, saved = load_latest(
            directory.checkpoints, lambda text: console.print(f"note: {text}")
        )
        with fitting(path, directory):
            shape = Shape(**saved["shape"])
        refuse_other_data(shape, trainer.dataset)
        with fitting(path, directory):
            trainer.state.load_state_dict(saved)


def _announce(
    options: Options, directory: RunDirectory, trainer: Trainer, console: Console
) -> None:
    """Describe the run on the console, in ``config.yaml`` and in ``run.json``."""
    state, unseen = trainer.state, trainer.checks.unseen
    if trainer.done:
        console.print(
            f"{directory.path} is finished ({state.iteration} iterations); a larger --niter "
            "continues it."
        )
    facts: dict[str, Any] = {
        "status": "running",
        "seed": options.random_seed,
        "iteration": state.iteration,
        **gpus.facts(trainer.ranks.device),
    }
    if directory.has_checkpoints and options.niter != (before := read_stored(directory).niter):
        facts["continued"] = (
            f"--niter was raised from {before} to {options.niter} at iteration {state.iteration}"
        )
    write_text(
        directory.place("config.yaml"),
        dump_yaml(options.model_copy(update={"resume": False, "overwrite": False})),
    )
    directory.start(facts)
    certifier = Certifier(options.fidelity, task=trainer.task)
    hopeless = None if unseen is None else certifier.refuse(unseen.size)
    if hopeless is not None:
        console.print(
            f"note: the run will end with: {hopeless.sentence}. A larger --held_out keeps more "
            "of them."
        )
    console.print(
        f"{options.dataset}, {options.network}, {state.solver}: {options.niter} iterations, "
        f"results in {directory.path}"
    )


@contextmanager
def _recorded(
    options: Options, directory: RunDirectory, shape: Shape, trainer: Trainer, console: Console
) -> Iterator[None]:
    """A block in which results of a trainer are written to its directory and shown."""
    metric, iteration = trainer.task.metric_name, trainer.state.iteration
    columns = _columns(options, metric)
    cut_history(directory.place("history.csv"), iteration)
    with ExitStack() as stack:
        history = stack.enter_context(History(directory.history, columns))
        progress = stack.enter_context(Progress(trainer.total, iteration, console))
        board = None
        if options.use_tensorboard:
            from trueode.training.board import Board

            board = stack.enter_context(Board(directory.place("tensorboard_logs"), iteration))

        def row(values: Row) -> None:
            directory.check()
            values = {name: value for name, value in values.items() if name in columns}
            history.append(values)
            texts = {"loss": f"{values['loss']:.4g}", metric: shown(metric, values[metric])}
            texts |= {"NFE": f"{values['nfe']:.4g}", "steps": f"{values['n_steps']:.4g}"}
            if f"test_{metric}" in values:
                texts[f"test {metric}"] = shown(metric, values[f"test_{metric}"])
            progress.update(int(values["iteration"]), texts, trainer.total)
            if board is not None:
                board.add(values)

        def checkpoint(state: State) -> None:
            history.sync()  # first, so a checkpoint is never ahead of the history
            directory.forget_audit()
            save_checkpoint(
                directory.place("checkpoints"),
                state.iteration,
                {**state.state_dict(), "shape": asdict(shape)},
            )

        @cache  # show each notice once
        def notice(text: str) -> None:
            console.print(f"note: {text}")

        trainer.hooks = Hooks(row, checkpoint, notice, progress.doing)
        yield


def _columns(options: Options, metric: str) -> list[str]:
    """The columns of the history, in their order."""
    adapts, auto = options.use_step_adaption_algo, options.solver == "auto"
    columns = ["iteration", "loss", metric, "test_loss", f"test_{metric}"]
    columns += [f"test_{metric}_reference"] if adapts else []
    columns += ["nfe", "nfe_backward", "nfe_total", "n_steps"]
    columns += ["tolerance"] if auto or not options.fixed_step else []
    columns += ["step_size"] if options.fixed_step else []
    columns += ["order"] if auto else []
    columns += ["signal", "target"] if adapts else []
    columns += ["penalty"] if options.penalty_weight else []
    return [*columns, "seconds"]


def _close(
    options: Options,
    directory: RunDirectory,
    shape: Shape,
    trainer: Trainer,
    console: Console,
    begin: float,
) -> None:
    """Write the verdict and figures of the trained model; ``begin`` is the start of the run."""
    state, model, dataset = trainer.state, trainer.state.model, trainer.dataset
    model.reduce, model.solver = None, state.solver
    found = judge(
        options,
        directory,
        model,
        shape,
        dataset.test,
        "test",
        state.evaluations,
        console,
        state.certificate,
    )
    provenance = {**found.provenance, "iteration": state.iteration}
    write_json(directory.place("audit.json"), {**found.to_dict(), "provenance": provenance})
    if len(found.rows) > 1:
        write_text(directory.place("solver_swap.csv"), to_csv(found.rows))
    draw(directory, model, shape, dataset, found)
    directory.update(
        verdict=found.verdict,
        sentence=found.sentence,
        solver=str(state.solver),
        seconds=time.time() - begin,
    )
    if options.report:
        from trueode.experiment.page import write_page

        with console.status("report"):
            path = write_page(directory, found, dataset.classes)
        console.print(f"report: {path}")
    console.print(f"results: {directory.path}")
