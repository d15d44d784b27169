"""Errors that are also those that torchdiffeq raises, so that existing handlers catch them."""

from __future__ import annotations

from trueode.errors import SolveError, UsageError


class ArgumentError(UsageError, AssertionError):
    """An argument is wrong where torchdiffeq raises an AssertionError."""


class ArgumentTypeError(UsageError, TypeError):
    """An argument is wrong where torchdiffeq raises a TypeError."""


class SolveFailedError(SolveError, AssertionError):
    """A solve failed where torchdiffeq raises an AssertionError."""
