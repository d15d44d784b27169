"""Training: the loop, its state and its display."""

from trueode.training.loop import Hooks, Row, Schedule, Trainer
from trueode.training.state import State

__all__ = ["Hooks", "Row", "Schedule", "State", "Trainer"]
