"""Describe solves of layers to Triton's kernels, and launch these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.layers import LayerStack
from trueode.solvers.backends.gpu import library
from trueode.solvers.backends.served import grid_of
from trueode.solvers.clock import Clock
from trueode.solvers.gradients.replay import Given, replay_gradients
from trueode.solvers.problem import Problem
from trueode.solvers.solution import Counter
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid
from trueode.solvers.tableau import ButcherTableau
from trueode.transfer import send

BLOCK = 16  # samples of a program, and the least width that tl.dot takes
MOST_PROGRAMS = 1024  # of a backward pass, each of which has gradients of all layers
MOST_OF_FOUR_WARPS = 3 * 2**13  # bytes; beyond this, eight warps keep a program in registers


def widths_of(stack: LayerStack, shape: Sequence[int]) -> list[int]:
    """The widths of the state and of all layers' outputs in the kernels, for a state of a shape.
    Rows that all layers treat alike are samples of their own.
    """
    widths = stack.widths(shape)
    rows = {n // layer.weight.shape[1] for n, layer in zip(widths, stack.layers, strict=True)}
    alike = len(rows) == 1 and all(layer.taps == 1 for layer in stack.layers)
    n_rows = rows.pop() if alike else 1
    return [n // n_rows for n in (*widths, widths[0])]


def size(widths: Sequence[int], tableau: ButcherTableau, dtype: torch.dtype) -> int:
    """The bytes of what a program holds throughout a backward pass: weights and their gradients,
    and the stages of a step.
    """
    padded = list(map(_padded, widths))
    weights = sum(a * b for a, b in pairwise(padded))
    stages = _padded(tableau.advancing_stages, 1) * BLOCK * padded[0]
    return (2 * weights + stages) * dtype.itemsize


def _padded(n: int, least: int = BLOCK) -> int:
    """The next power of two."""
    return max(least, 1 << (n - 1).bit_length())


class Task(NamedTuple):
    """A solve, described to the kernels.

    Attributes:
        stack: the layers, all as matrices.
        widths: those of the state and of the layers' outputs.
        grid: the fractions of the steps.
        places: the grid points at which states are saved, ascending; None: at none.
    """

    stack: LayerStack
    widths: list[int]
    solver: FixedStep | OnGrid
    clock: Clock
    counter: Counter
    grid: Tensor
    places: tuple[int, ...] | None

    @classmethod
    def of(
        cls, problem: Problem, stack: LayerStack, widths: list[int], places: tuple[int, ...]
    ) -> Task:
        """The task of a problem with the given layers; see `Task`."""
        solver, clock = problem.solver, problem.clock
        assert not isinstance(solver, Adaptive)
        grid = grid_of(solver, clock.length)
        saved = None if problem.points is None else places
        return cls(stack, widths, solver, clock, problem.counter, grid, saved)

    @property
    def n_steps(self) -> int:
        """The number of steps."""
        return len(self.grid) - 1

    @property
    def n_stages(self) -> int:
        """The number of stages of a step."""
        return self.solver.tableau.advancing_stages

    def forward(self, inputs: Sequence[Any], keeps: bool) -> tuple[Tensor, Tensor | None, Kept]:
        """Solve.

        Args:
            inputs: the initial state ``(batch, width)``, and weight, bias and time weight of each
                layer.
            keeps: whether to keep what the backward pass needs.

        Returns:
            The final states, ``(batch, width)``, the saved ones, if any, ``(times, batch, width)``,
            and what is kept.
        """
        kernels, layers = library.kernels(), self.stack.layers
        z, *tensors = inputs
        z = z.detach()
        form = kernels.Form(
            tuple(self.widths),
            tuple(map(_padded, self.widths)),
            tuple(layer.activation for layer in layers),
            tuple(layer.time_weight is not None for layer in layers),
            (0, *accumulate(sum(x.numel() for x in layer.tensors) for layer in layers)),
            (self.n_stages, _padded(self.n_stages, 1)),
            BLOCK,
            keeps,
            bool(self.places),
        )
        given = kernels.Given(
            torch.cat([x.detach().reshape(-1) for x in tensors if x is not None]),
            _table(self.solver, self.clock, z),
            _first_saved(self.places or (), self.n_steps, z.device),
        )
        final, entering = _new(z, *z.shape), z
        zs = None if self.places is None else _new(z, len(self.places), *z.shape)
        if keeps:
            entering = _new(z, self.n_steps, self.n_stages, *z.shape)
        states = kernels.States(z, final, z if zs is None else zs, entering)
        kept = Kept(kernels, self, form, given, entering)
        kept.launch(kernels.forward, -(-len(z) // BLOCK), states)
        self.counter.add(self.n_steps * self.n_stages)
        return final, zs, kept


class Kept(NamedTuple):
    """See `trueode.solvers.gradients.recorded`.

    Attributes:
        kernels: the module of the kernels.
        form: what the kernels are compiled for, a `kernels.Form`.
        known: what they read, a `kernels.Given`.
        entering: the states at which the field was evaluated, ``(steps, stages, batch, width)``.
    """

    kernels: Any
    task: Task
    form: Any
    known: Any
    entering: Tensor

    def launch(self, kernel: Any, programs: int, states: Any) -> None:
        """Launch a kernel for ``states``, which it reads and writes."""
        few = size(self.form.widths, self.task.solver.tableau, states.final.dtype)
        warps = 4 if few <= MOST_OF_FOUR_WARPS else 8
        with torch.cuda.device_of(states.final):  # type: ignore[no-untyped-call]
            kernel[(programs,)](
                self.known, states, len(states.first), self.task.n_steps, self.form, num_warps=warps
            )

    def given(self) -> Given:
        """The solve, for gradients that autograd must compute."""
        stack, _, solver, clock, counter, grid, places = self.task
        return Given(stack, solver.tableau, clock, counter, grid, grid[list(places or ())])

    def pull_back(
        self, z: Tensor, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients of the initial state and the layers, from those of the final and saved states.
        If the kernel cannot be compiled or run, autograd computes them.
        """
        kernels, task = self.kernels, self.task
        final, *saved = [g.contiguous() for g in gradients]
        programs = min(-(-len(z) // BLOCK), MOST_PROGRAMS)
        first, parts = _new(z, *z.shape), _new(z, programs, self.known.layers.numel())
        known = kernels.Gradients(final, (*saved, final)[0], self.entering, first, parts)
        try:
            self.launch(kernels.backward, programs, known)
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # see `triton_layers.solve`
            library.give_up(failure)
            return replay_gradients(self.given(), z, tensors, gradients)
        task.counter.add(task.n_steps * task.n_stages)
        sizes = [0 if x is None else x.numel() for x in tensors]
        found = torch.split(parts.sum(0), sizes)
        return [
            first,
            *(None if x is None else g.view(x.shape) for x, g in zip(tensors, found, strict=True)),
        ]


def _new(like: Tensor, *shape: int) -> Tensor:
    """Memory that a kernel fills."""
    return like.new_empty(shape)


@lru_cache(maxsize=64)
def _first_saved(places: tuple[int, ...], n_steps: int, device: torch.device) -> Tensor:
    """See `kernels.Given`."""
    at = torch.tensor(places, dtype=torch.int64, device="cpu")
    until = torch.bincount(at, minlength=n_steps + 1).cumsum(0)
    return send(torch.cat([until.new_zeros(1), until]), device, torch.int32)


def _table(solver: FixedStep | OnGrid, clock: Clock, z: Tensor) -> Tensor:
    """See `kernels.Given`; cached for solvers that are fast to compare."""
    if isinstance(solver, FixedStep):
        return _equal_table(solver, (clock.t0, clock.t1), z.dtype, z.device)
    return _table_of(solver, clock)


@lru_cache(maxsize=64)
def _equal_table(
    solver: FixedStep, ends: tuple[float, float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return _table_of(solver, Clock(ends, torch.empty(0, dtype=dtype, device=device)))


def _table_of(solver: FixedStep | OnGrid, clock: Clock) -> Tensor:
    tableau, grid = solver.tableau, grid_of(solver, clock.length)
    n, before, after = tableau.advancing_stages, grid[:-1, None], grid[1:, None]
    rows = [[*row, *[0.0] * (n - len(row))] for row in (*tableau.a[:n], tableau.b[:n])]
    nodes, weights = (
        torch.tensor(x, dtype=torch.float64, device="cpu") for x in (tableau.c[:n], rows)
    )
    h = after - before
    times = clock.tensor(torch.where(nodes == 1, after, before + nodes * h))
    sizes = send(h * clock.length * weights.view(1, -1), times.device, times.dtype)
    return torch.cat([times, sizes], dim=1)
