"""What the kernels of whole solves have in common: the problems that they can serve."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import Parameter

from trueode.catalog import ACTIVATIONS
from trueode.solvers.problem import Problem
from trueode.solvers.solver import FixedStep, OnGrid

KNOWN = frozenset(("identity", "cube", *ACTIVATIONS))
"""The activations that kernels compute."""


def is_served(problem: Problem) -> bool:
    """Whether kernels can read all that a problem consists of: constant times, and layers whose
    numbers are those in memory.
    """
    if problem.control is not None or problem.layers is None:
        return False
    z, layers, clock = problem.first, problem.layers.layers, problem.clock
    place = z.dtype, z.get_device()
    return (
        z.dtype in (torch.float32, torch.float64)
        and clock.length != 0
        and not clock.differentiable
        and _is_plain(z, place)
        and all(_is_plain(x, place) for x in problem.layers.tensors if x is not None)
        and all(layer.activation in KNOWN for layer in layers)
        and layers[-1].activation == "identity"
    )


def _is_plain(x: Tensor, place: tuple[torch.dtype, int]) -> bool:
    """Whether a tensor, not of a subclass, holds exactly the numbers at its address, in a precision
    and on a device (-1: the processor).
    """
    known = type(x) is Parameter or type(x) is Tensor
    return (
        known
        and (x.dtype, x.get_device()) == place
        and x.layout is torch.strided
        and not x.is_neg()
        and x.numel() > 0
    )


@lru_cache(maxsize=64)
def _equal_steps(solver: FixedStep, length: float) -> Tensor:
    return torch.tensor(solver.fractions(length), dtype=torch.float64, device="cpu")


def grid_of(solver: FixedStep | OnGrid, length: float) -> Tensor:
    """The grid of fixed steps; cached for solvers that are fast to compare.

    Raises:
        SolveError: the steps are too many.
    """
    if isinstance(solver, FixedStep):
        return _equal_steps(solver, length)
    return torch.tensor(solver.grid, dtype=torch.float64, device="cpu")
