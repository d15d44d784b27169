"""Any model under any solver: metrics, other solvers, the exact flow, the verdict."""

from trueode.evaluation.decision import Decision, decide
from trueode.evaluation.flips import Flips, count_flips
from trueode.evaluation.metrics import Evaluation, evaluate, evaluating, to_device
from trueode.evaluation.portrait import phase_portrait, series_portrait
from trueode.evaluation.reference import ExactFlow, exact_flow, finer_solver
from trueode.evaluation.statistics import clopper_pearson, percent, samples_for
from trueode.evaluation.swap import SwapRow, SwapTable, swap_table
from trueode.evaluation.tasks import Task, get_task
from trueode.evaluation.verdict import Verdict, shown, verdict

__all__ = [
    "Decision",
    "Evaluation",
    "ExactFlow",
    "Flips",
    "SwapRow",
    "SwapTable",
    "Task",
    "Verdict",
    "clopper_pearson",
    "count_flips",
    "decide",
    "evaluate",
    "evaluating",
    "exact_flow",
    "finer_solver",
    "get_task",
    "percent",
    "phase_portrait",
    "samples_for",
    "series_portrait",
    "shown",
    "swap_table",
    "to_device",
    "verdict",
]
