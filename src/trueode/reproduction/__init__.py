"""The figures and the table of the paper by name: their plans, recipes and scales."""

from trueode.reproduction.results import reproduce

__all__ = ["reproduce"]
