"""Whole solves in one call of a compiled kernel, for fields made of matrix layers; chosen by itself where it may be."""

from trueode.solvers.backends.native.library import alone, describe, instruction_sets, using

__all__ = ["alone", "describe", "instruction_sets", "using"]
