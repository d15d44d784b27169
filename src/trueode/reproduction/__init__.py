"""The figures and the table of the paper by name: plans, what is made of their runs, and at which
scale.
"""

from trueode.reproduction.results import reproduce

__all__ = ["reproduce"]
