"""Audits from the command line: of runs, and of models that are named by module and function."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from torch import nn

from trueode.auditing import Audit, audit
from trueode.build import build_data
from trueode.console import open_console, print_answer
from trueode.errors import RunNotFoundError, UsageError, calling, nearest, told
from trueode.evaluation.wording import evaluations
from trueode.experiment.saved import open_run, read_stored, refuse_other_data
from trueode.runs import RunDirectory

FUNCTIONS = (
    "call",
    "metric",
    "decision",
)  # arguments of `audit` that are named by module and function


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
    **how: Any,
) -> int:
    """Audit a run or a model, print what was found, save it, and return the exit code of the
    verdict.

    Args:
        target: the directory of a run, or ``module:name`` of a model or of a function that makes
            one.
        data: ``module:name`` of the data, or of a function that makes it; for models.
        data_dir: where the data of a run lies, if not where its options say.
        split: ``"test"`` or ``"train"``, of a run.
        output_dir: folder of the results; None: ``RUN/audit``, or ``experiments/audits/NAME``.
        overwrite: whether an audit in that folder may be replaced.
        as_json: print ``audit.json`` instead of words.
        everything: print all rows and reasons.
        how: arguments of `audit`; functions by ``module:name``.

    Raises:
        TrueodeError: the model or the data cannot be audited.
    """
    console = open_console(stderr=as_json)
    if Path(target).is_dir() or ":" not in target:
        own = {
            "data": data,
            **{name: how[name] for name in FUNCTIONS},
            "task": None if how["task"] == "auto" else how["task"],
        }
        for name, value in own.items():
            if value and name != "decision":
                raise UsageError(
                    f"--{name} goes with a model module:name; the run {target} has its own."
                )
        folder = Path(output_dir) if output_dir else Path(target) / "audit"
        _refuse(folder, overwrite)
        model, samples_of, how["task"] = _of_run(Path(target), data_dir, split, console)
    else:
        if data_dir is not None or split != "test":
            flag = "--split" if data_dir is None else "--data_dir"
            raise UsageError(
                f"{flag} goes with the directory of a run; the samples for the model {target} are --data."
            )
        if not data:
            raise UsageError(
                f"The model {target} needs data: --data module:name, of a loader or of a function that makes one."
            )
        place = Path("experiments") / "audits" / target.replace(":", "-")
        folder = Path(output_dir) if output_dir else place if overwrite else _free(place)
        _refuse(folder, overwrite)
        model = _made(target, "The model")
        samples_of = _made(data, "The data")
    path = folder / "audit.json"
    with console.status("audit") as status:
        functions = {name: _named(how.pop(name), f"--{name}") for name in FUNCTIONS if how[name]}
        how |= {**dict.fromkeys(FUNCTIONS), **functions, "held_out": split == "test"}
        found = audit(
            model, samples_of, progress=lambda text: status.update(f"audit: {text}"), **how
        )
    if folder == Path(target) / "audit":
        RunDirectory(Path(target)).place(
            "audit"
        )  # it is still there, and no link that leads elsewhere
    found.save(folder, overwrite=overwrite)
    if as_json:
        print(found.to_json(), end="")
    else:
        _show(found, console, everything)
    console.print(f"results: {path}")
    return found.exit_code


def _refuse(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: choose another --output_dir.")
    if (folder / "audit.json").exists() and not overwrite:
        raise UsageError(
            f"There is an audit in {folder} already: choose another --output_dir, or replace it with --overwrite true."
        )


def _show(found: Audit, console: Console, everything: bool) -> None:
    """The answer first, then what a reader needs at once, or everything."""
    answer, *rest = found.lines(everything=everything)
    own = f"training solver: {found.solver}, {evaluations(found.own.nfe)} for a sample"
    print_answer(console, answer, [own, *rest], title=found.verdict, colour=found.colour)
    if len(found.rows) > 1:
        console.print(found.to_rich(everything=everything))
        if not everything:
            console.print(
                "The rows are those that no other one beats; --all shows every row, and the reasons."
            )


def _of_run(
    path: Path, data_dir: str | None, split: str, console: Console
) -> tuple[nn.Module, Any, str]:
    """The model of a run, its data and what it has learned."""
    if not path.is_dir():
        raise RunNotFoundError(
            f"There is no directory {path}. Audited are runs, by their directory, and models, by module:name."
        )
    directory = RunDirectory.open(str(path.parent), path.name)
    options = read_stored(directory)
    if data_dir is not None:
        options = options.model_copy(update={"data_dir": data_dir})
    model, shape, _ = open_run(options, directory, console)
    dataset = build_data(options)
    refuse_other_data(shape, dataset)
    return model.eval(), dataset.train if split == "train" else dataset.test, shape.task


def _made(name: str, what: str) -> Any:
    """What a name stands for; functions are called."""
    found = _named(name, what)
    if isinstance(found, nn.Module) or not callable(found):
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
    except (Exception, SystemExit) as failure:  # importing runs somebody else's code
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
            raise UsageError(
                f"{what}: {module} has no {attribute}; it has {', '.join(there) or 'nothing'}.{nearest(attribute, there)}"
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
