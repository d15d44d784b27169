"""Whole solves in one call of a compiled kernel, for fields of matrix layers; used automatically
where possible.
"""

from trueode.solvers.backends.native.library import (
    describe,
    instruction_sets,
    torch_on_one_thread,
    using,
)

__all__ = ["describe", "instruction_sets", "torch_on_one_thread", "using"]
