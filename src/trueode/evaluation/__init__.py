"""Any model under any solver: metrics, other solvers, the exact flow, the verdict."""

from trueode.evaluation.metrics import Evaluation, evaluate, evaluating, to_device
from trueode.evaluation.portrait import phase_portrait, series_portrait
from trueode.evaluation.reference import ExactFlow, exact_flow
from trueode.evaluation.statistics import clopper_pearson
from trueode.evaluation.swap import SwapRow, SwapTable, swap_table
from trueode.evaluation.tasks import Task, get_task
from trueode.evaluation.verdict import Verdict, shown, verdict

__all__ = [
    "Evaluation",
    "ExactFlow",
    "SwapRow",
    "SwapTable",
    "Task",
    "Verdict",
    "clopper_pearson",
    "evaluate",
    "evaluating",
    "exact_flow",
    "get_task",
    "phase_portrait",
    "series_portrait",
    "shown",
    "swap_table",
    "to_device",
    "verdict",
]
