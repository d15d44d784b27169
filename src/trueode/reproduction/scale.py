"""The scale of a plan, and its differences from the paper, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueode.options.roles import EVALUATION
from trueode.reproduction.plans import MOMENTS
from trueode.sweeps import Plan
from trueode.sweeps.plan import PlannedRun, told

IMPLIED = EVALUATION | {"evaluate_test_acc", "eval_interval"}
"""Options of the evaluation, which do not change the training."""


def seeds_of(plan: Plan) -> list[int]:
    """The seeds of a plan."""
    return sorted({run.options.random_seed for run in plan.runs})


def told_scale(plan: Plan, scale: str, images: int | None = None) -> str:
    """The line at the foot of a figure: scale, seeds, iterations, data.

    Args:
        plan: the runs.
        scale: ``"small"`` or ``"paper"``.
        images: their number, if the data is images.
    """
    iterations = sorted({run.options.niter for run in whole(plan)})
    data = sorted({run.options.dataset for run in plan.runs})
    channels = sorted({run.options.ch_residual_block for run in plan.runs})
    seeds = seeds_of(plan)
    number = f" ({images} images)" if images else ""
    return (
        f"scale: {scale}; seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}; "
        f"{_listed(iterations)} iterations; {', '.join(data)}{number}; "
        f"{_listed(channels)} channels"
    )


def differences(plan: Plan, paper: Plan) -> list[str]:
    """The options in which a plan differs from the paper's, with both values."""
    found = []
    for name in type(plan.runs[0].options).model_fields:
        if name in IMPLIED or name in (
            "name",
            "output_dir",
            "data_dir",
            "torch_threads",
            "num_threads",
        ):
            continue
        own, theirs = (
            list(dict.fromkeys(told(getattr(run.options, name)) for run in whole(each)))
            for each in (plan, paper)
        )
        if set(own) != set(theirs):
            found.append(f"`{name}` {', '.join(own)} (paper: {', '.join(theirs)})")
    return found


def whole(plan: Plan) -> list[PlannedRun]:
    """The runs of a plan, without those that stop early."""
    return [run for run in plan.runs if run.grid != MOMENTS]


def _listed(values: Sequence[int]) -> str:
    """Numbers in words; consecutive ones as 0–4."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}–{values[-1]}"
    return ", ".join(map(str, values))


def images_in(identities: Mapping[str, Any]) -> int | None:
    """The number of images, if the data is images."""
    for key in ("samples", "files"):
        if key in identities:
            return int(identities[key])
    return None
