"""Saved runs: their options, which of these may change, and their models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trueode import distributed, gpus
from trueode.build import Shape, build_data, build_model
from trueode.console import open_console
from trueode.data import Dataset
from trueode.distributed import Ranks
from trueode.errors import (
    CheckpointError,
    DataError,
    OptionError,
    RunDamagedError,
    TrueodeError,
    calling,
    told,
)
from trueode.evaluation import evaluate, get_task, shown
from trueode.experiment.closing import judge
from trueode.models import NeuralODE
from trueode.options import (
    DEVICES,
    EVALUATION,
    LOGGING,
    PLACES,
    Options,
    describe,
    make_options,
    read_file,
)
from trueode.precision import ieee
from trueode.runs import RunDirectory, load_latest, write_json
from trueode.solvers import from_plain


def load(run_dir: str | Path, device: str | torch.device = "cpu") -> tuple[NeuralODE, Options]:
    """Load the model of a run, with the solver at the end of its training, and the run's options.

    The data is not needed, and no saved code is executed.

    Args:
        run_dir: ``OUTPUT_DIR/NAME``.
        device: where the model is put.

    Raises:
        UsageError: there is no such device, or it cannot be used.
        RunNotFoundError: there is no run.
        RunDamagedError: its options cannot be read.
        CheckpointError: none of its checkpoints is usable.
    """
    path = Path(run_dir)
    directory = RunDirectory.open(str(path.parent), path.name)
    options = read_stored(directory)
    model, _, _ = open_run(options, directory, open_console(stderr=True))
    with calling(f"The device {device!r} is not one of torch's"):
        place = torch.device(device)
    return model.to(gpus.claim(place, current=False)).eval(), options


@ieee()
def infer(options: Options, given: frozenset[str] = frozenset()) -> int:
    """Evaluate a saved run on ``options.split``, with other solvers if asked to, and judge whether
    it is an ODE.

    The results are printed and saved as ``evaluation_SPLIT.json``. Nothing else of the run
    changes.

    Raises:
        TrueodeError: there is no such run, or it cannot be evaluated with these options.
    """
    ranks, console = start(options)
    directory = RunDirectory.open(options.output_dir, options.name)
    stored = read_stored(directory)
    refuse_changes(
        options, stored, given - PLACES - DEVICES - LOGGING - EVALUATION - {"niter"}, "evaluating"
    )
    anew = {name: getattr(options, name) for name in given & (EVALUATION | {"data_dir"})}
    stored = stored.model_copy(update={"evaluate_with_dif_solver": False, **anew})
    model, shape, saved = open_run(stored, directory, console)
    model.to(ranks.device)
    dataset = build_data(stored)
    refuse_other_data(shape, dataset)
    split = dataset.train if options.split == "train" else dataset.test
    task = get_task(shape.task).fitted(shape.sample)
    found = evaluate(model, split, task)
    console.print(
        f"{directory.path} after {saved['iteration']} iterations, {options.split} data "
        f"({found.n} samples), {model.solver}: loss {found.loss:.4g}, {task.metric_name} "
        f"{shown(task.metric_name, found.metric)}, NFE {found.nfe:.4g}"
    )
    judged = judge(
        stored, directory, model, shape, split, options.split, saved["evaluations"], console
    )
    result = {
        "iteration": saved["iteration"],
        "n": found.n,
        "loss": found.loss,
        task.metric_name: found.metric,
    }
    result |= {"nfe": found.nfe, "n_steps": found.n_steps, "audit": judged.to_dict()}
    path = directory.place(f"evaluation_{options.split}.json")
    write_json(path, result)
    console.print(f"results: {path}")
    return 0


def resumed(options: Options, given: frozenset[str], directory: RunDirectory) -> Options:
    """The stored options, with the given values of options that may change.

    Raises:
        OptionError: another option would change, ``niter`` is less than the stored one, or the new
            values do not fit the others.
    """
    stored = read_stored(directory)
    refuse_changes(
        options,
        stored,
        given - PLACES - DEVICES - LOGGING - {"niter", "verdict_budget"},
        "resuming",
    )
    if "niter" in given and options.niter < stored.niter:
        raise OptionError(
            f"--niter {options.niter} is less than the {stored.niter} iterations of the run "
            f"{directory.name}: a resumed run can only become longer."
        )
    may_change = DEVICES | LOGGING | {"niter", "verdict_budget", "data_dir"}
    anew = {name: getattr(options, name) for name in given & may_change}
    anew |= {"name": directory.name, "output_dir": options.output_dir, "resume": options.resume}
    return make_options({**stored.model_dump(), **anew})


def read_stored(directory: RunDirectory) -> Options:
    """The options of a run.

    Raises:
        RunDamagedError: ``config.yaml`` is damaged, or written by another version.
    """
    try:
        values = read_file(directory.config)
        missing = [item.name for item in describe() if item.name not in values]
        if missing and directory.of_this_version:
            raise OptionError(
                f"It lacks {', '.join(missing)}, but this version writes all options."
            )
        return make_options(values)
    except ValueError as failure:
        raise RunDamagedError(
            f"{directory.config} is damaged, or of another version of trueode: {failure} "
            "Repair it, or train again."
        ) from None


def refuse_other_data(shape: Shape, dataset: Dataset) -> None:
    """Check that data fits the run.

    Raises:
        DataError: its task, its size or the time of its inputs differs from the training data.
    """
    found, expected = (
        f"{it.task} with inputs {'x'.join(map(str, size))} and {it.n_outputs} outputs"
        for it, size in ((dataset, dataset.sample_shape), (shape, shape.sample))
    )
    if found != expected:
        raise DataError(
            f"The data is for {found}, but the run was trained for {expected}: give such data."
        )
    if dataset.t_start != shape.t_start:
        raise DataError(
            f"The inputs of the data are states at the time {dataset.t_start:.12g}, but the run "
            f"was trained on states at {shape.t_start:.12g}: give data with that t0."
        )


def start(options: Options) -> tuple[Ranks, Console]:
    """Connect the ranks, and open the console, which prints only on the main rank."""
    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    ranks = distributed.connect(options.use_gpu, options.gpu_ids)
    if options.use_gpu:
        torch.backends.cudnn.deterministic = True  # equal runs give equal bits
    return ranks, open_console(quiet=not ranks.is_main)


def refuse_changes(options: Options, stored: Options, fixed: frozenset[str], doing: str) -> None:
    """Check that options have the stored values of a run.

    Args:
        options: as given.
        stored: those of the run.
        fixed: names of options that must not change.
        doing: the action, for the message.

    Raises:
        OptionError: one of these options differs.
    """
    for name in sorted(fixed):
        value, was = getattr(options, name), getattr(stored, name)
        if value != was:
            raise OptionError(
                f"--{name} {value} cannot be changed when {doing}: the run {stored.name} has "
                f"{was}. Leave it out, or start a new run with another --name."
            )


def open_run(
    options: Options, directory: RunDirectory, console: Console
) -> tuple[NeuralODE, Shape, dict[str, Any]]:
    """The model of a run, its shape and the newest usable checkpoint.

    Raises:
        CheckpointError: there is no usable checkpoint, or it does not fit this version.
    """
    path, saved = load_latest(directory.checkpoints, lambda text: console.print(f"note: {text}"))
    with fitting(path, directory):
        shape = Shape(**saved["shape"])
        model = build_model(options, shape)
        model.load_state_dict(saved["model"])
        model.solver = from_plain(saved["solver"])
        saved |= {"iteration": int(saved["iteration"]), "evaluations": float(saved["evaluations"])}
    return model, shape, saved


@contextmanager
def fitting(path: Path, directory: RunDirectory) -> Iterator[None]:
    """A block that loads a checkpoint.

    Raises:
        CheckpointError: the checkpoint does not fit the run.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TrueodeError,
        TypeError,
        ValueError,
    ) as failure:
        raise CheckpointError(
            f"{path} does not fit the run or this version of trueode ({told(failure)}): remove it "
            f"if it belongs to another run, use the version named in {directory.info}, or train "
            "again."
        ) from failure
