"""Rules that choose the step size or tolerance while a model trains."""

from trueode.adaptation.measure import Measure
from trueode.adaptation.paper import PaperStepRule, PaperToleranceRule, paper_starting_step
from trueode.adaptation.rule import Comparison, Evidence, Progress, Rule

__all__ = [
    "Comparison",
    "Evidence",
    "Measure",
    "PaperStepRule",
    "PaperToleranceRule",
    "Progress",
    "Rule",
    "paper_starting_step",
]
