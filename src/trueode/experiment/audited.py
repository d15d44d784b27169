"""Audits from the command line: of runs, and of models given as ``module:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from torch import nn

from trueode import gpus
from trueode.auditing import Audit, audit
from trueode.auditing.frameworks import is_model
from trueode.auditing.report import in_the_way
from trueode.build import build_data
from trueode.console import open_console, print_answer
from trueode.errors import RunNotFoundError, UsageError, calling, nearest, told
from trueode.evaluation.decision import MARGIN
from trueode.evaluation.wording import evaluations
from trueode.experiment.closing import margin_of
from trueode.experiment.saved import open_run, read_stored, refuse_other_data
from trueode.runs import RunDirectory

DETERMINED = ("call", "metric")  # arguments of `audit` that a run determines
FUNCTIONS = (*DETERMINED, "decision", "sample", "loss")  # arguments given as module:name


def audit_target(
    target: str,
    *,
    data: str | None,
    data_dir: str | None,
    split: str,
    output_dir: str | None,
    overwrite: bool,
    as_json: bool,
    everything: bool,
    report: bool = False,
    use_gpu: bool = False,
    gpu_ids: str = "0",
    **how: Any,
) -> int:
    """Audit a run or a model, print and save the result, and return the exit code of the verdict.

    Args:
        target: the directory of a run, or ``module:name`` of a model or of a function that makes
            one.
        data: for models, ``module:name`` of the data or of a function that makes it.
        data_dir: for runs, the folder of the data, if it differs from the options.
        split: for runs, ``"test"`` or ``"train"``.
        output_dir: folder of the results; None: ``RUN/audit``, or ``experiments/audits/NAME``.
        overwrite: whether an earlier audit in that folder may be replaced.
        as_json: whether to print ``audit.json`` instead of sentences.
        everything: whether to print all rows and reasons.
        report: whether to write ``report.html`` as well.
        use_gpu: whether to move the model to a GPU; its samples follow, batch by batch.
        gpu_ids: the number of the GPU.
        how: arguments of `audit`, with functions as ``module:name``; ``margin`` None: for runs,
            that of the certificate.

    Raises:
        TrueodeError: the model or the data cannot be audited.
    """
    console = open_console(stderr=as_json)
    device = gpus.one(use_gpu, gpu_ids, "an audit")
    margin = MARGIN
    if Path(target).is_dir() or ":" not in target:
        own = {
            "data": data,
            **{name: how[name] for name in DETERMINED},
            "task": None if how["task"] == "auto" else how["task"],
        }
        for name, value in own.items():
            if value:
                raise UsageError(
                    f"--{name} is only for models given as module:name; the run {target} "
                    "determines it."
                )
        folder = Path(output_dir) if output_dir else Path(target) / "audit"
        _refuse(folder, overwrite, report)
        model, samples_of, how["task"], margin = _of_run(Path(target), data_dir, split, console)
    else:
        if data_dir is not None or split != "test":
            flag = "--split" if data_dir is None else "--data_dir"
            raise UsageError(
                f"{flag} is only for runs; the samples for the model {target} are those of --data."
            )
        if not data:
            noise = " (of a sampler: its noise)" if how["task"] == "sampler" else ""
            raise UsageError(
                f"The model {target} needs data{noise}: add --data module:name of a loader or of a "
                "function that makes one."
            )
        place = Path("experiments") / "audits" / target.replace(":", "-")
        folder = Path(output_dir) if output_dir else place if overwrite else _free(place)
        _refuse(folder, overwrite, report)
        model = _made(target, "The model")
        samples_of = _made(data, "The data")
    if use_gpu:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"--use_gpu true moves modules, but {target} is a {type(model).__name__}: put what "
                "it uses on the GPU there, and leave --use_gpu out."
            )
        model.to(device)
    path = folder / "audit.json"
    with console.status("audit") as status:
        functions = {name: _named(how.pop(name), f"--{name}") for name in FUNCTIONS if how[name]}
        how |= {**dict.fromkeys(FUNCTIONS), **functions, "held_out": split == "test"}
        how["margin"] = margin if how["margin"] is None else how["margin"]
        found = audit(
            model, samples_of, progress=lambda text: status.update(f"audit: {text}"), **how
        )
    if folder == Path(target) / "audit":
        # check that the folder still exists and is no link to another place
        RunDirectory(Path(target)).place("audit")
    found.save(folder, overwrite=overwrite, report=report)
    if as_json:
        print(found.to_json(), end="")
    else:
        _show(found, console, everything)
    console.print(f"results: {path}")
    if report:
        console.print(f"report: {folder / 'report.html'}")
    return found.exit_code


def _refuse(folder: Path, overwrite: bool, report: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: choose another --output_dir.")
    taken = in_the_way(folder, report)
    if taken is not None and not overwrite:
        raise UsageError(
            f"{taken} exists already: choose another --output_dir, or replace it with "
            "--overwrite true."
        )


def _show(found: Audit, console: Console, everything: bool) -> None:
    """Print the sentence, then the essential facts, or everything."""
    answer, *rest = found.lines(everything=everything)
    own = f"training solver: {found.solver}, {evaluations(found.own.nfe)} for a sample"
    print_answer(console, answer, [own, *rest], title=found.verdict, colour=found.colour)
    if len(found.rows) > 1:
        console.print(found.to_rich(everything=everything))
        if not everything:
            console.print(
                "Only rows that no other row beats are shown; --all shows all of them, and the "
                "reasons."
            )


def _of_run(
    path: Path, data_dir: str | None, split: str, console: Console
) -> tuple[nn.Module, Any, str, float]:
    """The model of a run, its data, its task and the margin at which it was judged."""
    if not path.is_dir():
        raise RunNotFoundError(
            f"There is no directory {path}. Give the directory of a run, or a model as module:name."
        )
    directory = RunDirectory.open(str(path.parent), path.name)
    options = read_stored(directory)
    if data_dir is not None:
        options = options.model_copy(update={"data_dir": data_dir})
    model, shape, _ = open_run(options, directory, console)
    dataset = build_data(options)
    refuse_other_data(shape, dataset)
    samples = dataset.train if split == "train" else dataset.test
    return model.eval(), samples, shape.task, margin_of(options)


def _made(name: str, what: str) -> Any:
    """The object with a name ``module:name``, or the value of a function of that name."""
    found = _named(name, what)
    if is_model(found) or not callable(found):
        return found
    with calling(f"{what}: {name}() raised"):
        return found()


def _named(name: str, what: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"{what} is given as module:name, got {name!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as failure:  # importing runs the code of users
        raise UsageError(
            f"{what}: the module {module} cannot be imported: {told(failure)}."
        ) from failure
    found = imported
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = [
                key
                for key, value in vars(imported).items()
                if key[0] != "_" and not isinstance(value, ModuleType)
            ]
            known = ", ".join(there) or "nothing"
            raise UsageError(
                f"{what}: {module} has no {attribute}; it has {known}.{nearest(attribute, there)}"
            )
        found = getattr(found, part)
    return found


def _free(path: Path) -> Path:
    """The first free name among PATH, PATH-2, PATH-3, …."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
