"""Compose the parts of a run, from its options to its results, and load saved runs."""

from trueode.experiment.runner import run
from trueode.experiment.saved import infer, load

__all__ = ["infer", "load", "run"]
