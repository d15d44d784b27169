"""Whole solves on a GPU in one launch, for fields of matrix layers; used on request."""

from trueode.solvers.backends.gpu.library import describe

__all__ = ["describe"]
