"""Training: the loop, what it keeps and what it shows."""

from trueode.training.loop import Hooks, Outcome, Row, Schedule, train
from trueode.training.state import State

__all__ = ["Hooks", "Outcome", "Row", "Schedule", "State", "train"]
