"""Evaluate models under solvers: metrics, exact flow, flips, decision and solver table."""

from trueode.evaluation.decision import Decision, Status, decide, level_of
from trueode.evaluation.flips import Flips, count_flips
from trueode.evaluation.flow import ExactFlow, exact_flow, finer_solver
from trueode.evaluation.gain import Answer, Performance, performance
from trueode.evaluation.metrics import Evaluation, evaluate, evaluating
from trueode.evaluation.model_on_samples import ModelOnSamples
from trueode.evaluation.pace import Pace
from trueode.evaluation.portrait import density_portrait, phase_portrait, series_portrait
from trueode.evaluation.runnable import Metric, Runnable
from trueode.evaluation.solver_table import Row, SolverTable, by_factors
from trueode.evaluation.statistics import clopper_pearson, samples_for
from trueode.evaluation.task import Task
from trueode.evaluation.tasks import get_task
from trueode.evaluation.wording import sentence, shown

__all__ = [
    "Answer",
    "Decision",
    "Evaluation",
    "ExactFlow",
    "Flips",
    "Metric",
    "ModelOnSamples",
    "Pace",
    "Performance",
    "Row",
    "Runnable",
    "SolverTable",
    "Status",
    "Task",
    "by_factors",
    "clopper_pearson",
    "count_flips",
    "decide",
    "density_portrait",
    "evaluate",
    "evaluating",
    "exact_flow",
    "finer_solver",
    "get_task",
    "level_of",
    "performance",
    "phase_portrait",
    "samples_for",
    "sentence",
    "series_portrait",
    "shown",
]
