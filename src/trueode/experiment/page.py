"""The page of a run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from math import isclose
from pathlib import Path
from typing import Any

from trueode.auditing import Audit
from trueode.auditing import judge as audit
from trueode.auditing.page import slider_of
from trueode.auditing.provenance import provenance
from trueode.build import build_data
from trueode.console import open_console
from trueode.errors import TrueodeError, UsageError
from trueode.evaluation import ModelOnSamples, get_task
from trueode.experiment.closing import margin_of
from trueode.experiment.saved import open_run, read_stored, refuse_other_data
from trueode.options import Options, dump_yaml
from trueode.precision import ieee
from trueode.report.contents import Contents, fact, judged, made_by, missing, stills, training
from trueode.report.page import write_report
from trueode.runs import RunDirectory, read_audit, read_history
from trueode.solvers import FixedStep
from trueode.training.threads import spared

SECONDS = 10.0  # about the time for an exact flow that is computed again
TIMED = 64  # samples on which its time is estimated
SAME = 1e-3  # relative difference of losses that rounding explains
USUAL = 400.0  # field evaluations of a sample under the exact flow
SIGHT = ("trajectories", "regions", "time_series", "density", "solver_swap")
"""The pictures that show most, first."""


def write_page(
    directory: RunDirectory,
    found: Audit | None = None,
    classes: Sequence[str] | None = None,
    *,
    data_dir: str | None = None,
) -> Path:
    """Write ``report.html`` into the directory of a finished run.

    Args:
        directory: of the run.
        found: its audit, with the model; None: the model is loaded and judged again.
        classes: names of the classes, if they have names.
        data_dir: the folder of the data, if it differs from the options.

    Raises:
        RunNotFoundError: the run is not finished.
        RunDamagedError: its options or its history cannot be read.
    """
    made = contents_of(directory, found, classes, data_dir=data_dir)
    path = directory.place("report.html")
    write_report(made, path)
    return path


def contents_of(
    directory: RunDirectory,
    found: Audit | None = None,
    classes: Sequence[str] | None = None,
    *,
    data_dir: str | None = None,
) -> Contents:
    """The contents of the page of a run; see `write_page`."""
    values = read_audit(directory.path)
    options, info = read_stored(directory), directory.read_info()
    slider, why = None, ""
    try:
        if found is None:
            found, classes = _again(directory, options, values, data_dir)
        slider = slider_of(found, tuple(map(str, classes or ())))
    except TrueodeError as failure:
        why = str(failure).rstrip(".")
    about = f"{options.dataset}, {options.network}, {values['solver']}"
    made = judged("run", directory.name, about, values, slider.rows if slider else ())
    if slider is None:
        command = shlex.join(["trueode", "report", str(directory.path), "--data_dir", "DIR"])
        made["facts"].append(missing(f"The slider: {why}.", command))
    else:
        made["slider"] = slider.plain
        n, whole = len(slider.exact.outputs), values["n"]
        few = [f"Samples after the first {n} of {whole}: they would take too long."]
        if gaps := [*(few if n < whole else []), *slider.gaps]:
            made["facts"].append(fact("What the slider leaves out", gaps))
    if directory.history.is_file():
        history = read_history(directory.history)
        made["charts"] = [*training(history, values["performance"]["name"]), *made["charts"]]
    command = shlex.join(["python", "train.py", *options.flags(options.changed)])
    made["facts"].append(made_by(info, values, command, dump_yaml(options, comments=False)))
    pictures = sorted(filter(Path.is_file, directory.figures.glob("*.png")), key=_sight)
    made["stills"], left = stills(pictures, slider is not None)
    if left:
        made["facts"].append(fact("More pictures", left))
    return made


def _sight(path: Path) -> tuple[int, str]:
    return SIGHT.index(path.stem) if path.stem in SIGHT else len(SIGHT), path.stem


@ieee()
def _again(
    directory: RunDirectory, options: Options, values: dict[str, Any], data_dir: str | None
) -> tuple[Audit, Sequence[str] | None]:
    """Judge the samples of ``audit.json`` again, or as many as there is time for; and the names of
    the classes.
    """
    if data_dir is not None:
        options = options.model_copy(update={"data_dir": data_dir})
    model, shape, _ = open_run(options, directory, open_console(stderr=True))
    dataset = build_data(options)
    refuse_other_data(shape, dataset)
    margin = margin_of(options)
    task = get_task(shape.task).fitted(shape.sample, margin)
    runnable = ModelOnSamples(model.eval(), dataset.test, task, model.solver).first(values["n"])
    with spared(model, runnable.n, shape.sample):
        few = runnable.first(TIMED)
        first = few.run()  # the first solve is slow
        weights = (values.get("provenance") or {}).get("weights")
        if weights not in (None, provenance(few, first)["weights"]):
            raise UsageError("the newest usable checkpoint holds other weights than were judged")
        begin = time.perf_counter()
        timed = few.run(FixedStep("rk4", n_steps=4))
        pace = (time.perf_counter() - begin) / (timed.n * timed.nfe)
        spent = values.get("evaluations") or USUAL * runnable.n
        share = min(1.0, SECONDS / (pace * (spent + first.nfe * runnable.n)))
        runnable = runnable.first(max(1, int(runnable.n * share)))
        own = runnable.run()
        loss = next((row.get("loss") for row in values["rows"] if row["is_training"]), None)
        if loss is not None and own.n == values["n"] and not isclose(own.loss, loss, rel_tol=SAME):
            raise UsageError(
                f"the loss of the training solver is {own.loss:.4g}, but was {loss:.4g} when the "
                "run was judged: the data has changed"
            )
        found = audit(runnable, own, margin=margin, budget=1.01 * share * spent)
        return found, dataset.classes
