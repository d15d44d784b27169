"""A run from its options to its results: build, train, verdict, figures."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rich.console import Console

from trueode import distributed
from trueode.adaptation import Certifier
from trueode.build import Parts, Shape, build_run
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, SolveError
from trueode.evaluation import shown
from trueode.evaluation.solver_table import to_csv
from trueode.experiment.closing import draw, judge, where
from trueode.experiment.saved import refuse_other_start, resumed, start
from trueode.options import Options, dump_yaml, make_options, read_file
from trueode.runs import History, RunDirectory, cut_history, load_latest, save_checkpoint, write_json, write_text
from trueode.training import Hooks, Outcome, Row, State, train
from trueode.training.progress import Progress
from trueode.training.threads import spared


def run(options: Options, given: frozenset[str] = frozenset()) -> int:
    """Train a model as the options say; its results go to a run directory.

    Args:
        options: the options.
        given: names of the options that the user gave; only a given ``name`` insists on its directory.

    Returns:
        The exit code: 0, or 130 when the user interrupted.

    Raises:
        TrueodeError: the message says what happened and what to do.
    """
    gpus = distributed.check_gpus(options.use_gpu, options.gpu_ids)
    if len(gpus) > 1 and not distributed.launched():
        return distributed.launch(["-m", "trueode", "train", *options.flags(given)], len(gpus))
    ranks, console = start(options)
    directory = None
    try:
        if options.resume:
            directory = RunDirectory.open(options.output_dir, options.name)
            if ranks.is_main:
                directory.lock()
            options = resumed(options, given, directory)
        elif ranks.is_main:
            directory = RunDirectory.create(
                options.output_dir, options.name, explicit="name" in given, overwrite=options.overwrite
            )
            if directory.name != options.name:
                console.print(f"{options.output_dir}/{options.name} exists: this run is called {directory.name}.")
                options = options.model_copy(update={"name": directory.name})
        return _train(options, directory, ranks, console)
    finally:
        ranks.close()
        if directory is not None:
            directory.release()


def _train(options: Options, directory: RunDirectory | None, ranks: Ranks, console: Console) -> int:
    """Train on this rank; the main rank writes, evaluates and speaks."""
    begin = time.time()
    parts = build_run(options, ranks)
    shape, dataset, task, state = parts.shape, parts.dataset, parts.task, parts.state
    model = state.model
    if directory is not None and options.overwrite:  # not before all that the options ask for is there
        directory.clear()
    resuming = directory is not None and any(directory.checkpoints.glob("*.pt"))
    if directory is not None and resuming:
        _, saved = load_latest(directory.checkpoints, lambda text: console.print(f"note: {text}"))
        state.load_state_dict(saved)
        refuse_other_start(Shape(**saved["shape"]), dataset)
        if state.iteration >= options.niter + state.extra:
            console.print(f"{directory.path} is finished ({state.iteration} iterations); --niter makes it longer.")
    if ranks.world_size > 1:
        model.reduce = ranks.sum
    if not ranks.is_main:
        silent = Hooks(lambda row: None, lambda state: None, lambda text: None)
        return _code(_run_loop(parts, ranks, silent))

    assert directory is not None
    _describe(options, directory, state, resuming)
    if parts.checks.unseen is not None:
        hopeless = Certifier(options.fidelity).refuse(parts.checks.unseen.size)
        if hopeless is not None:
            console.print(
                f"note: in the end it will be said: {hopeless.sentence}. A larger --held_out keeps more of them."
            )
    console.print(
        f"{options.dataset}, {options.network}, {state.solver}: {options.niter} iterations, results in {directory.path}"
    )
    status = "failed"
    try:
        with ExitStack() as stack:
            hooks = _hooks(options, directory, task.metric_name, shape, state, console, stack)
            if state.iteration == 0:
                hooks.checkpoint(state)
            outcome = _run_loop(parts, ranks, hooks)
            status = outcome.status
    except (DivergenceError, SolveError) as failure:
        status = "diverged"
        kept = f"The last checkpoint from before is kept in {directory.checkpoints}."
        message = f"Training stopped. {failure} {kept}"
        if isinstance(failure, SolveError):
            raise SolveError(message, failure.status) from None
        raise DivergenceError(message) from None
    except KeyboardInterrupt:
        status, outcome = "interrupted", Outcome("interrupted")
    finally:
        directory.update(
            status=status,
            iteration=state.iteration,
            evaluations=state.evaluations,
            nfe_per_iteration=state.evaluations / max(state.samples, 1),
            seconds=time.time() - begin,
        )
    if outcome.status == "interrupted":
        console.print(
            f"interrupted after iteration {state.iteration}; go on with: python train.py --resume true "
            f"{where(options, directory)}"
        )
        return _code(outcome)
    ranks.close()
    model.reduce, model.solver = None, state.solver
    found = judge(
        options, directory, model, shape, dataset.test, "test", state.evaluations, console, state.certificate
    )  # fmt: skip
    write_json(directory.path / "audit.json", {"iteration": state.iteration, **found.to_dict()})
    if len(found.rows) > 1:
        write_text(directory.path / "solver_swap.csv", to_csv(found.rows))
    draw(directory, model, shape, dataset, found)
    directory.update(
        verdict=found.verdict, sentence=found.sentence, solver=str(state.solver), seconds=time.time() - begin
    )
    console.print(f"results: {directory.path}")
    return 0


def _run_loop(parts: Parts, ranks: Ranks, hooks: Hooks) -> Outcome:
    with spared(parts.state.model, parts.batches.batch_size, parts.shape.sample):
        return train(
            parts.state,
            parts.dataset,
            parts.task,
            parts.batches,
            parts.schedule,
            ranks,
            hooks,
            parts.checks,
            parts.field,
        )


def _code(outcome: Outcome) -> int:
    return 130 if outcome.status == "interrupted" else 0


def _describe(options: Options, directory: RunDirectory, state: State, resuming: bool) -> None:
    """Write what runs: ``config.yaml`` and ``run.json``."""
    facts: dict[str, Any] = {"status": "running", "seed": options.random_seed, "iteration": state.iteration}
    if resuming:
        before = make_options(read_file(directory.config)).niter
        if options.niter != before:
            facts["continued"] = f"--niter was raised from {before} to {options.niter} at iteration {state.iteration}"
    again = options.model_copy(update={"resume": False, "overwrite": False})
    write_text(directory.config, dump_yaml(again))
    directory.start(facts)


def _hooks(
    options: Options,
    directory: RunDirectory,
    metric: str,
    shape: Shape,
    state: State,
    console: Console,
    stack: ExitStack,
) -> Hooks:
    """Where the main rank's results go."""
    columns = ["iteration", "loss", metric, "test_loss", f"test_{metric}"]
    columns += [f"test_{metric}_reference"] if state.rule is not None else []
    columns += ["nfe", "nfe_backward", "nfe_total", "n_steps"]
    columns += ["tolerance"] if options.solver == "auto" or not options.fixed_step else []
    columns += ["step_size"] if options.fixed_step else []
    columns += ["order"] if options.solver == "auto" else []
    columns += ["signal", "target"] if state.rule is not None else []
    columns += ["seconds"]
    cut_history(directory.history, state.iteration)
    history = stack.enter_context(History(directory.history, columns))
    progress = stack.enter_context(Progress(options.niter + state.extra, state.iteration, console))
    board = None
    if options.use_tensorboard:
        from trueode.training.board import Board

        board = stack.enter_context(Board(directory.tensorboard_logs, state.iteration))
    told: set[str] = set()

    def row(values: Row) -> None:
        values = {name: value for name, value in values.items() if name in columns}
        history.append(values)
        known = {name: value for name, value in values.items() if value is not None}
        texts = {"loss": f"{known['loss']:.4g}", metric: shown(metric, known[metric])}
        texts |= {"NFE": f"{known['nfe']:.4g}", "steps": f"{known['n_steps']:.4g}"}
        if f"test_{metric}" in known:
            texts[f"test {metric}"] = shown(metric, known[f"test_{metric}"])
        progress.update(int(known["iteration"]), texts, options.niter + state.extra)
        if board is not None:
            board.add(values)

    def checkpoint(current: State) -> None:
        history.flush()  # rows first: a checkpoint never knows more than the history
        directory.forget_audit()
        save_checkpoint(directory.checkpoints, current.iteration, {**current.state_dict(), "shape": asdict(shape)})

    def notice(text: str) -> None:
        if text not in told:
            told.add(text)
            console.print(f"note: {text}")

    return Hooks(row, checkpoint, notice, progress.doing)
