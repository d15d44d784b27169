"""A run from its options to its results: build, train, verdict, figures. The one place that composes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from trueode import distributed
from trueode.build import Shape, build_batches, build_data, build_model, build_optimizer, build_rule, shape_of
from trueode.data import Dataset
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, OptionError, SolveError
from trueode.evaluation import (
    SwapTable,
    Verdict,
    evaluate,
    get_task,
    phase_portrait,
    series_portrait,
    shown,
    swap_table,
    verdict,
)
from trueode.models import NeuralODE
from trueode.options import Options, dump_yaml, make_options, read_file
from trueode.runs import (
    History,
    RunDirectory,
    cut_history,
    load_latest,
    read_history,
    save_checkpoint,
    write_json,
    write_text,
)
from trueode.solvers import Adaptive
from trueode.training import Hooks, Outcome, Row, Schedule, State, restored, train
from trueode.training.progress import Progress

if TYPE_CHECKING:
    from trueode.data import Split
    from trueode.data.folder import FolderSplit

PLACES = frozenset({"name", "output_dir", "data_dir", "phase", "split", "resume", "overwrite"})
DEVICES = frozenset({"use_gpu", "gpu_ids", "num_threads", "torch_threads"})
LOGGING = frozenset({"log_interval", "model_checkpoint_freq", "use_tensorboard"})
EVALUATION = frozenset({"evaluate_with_dif_solver", "test_solver_list", "test_factor_list", "verdict_budget"})


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
        return distributed.launch(["-m", "trueode", "train", *sys.argv[1:]], len(gpus))
    ranks, console = _start(options)
    try:
        directory = None
        if options.resume:
            directory = RunDirectory.open(options.output_dir, options.name)
            options = _resumed(options, given, directory)
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


def infer(options: Options, given: frozenset[str] = frozenset()) -> int:
    """Evaluate a saved run on ``options.split``, with other solvers if asked to, and tell whether it is an ODE.

    The results are printed and saved as ``evaluation_SPLIT.json``; nothing else of the run is touched.

    Raises:
        TrueodeError: there is no such run, or it cannot be evaluated as asked.
    """
    ranks, console = _start(options)
    directory = RunDirectory.open(options.output_dir, options.name)
    stored = make_options(read_file(directory.config))
    _refuse_changes(options, stored, given - PLACES - DEVICES - LOGGING - EVALUATION - {"niter"}, "evaluating")
    anew = {name: getattr(options, name) for name in given & (EVALUATION | {"data_dir"})}
    stored = stored.model_copy(update={"evaluate_with_dif_solver": False, **anew})
    model, shape, saved = _open(stored, directory, console)
    model.to(ranks.device)
    dataset = build_data(stored)
    split = dataset.train if options.split == "train" else dataset.test
    task = get_task(shape.task)
    found = evaluate(model, split, task)
    console.print(
        f"{directory.path} after {saved['iteration']} iterations, {options.split} data ({found.n} samples), "
        f"{model.solver}: loss {found.loss:.4g}, {task.metric_name} {shown(task.metric_name, found.metric)}, "
        f"NFE {found.nfe:.4g}"
    )
    table, judged = _judge(stored, directory, model, shape, split, options.split, saved["evaluations"], console)
    result = {"iteration": saved["iteration"], "n": found.n, "loss": found.loss, task.metric_name: found.metric}
    result |= {"nfe": found.nfe, "n_steps": found.n_steps, "verdict": judged.to_dict()}
    if table is not None:
        result["solver_swap"] = table.to_dict()
    path = directory.path / f"evaluation_{options.split}.json"
    write_json(path, result)
    console.print(f"results: {path}")
    return 0


def load(run_dir: str | Path) -> tuple[NeuralODE, Options]:
    """Load the model of a run, with the solver that its training ended with, and the run's options.

    The data is not needed; no code is executed.

    Args:
        run_dir: ``OUTPUT_DIR/NAME``.

    Raises:
        RunNotFoundError: there is no run.
        CheckpointError: none of its checkpoints is usable.
    """
    path = Path(run_dir)
    directory = RunDirectory.open(str(path.parent), path.name)
    options = make_options(read_file(directory.config))
    model, _, _ = _open(options, directory, Console(stderr=True))
    return model.eval(), options


def _start(options: Options) -> tuple[Ranks, Console]:
    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    ranks = distributed.connect(options.use_gpu, options.gpu_ids)
    console = Console(highlight=False, soft_wrap=True, quiet=not ranks.is_main)
    if not console.is_terminal:
        console.width = 140  # tables in a log are not squeezed
    return ranks, console


def _resumed(options: Options, given: frozenset[str], directory: RunDirectory) -> Options:
    """The stored options with what may be given anew.

    Raises:
        OptionError: something else was given, or fewer iterations than are stored.
    """
    stored = make_options(read_file(directory.config))
    _refuse_changes(options, stored, given - PLACES - DEVICES - LOGGING - {"niter", "verdict_budget"}, "resuming")
    if "niter" in given and options.niter < stored.niter:
        raise OptionError(
            f"--niter {options.niter} is less than the {stored.niter} iterations of the run {directory.name}: "
            "a resumed run may only be made longer."
        )
    may_change = DEVICES | LOGGING | {"niter", "verdict_budget", "data_dir"}
    anew = {name: getattr(options, name) for name in given & may_change}
    return stored.model_copy(update={**anew, "name": directory.name, "output_dir": options.output_dir})


def _refuse_changes(options: Options, stored: Options, fixed: frozenset[str], doing: str) -> None:
    for name in sorted(fixed):
        value, was = getattr(options, name), getattr(stored, name)
        if value != was:
            raise OptionError(
                f"--{name} {value} cannot be changed when {doing}: the run {stored.name} has {was}. "
                "Leave it out, or start a new run with another --name."
            )


def _open(options: Options, directory: RunDirectory, console: Console) -> tuple[NeuralODE, Shape, dict[str, Any]]:
    """The model of a run as its newest usable checkpoint has it."""
    _, saved = load_latest(directory.checkpoints, lambda text: console.print(f"note: {text}"))
    shape = Shape(**saved["shape"])
    model = build_model(options, shape)
    model.load_state_dict(saved["model"])
    model.solver = restored(model.solver, saved["solver"])
    return model, shape, saved


def _train(options: Options, directory: RunDirectory | None, ranks: Ranks, console: Console) -> int:
    """Train on this rank; the main rank writes, evaluates and speaks."""
    begin = time.time()
    with ranks.main_first():
        dataset = build_data(options)
    shape = shape_of(options, dataset)
    torch.manual_seed(options.random_seed)
    model = build_model(options, shape).to(ranks.device)
    batches = build_batches(options, dataset, ranks)
    rule = build_rule(options, model, shape, batches, ranks)
    state = State(model, build_optimizer(options, model), rule, model.solver if rule is None else rule.solver)
    resuming = directory is not None and any(directory.checkpoints.glob("*.pt"))
    if directory is not None and resuming:
        _, saved = load_latest(directory.checkpoints, lambda text: console.print(f"note: {text}"))
        state.load_state_dict(saved)
        if state.iteration >= options.niter:
            console.print(f"{directory.path} is finished ({state.iteration} iterations); --niter makes it longer.")
    if ranks.world_size > 1:
        model.reduce = ranks.sum
    task = get_task(shape.task)
    schedule = Schedule(
        options.niter,
        options.log_interval,
        options.eval_interval if options.evaluate_test_acc else None,
        options.adaption_interval,
        options.model_checkpoint_freq,
    )
    if not ranks.is_main:
        silent = Hooks(lambda row: None, lambda state: None, lambda text: None)
        return _code(train(state, dataset, task, batches, schedule, ranks, silent))

    assert directory is not None
    _describe(options, directory, state, resuming)
    console.print(
        f"{options.dataset}, {options.network}, {state.solver}: {options.niter} iterations, results in {directory.path}"
    )
    status = "failed"
    try:
        with ExitStack() as stack:
            hooks = _hooks(options, directory, task.metric_name, shape, state, console, stack)
            if state.iteration == 0:
                hooks.checkpoint(state)
            outcome = train(state, dataset, task, batches, schedule, ranks, hooks)
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
            nfe_per_iteration=state.evaluations / (options.batch_size * max(state.iteration, 1)),
            seconds=time.time() - begin,
        )
    if outcome.status == "interrupted":
        console.print(
            f"interrupted after iteration {state.iteration}; go on with: python train.py --resume true "
            f"{_where(options, directory)}"
        )
        return _code(outcome)
    ranks.close()
    model.reduce, model.solver = None, state.solver
    table, judged = _judge(options, directory, model, shape, dataset.test, "test", state.evaluations, console)
    write_json(directory.path / "audit.json", judged.to_dict())
    if table is not None:
        write_json(directory.path / "solver_swap.json", table.to_dict())
        write_text(directory.path / "solver_swap.csv", table.to_csv())
    _draw(directory, model, shape, dataset, table)
    directory.update(
        verdict=judged.status, sentence=judged.sentence, solver=str(state.solver), seconds=time.time() - begin
    )
    console.print(f"results: {directory.path}")
    return 0


def _code(outcome: Outcome) -> int:
    return 130 if outcome.status == "interrupted" else 0


def _where(options: Options, directory: RunDirectory) -> str:
    """The flags that name a run."""
    place = (
        ""
        if options.output_dir == Options.model_fields["output_dir"].default
        else f" --output_dir {options.output_dir}"
    )
    return f"--name {directory.name}{place}"


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
    setting = "tolerance" if isinstance(state.solver, Adaptive) else "step_size"
    columns = ["iteration", "loss", metric, "test_loss", f"test_{metric}"]
    columns += ["nfe", "nfe_backward", "n_steps", setting, "seconds"]
    cut_history(directory.history, state.iteration)
    history = stack.enter_context(History(directory.history, columns))
    progress = stack.enter_context(Progress(options.niter, state.iteration, console))
    board = None
    if options.use_tensorboard:
        from trueode.training.board import Board

        board = stack.enter_context(Board(directory.tensorboard_logs, state.iteration))
    told: set[str] = set()

    def row(values: Row) -> None:
        history.append(values)
        known = {name: value for name, value in values.items() if value is not None}
        texts = {"loss": f"{known['loss']:.4g}", metric: shown(metric, known[metric])}
        texts |= {"NFE": f"{known['nfe']:.4g}", "steps": f"{known['n_steps']:.4g}"}
        if f"test_{metric}" in known:
            texts[f"test {metric}"] = shown(metric, known[f"test_{metric}"])
        progress.update(int(known["iteration"]), texts)
        if board is not None:
            board.add(values)

    def checkpoint(current: State) -> None:
        history.flush()  # rows first: a checkpoint never knows more than the history
        save_checkpoint(directory.checkpoints, current.iteration, {**current.state_dict(), "shape": asdict(shape)})

    def notice(text: str) -> None:
        if text not in told:
            told.add(text)
            console.print(f"note: {text}")

    return Hooks(row, checkpoint, notice)


def _judge(
    options: Options,
    directory: RunDirectory,
    model: NeuralODE,
    shape: Shape,
    split: Split | FolderSplit,
    what: str,
    evaluations: float,
    console: Console,
) -> tuple[SwapTable | None, Verdict]:
    """Evaluate with other solvers if asked to, and tell whether the model is an ODE."""
    task = get_task(shape.task)
    table = None
    if options.evaluate_with_dif_solver:
        try:
            table = swap_table(
                model, split, task, model.solver, options.test_solver_list, options.test_factor_list, tol=options.tol
            )
            console.print(table.to_rich())
        except SolveError as failure:
            console.print(f"note: no other solvers were tried, the training solver fails on the {what} data. {failure}")
    channels = getattr(model.upstream, "out_channels", shape.sample[0])
    judged = verdict(
        model,
        split,
        task,
        model.solver,
        run_evaluations=evaluations,
        share=options.verdict_budget,
        flops=model.field.flops((channels, *shape.sample[1:])),  # type: ignore[attr-defined]
        what=what,
        command=f"python train.py --phase infer --split {what} {_where(options, directory)}",
    )
    console.print(judged.sentence, style="bold")
    return table, judged


def _draw(directory: RunDirectory, model: NeuralODE, shape: Shape, dataset: Dataset, table: SwapTable | None) -> None:
    """Draw what the run has to show."""
    import numpy as np

    from trueode import figures

    history: Any = {name: np.asarray(column) for name, column in read_history(directory.history).items()}
    task = get_task(shape.task)
    drawn: dict[str, Callable[[], Any]] = {
        "loss": lambda: figures.loss(history),
        task.metric_name: lambda: figures.metric(history, task.metric_name),
        "effort": lambda: figures.effort(history),
    }
    if table is not None:
        rows = [row.to_dict() for row in table.rows]
        drawn["solver_swap"] = lambda: figures.solver_swap(rows, str(table.training))
    portrait = phase_portrait(model, dataset.test, model.solver) if shape.task == "classification" else None
    if portrait is not None:
        drawn["trajectories"] = lambda: figures.trajectories(portrait)
        drawn["regions"] = lambda: figures.regions(portrait)
    if shape.task == "timeseries":
        series = series_portrait(model, dataset.test, task, model.solver)
        drawn["time_series"] = lambda: figures.time_series(*series)
    for name, draw in drawn.items():
        figures.save(draw(), directory.figures / f"{name}.png")
