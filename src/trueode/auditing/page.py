"""The page of an audit, with the model at hand or from what was saved."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.preserve_state import preserve_state
from trueode.auditing.provenance import provenance
from trueode.errors import UsageError
from trueode.evaluation.decision import LEVEL, MARGIN
from trueode.report.contents import Contents, fact, judged, made_by, missing, stills
from trueode.report.page import write_report
from trueode.report.slider import Slider
from trueode.runs import read_audit

if TYPE_CHECKING:
    from trueode.auditing.report import Audit

PICTURES = ("trajectories", "swap", "cost", "order")
HOW = "audit(model, data).save(folder, report=True)"


def write_page(folder: Path, found: Audit | None = None) -> Path:
    """Write ``report.html`` into the folder of an audit.

    Args:
        folder: holds ``audit.json`` and its figures.
        found: the audit, with the model that it judged; None: what was saved has to do.

    Raises:
        RunNotFoundError: there is no audit.
        UsageError: the audit is of a later version.
    """
    path = folder / "report.html"
    write_report(contents_of(folder, found), path)
    return path


def contents_of(folder: Path, found: Audit | None = None) -> Contents:
    """The contents of the page of an audit; see `write_page`."""
    values: dict[str, Any] = json.loads(found.to_json()) if found else read_audit(folder)
    origin = values.get("provenance") or {}
    subtitle = f"{origin.get('model') or 'a model'}, {values['solver']}, {values['n']} samples"
    slider, why = None, "the model and its data are not at hand"
    if found is not None:
        try:
            slider = slider_of(found)
        except UsageError as failure:
            why = str(failure)
    made = judged("audit", f"Audit {folder.name}", subtitle, values, slider.rows if slider else ())
    made["slider"] = slider.plain if slider else None
    if slider is not None and slider.gaps:
        made["facts"].append(fact("What the slider leaves out", slider.gaps))
    if slider is None:
        made["facts"].append(missing(f"The slider: {why}.", HOW))
    made["facts"].append(made_by({}, values, ""))
    pictures = [folder / f"audit_{name}.png" for name in PICTURES]
    made["stills"], left = stills(filter(Path.is_file, pictures), slider is not None)
    if left:
        made["facts"].append(fact("More pictures", left))
    return made


def slider_of(found: Audit, names: tuple[str, ...] = ()) -> Slider:
    """The slider of the model that was audited. The model is left unchanged.

    Args:
        found: the audit.
        names: names of the classes.

    Raises:
        UsageError: the model is not at hand, has changed, or has nothing to be compared with.
    """
    runnable, decision = found.subject, found.decision
    if runnable is None or found.exact is None:
        raise UsageError("there is no exact flow to compare with")
    if provenance(runnable, found.own)["weights"] != found.provenance["weights"]:
        raise UsageError("the weights of the model have changed since the audit")
    how = {
        # a limit of the task, which may be larger, replaces the margin
        "margin": decision.margin if decision.margin < 1 else MARGIN,
        "level": decision.level or LEVEL,
        "population": "sample" if decision.level else "all",
    }
    unchanged: AbstractContextManager[Any] = (
        preserve_state(runnable.forward.found)
        if isinstance(runnable, ModelUnderTest)
        else nullcontext()
    )
    with unchanged:
        return Slider(runnable, found.own, found.exact, decision.counts, names, **how)
