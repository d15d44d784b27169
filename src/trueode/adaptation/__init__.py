"""Rules that adapt step size, tolerance or method during training, and certify the model."""

from trueode.adaptation.certificate import Certificate, Certifier
from trueode.adaptation.fidelity import FidelityRule
from trueode.adaptation.inspection import ModelInspection
from trueode.adaptation.ladder import Ladder
from trueode.adaptation.measure import Measure
from trueode.adaptation.paper import PaperStepRule, PaperToleranceRule, paper_starting_step
from trueode.adaptation.penalty import DiscretisationPenalty
from trueode.adaptation.rule import (
    Comparison,
    Evidence,
    Extrapolated,
    Inspection,
    Progress,
    Refine,
    Rule,
    Signal,
)

__all__ = [
    "Certificate",
    "Certifier",
    "Comparison",
    "DiscretisationPenalty",
    "Evidence",
    "Extrapolated",
    "FidelityRule",
    "Inspection",
    "Ladder",
    "Measure",
    "ModelInspection",
    "PaperStepRule",
    "PaperToleranceRule",
    "Progress",
    "Refine",
    "Rule",
    "Signal",
    "paper_starting_step",
]
