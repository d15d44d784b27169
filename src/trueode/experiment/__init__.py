"""A run from its options to its results, and runs that are there already: the one place that
composes.
"""

from trueode.experiment.runner import run
from trueode.experiment.saved import infer, load

__all__ = ["infer", "load", "run"]
