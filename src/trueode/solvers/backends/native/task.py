"""Describe solves of layers to the compiled kernel: from tensors to addresses."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import addressof, c_double
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.catalog import ACTIVATIONS
from trueode.layers import LayerStack
from trueode.solvers.backends.native import library
from trueode.solvers.backends.native.library import LAYER, Kernel, Solve
from trueode.solvers.backends.native.runtime import Block
from trueode.solvers.clock import Clock
from trueode.solvers.problem import Problem
from trueode.solvers.solution import Counter
from trueode.solvers.tableau import ButcherTableau

NUMBERS = {
    "identity": 0,
    **{name: each.kernel for name, each in ACTIVATIONS.items()},
    "cube": 8,
}
"""The numbers of activations in native.c."""
NOTHING, STATES, STAGES = range(3)  # what a forward pass keeps


class Task(NamedTuple):
    """A problem, described to the kernel.

    Attributes:
        addresses: those of the layers' tensors.
        values: the layers in the kernel's format.
    """

    kernel: Kernel
    double: bool
    stack: LayerStack
    tableau: ButcherTableau
    clock: Clock
    counter: Counter
    per_sample: bool
    shape: tuple[int, int]
    addresses: list[int]
    values: list[int]

    @classmethod
    def of(cls, problem: Problem, z: Tensor, tensors: Sequence[Tensor | None]) -> Task:
        """The task of a problem with the state ``z``, ``(batch, width)``."""
        kernel, stack = library.kernel(), problem.layers
        assert kernel is not None
        assert stack is not None
        return cls(
            kernel,
            z.dtype == torch.float64,
            stack,
            problem.solver.tableau,
            problem.clock,
            problem.counter,
            problem.per_sample,
            (z.shape[0], z.shape[1]),
            list(map(address, tensors)),
            described(stack, tensors),
        )

    def layers(
        self, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor | None] = ()
    ) -> array[int]:
        """The layers in the kernel's format, with the addresses of their gradients, if any. The
        description of the forward pass is reused if no tensor has moved.
        """
        values = self.values
        if gradients and list(map(address, tensors)) != self.addresses:
            values = described(self.stack, tensors)
        numbers = array("q", values)
        for i, gradient in enumerate(gradients):
            numbers[len(LAYER) * (i // 3 + 1) - 3 + i % 3] = address(gradient)
        return numbers

    def solve(self, steps: Steps, layers: array[int]) -> Solve:
        """The solve in the kernel's format, without the addresses of states, gradients and tape."""
        (batch, width), method, saved = self.shape, method_of(self.tableau), steps.saved
        n_steps, threads = max(steps.grid.shape[0] - 1, 0), library.threads()
        solve = Solve(
            batch, width, len(self.stack.layers), n_steps, method.n_stages, len(saved.steps),
            steps.keep, threads, steps.capacity, self.per_sample, *(self.stack.image or (0, 0)),
            self.stack.coupling is not None, self.clock.t0, self.clock.t1,
            layers.buffer_info()[0], *method.addresses,
            steps.grid.data_ptr(), saved.steps.buffer_info()[0],
            0 if saved.inside is None else saved.inside.buffer_info()[0],
            method.degree, addressof(method.dense),
        )  # fmt: skip
        solve.held = layers, saved, method
        return solve


class Saved(NamedTuple):
    """Where states are saved, ascending.

    Attributes:
        steps: the step of each, counted from 0; the end of the last step begins another one.
        inside: the fractions of these steps; None if all are 0, so that all lie on the grid.
    """

    steps: array[int]
    inside: array[float] | None = None

    @classmethod
    def at(cls, places: Sequence[tuple[int, float]]) -> Saved:
        """States at the given steps and fractions of these, ascending."""
        steps, inside = array("q", [i for i, _ in places]), array("d", [x for _, x in places])
        return cls(steps, inside if any(inside) else None)

    def fractions(self, grid: Tensor) -> Tensor:
        """As fractions of the interval."""
        found = grid[list(self.steps)]
        if self.inside is None:
            return found
        after = grid[[min(i + 1, len(grid) - 1) for i in self.steps]]
        inside = torch.tensor(self.inside, dtype=torch.float64, device="cpu")
        return torch.where(inside == 0, found, found + inside * (after - found))


NOWHERE = Saved(array("q"))


class Steps(NamedTuple):
    """The steps of a solve, and what is kept of them for the backward pass.

    Attributes:
        grid: the fractions, ``(steps + 1,)`` or ``(steps + 1, batch)``.
        saved: where states are saved.
        keep: `NOTHING`, `STATES` or `STAGES`.
        capacity: the number of steps that fit on a tape of stages.
        tape: the memory; None if nothing is kept.
    """

    grid: Tensor
    saved: Saved = NOWHERE
    keep: int = NOTHING
    capacity: int = 0
    tape: Block | None = None


def described(stack: LayerStack, tensors: Sequence[Tensor | None]) -> list[int]:
    """The layers in the kernel's format."""
    values: list[int] = []
    activations = [layer.activation for layer in stack.layers]
    for i in range(len(tensors) // 3):  # the coupling of a divergence counts as a layer
        weight, bias, time_weight = tensors[3 * i : 3 * i + 3]
        assert weight is not None
        fan_out, fan_in, *_ = weight.shape
        stride_out, stride_in, *tap_stride = weight.stride()
        values += (
            fan_in,
            fan_out,
            prod(weight.shape[2:]),
            stride_in,
            stride_out,
            *(tap_stride[-1:] or (0,)),
            0 if bias is None else bias.stride(0),
        )
        values.append(0 if time_weight is None else time_weight.stride(0))
        values += (
            NUMBERS[activations[i] if i < len(activations) else "identity"],
            weight.data_ptr(),
            address(bias),
            address(time_weight),
        )
        values += 0, 0, 0  # addresses of gradients
    return values


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class Method(NamedTuple):
    """A method as arrays: the stages that advance the solution, with the weights of its dense
    output, and all stages.
    """

    n_stages: int
    addresses: tuple[int, int, int]  # of a, b and c
    a: Any
    b: Any
    c: Any
    degree: int
    dense: Any
    all_a: Any
    all_b: Any
    all_c: Any
    error: Any


@lru_cache(maxsize=64)
def method_of(tableau: ButcherTableau) -> Method:
    def numbers(values: Sequence[float]) -> Any:
        return (c_double * len(values))(*values)

    def square(n: int) -> Any:
        return numbers([x for row in tableau.a[:n] for x in (*row, *[0.0] * (n - len(row)))])

    n = tableau.advancing_stages
    error = () if tableau.embedded is None else tableau.error_weights
    advancing = square(n), numbers(tableau.b[:n]), numbers(tableau.c[:n])
    a, b, c = map(addressof, advancing)
    dense = numbers([x for row in tableau.continuous for x in row])
    every = square(tableau.stages), numbers(tableau.b), numbers(tableau.c)
    degree = len(tableau.continuous[0])
    return Method(n, (a, b, c), *advancing, degree, dense, *every, numbers(error))
