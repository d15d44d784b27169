"""Solves by the compiled kernel, with their gradients: from tensors to addresses and back.

The gradient is the discrete one, of the steps that were taken (Sandu, 2006, eq. 8), as in gradients/tape.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_double, c_int64
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.errors import SolveError
from trueode.layers import LayerStack
from trueode.solvers.backends.native import library
from trueode.solvers.backends.native.library import ACTIVATIONS, LAYER, AdaptiveSolve, Kernel, Solve
from trueode.solvers.clock import Clock
from trueode.solvers.control import Reduce
from trueode.solvers.gradients.replay import Given, must_be_recorded, replay_gradients
from trueode.solvers.integrate import Outcome
from trueode.solvers.saving import SavePoints
from trueode.solvers.solution import Counter
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.tableau import ButcherTableau

NOTHING, STATES, STAGES = range(3)  # what a forward pass keeps
LARGEST_TAPE = 2**25  # bytes: beyond them stages are computed again, which takes less time than fresh memory
MOST_NUMBERS = 2**15  # in a stage of one sample: larger ones leave the cache, and PyTorch's convolutions take less time
FLOPS_EACH = 1e6  # that a thread must have to do to be worth its waking


def integrate(
    stack: LayerStack,
    clock: Clock,
    z: Tensor,
    solver: Solver,
    points: SavePoints | None,
    saved: Sequence[int] | None,
    counter: Counter,
    *,
    recompute: bool,
    reduce: Reduce | None,
) -> Outcome | None:
    """Solve by the kernel, with a gradient for the initial state and the layers where they require it.

    Args:
        stack: the field.
        clock: the times.
        z: the initial state ``(batch, width)``.
        solver: the method and its steps.
        points: where states are wanted.
        saved: the numbers of these grid points; None: they lie elsewhere, or may do so.
        counter: counts evaluations of the field.
        recompute: keep only states, and compute stages again for the gradient.
        reduce: sums over the ranks that share one batch.

    Returns:
        The outcome; None where the kernel is not there, is not made for this, or fails: the portable path serves all, and
        tells what is wrong.
    """
    kernel = library.kernel()
    if kernel is None or not _is_served(stack, clock, z):
        return None
    tensors = [x for layer in stack.layers for x in (layer.weight, layer.bias, layer.time_weight)]
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, *tensors))
    keep = NOTHING if not wanted else STATES if recompute else STAGES
    run = _Run(kernel, stack, z.shape[1], solver.tableau, clock, counter)
    try:
        if isinstance(solver, Adaptive):
            inside = points is not None and any(theta not in (0.0, 1.0) for theta in points.fractions)
            return None if inside or reduce is not None else _chosen(run, solver, z, tensors, points, keep)
        if saved is None:
            return None
        grid = _grid(solver, clock.length) if isinstance(solver, FixedStep) else _as_grid(solver, clock.length)
    except SolveError:
        return None
    run.each = grid.dim() == 2
    if run.each and grid.shape[1] != len(z):
        return None
    order = sorted(range(len(saved)), key=saved.__getitem__)
    run.grid, run.saved = grid, tuple(saved[i] for i in order)
    final, zs = _NativeSolve.apply(run, keep, z, *tensors) if keep else run.forward(z, tensors, keep)
    counter.add((len(grid) - 1) * run.method.n_stages)
    if list(run.saved) != list(saved):
        zs = zs[torch.tensor(order).argsort()]
    return Outcome(final, None if points is None else zs, grid, len(grid) - 1, 0)


_expected: dict[Adaptive, int] = {}  # steps that solvers took when they were last used


def _chosen(
    run: _Run, solver: Adaptive, z: Tensor, tensors: list[Tensor | None], points: SavePoints | None, keep: int
) -> Outcome | None:
    run.each = solver.per_sample
    with torch.no_grad():
        outcome = run.choose(solver, z, tensors, keep)
    if outcome is None:
        return None
    if keep:
        outcome.z = _NativeSolve.apply(run, outcome.z, z, *tensors)[0]
    if points is not None:  # the ends alone
        states = [outcome.z if theta else z for theta in points.fractions]
        outcome.zs = torch.stack(states) if states else z.new_empty(0, *z.shape)
    return outcome


def _is_served(stack: LayerStack, clock: Clock, z: Tensor) -> bool:
    """Whether the kernel does what calling the field would do."""
    return (
        z.device.type == "cpu"
        and z.dtype in (torch.float32, torch.float64)
        and z.numel() > 0
        and sum(stack.widths(z.shape[1])) <= MOST_NUMBERS
        and clock.length != 0
        and not clock.differentiable
        and not torch._C._is_tracing()
        and all(layer.activation in ACTIVATIONS for layer in stack.layers)
        and stack.layers[-1].activation == "identity"
        and _is_plain(z, z)
        and all(_is_plain(x, z) for layer in stack.layers for x in (layer.weight, layer.bias, layer.time_weight))
    )


def _is_plain(x: Tensor | None, z: Tensor) -> bool:
    """Whether a tensor is what lies at its address: numbers like those of the state, of no class of its own."""
    if x is None:
        return True
    alike = x.dtype == z.dtype and x.device == z.device and x.layout == torch.strided and x.numel() > 0
    return alike and type(x) in (Tensor, torch.nn.Parameter) and not x.is_neg()


def _as_grid(solver: FixedStep | OnGrid, length: float) -> Tensor:
    return torch.tensor(solver.fractions(length), dtype=torch.float64)


_grid = lru_cache(maxsize=64)(_as_grid)  # for solvers that are quickly told from one another


class _Method(NamedTuple):
    """A method as arrays: the stages that advance the solution, and all of them."""

    n_stages: int
    addresses: tuple[int, int, int]  # of these three
    a: Any
    b: Any
    c: Any
    all_a: Any
    all_b: Any
    all_c: Any
    error: Any


@lru_cache(maxsize=64)
def _method(tableau: ButcherTableau) -> _Method:
    def array(values: Sequence[float]) -> Any:
        return (c_double * len(values))(*values)

    def square(n: int) -> Any:
        return array([x for row in tableau.a[:n] for x in (*row, *[0.0] * (n - len(row)))])

    n = tableau.advancing_stages
    error = () if tableau.embedded is None else tableau.error_weights
    advancing = square(n), array(tableau.b[:n]), array(tableau.c[:n])
    a, b, c = map(addressof, advancing)
    return _Method(
        n,
        (a, b, c),
        *advancing,
        square(tableau.stages),
        array(tableau.b),
        array(tableau.c),
        array(error),
    )


class _Run:
    """A solve on its way forward and back."""

    def __init__(
        self, kernel: Kernel, stack: LayerStack, width: int, tableau: ButcherTableau, clock: Clock, counter: Counter
    ) -> None:
        self.kernel, self.stack, self.tableau, self.clock, self.counter = kernel, stack, tableau, clock, counter
        self.width = width
        self.method = _method(tableau)
        self.each = False
        self.grid = torch.empty(0)
        self.saved: tuple[int, ...] = ()
        self.tape: _Tape | None = None
        self.capacity = self.calls = 0
        self.keep = NOTHING
        self.solve: Solve | None = None
        self.addresses: list[int] = []
        self.values: list[int] = []

    def forward(self, z: Tensor, tensors: Sequence[Tensor | None], keep: int) -> tuple[Tensor, Tensor]:
        """The final state and the saved ones, ``(saved, batch, width)``; of stages no more are kept than is worth it."""
        z, wide = z.detach(), z.dtype == torch.float64
        final, zs = torch.empty_like(z), z.new_empty(len(self.saved), *z.shape)
        self.capacity = len(self.grid) - 1
        self.solve = solve = self._solve(z, self._layers(tensors), keep)
        solve.z0, solve.z1, solve.zs = z.data_ptr(), final.data_ptr(), zs.data_ptr()
        if keep:
            size = self.kernel.tape_size(wide, solve)
            if keep == STAGES and size > LARGEST_TAPE:
                solve.keep = STATES
                size = self.kernel.tape_size(wide, solve)
            self.tape = _Tape(size)
            solve.tape = self.tape.address
        self.keep = solve.keep
        self.kernel.forward(wide, solve)
        return final, zs

    def choose(self, solver: Adaptive, z: Tensor, tensors: Sequence[Tensor | None], keep: int) -> Outcome | None:
        """A solve that chooses its steps; None where it fails.

        Stages are kept where there is room for those of all steps. Their number is not known beforehand: a solve that
        takes more than were expected is done again, so that what is kept does not depend on solves before this one.
        """
        wide, most = z.dtype == torch.float64, 0
        if keep == STAGES and not self.each:
            self.capacity = 1
            most = LARGEST_TAPE // self.kernel.tape_size(wide, self._solve(z, self._layers(tensors), STAGES))
        expected = _expected.get(solver, 8)
        self.capacity = min(expected + expected // 4 + 2, most)
        outcome = self._choose(solver, z, tensors, keep)
        if outcome is None:
            return None
        if len(_expected) > 1000:
            _expected.clear()
        n_steps = _expected[solver] = len(self.grid) - 1
        if self.keep == STATES and n_steps < most:
            self.capacity = n_steps + 1
            outcome = self._choose(solver, z, tensors, keep)
            assert outcome is not None
        self.counter.add(self.calls)
        return outcome

    def _choose(self, solver: Adaptive, z: Tensor, tensors: Sequence[Tensor | None], keep: int) -> Outcome | None:
        z, wide, columns = z.detach(), z.dtype == torch.float64, len(z) if self.each else 1
        final, counts = torch.empty_like(z), torch.zeros(2, columns, dtype=torch.long)
        layers, method = self._layers(tensors), self.method
        solve = self._solve(z, layers, STATES if keep and not self.capacity else keep)
        solve.z0, solve.z1 = z.data_ptr(), final.data_ptr()
        if solve.keep == STAGES:
            self.tape = _Tape(self.kernel.tape_size(wide, solve))
            solve.tape = self.tape.address
        adaptive = AdaptiveSolve(
            solve,
            self.tableau.stages,
            self.tableau.fsal,
            self.tableau.embedded_order + 1,
            solver.max_steps,
            *(addressof(x) for x in (method.all_a, method.all_b, method.all_c, method.error)),
            solver.rtol,
            solver.atol,
            solver.first_step or 0.0,
            accepted=counts[0].data_ptr(),
            rejected=counts[1].data_ptr(),
        )
        if not self.kernel.solve_adaptive(wide, adaptive):
            return None
        shape = (columns,) if self.each else ()
        grid = torch.empty(adaptive.n_rows + 1, *shape, dtype=torch.float64)
        errors = torch.empty(adaptive.n_rows, *shape, dtype=torch.float64)
        self.grid, self.keep, self.calls, address = grid, adaptive.solve.keep, adaptive.calls, None
        if self.keep == STATES:
            solve.n_steps, solve.keep = adaptive.n_rows, STATES
            self.tape = _Tape(self.kernel.tape_size(wide, solve))
            address = self.tape.address
        self.kernel.take(wide, adaptive, grid.data_ptr(), errors.data_ptr(), address)
        accepted, rejected = counts if self.each else (int(x) for x in counts)
        return Outcome(final, None, grid, accepted, rejected, errors)

    def backward(
        self, gradient: Tensor, entering: Tensor | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of the initial state and the layers from those of the final state and the saved ones."""
        gradient, start = gradient.contiguous(), torch.empty_like(gradient, memory_format=torch.contiguous_format)
        found = [None if x is None else x.new_empty(x.shape) for x in tensors]
        layers = self._layers(tensors, found)
        solve = self.solve or self._solve(gradient, layers, self.keep)
        assert self.tape is not None
        solve.layers, solve.g1, solve.g0 = addressof(layers), gradient.data_ptr(), start.data_ptr()
        solve.tape = self.tape.address
        if entering is not None:
            entering = entering.contiguous()
            solve.gs = entering.data_ptr()
        if self.keep == STATES:
            self.counter.add((len(self.grid) - 1) * self.method.n_stages)
        self.kernel.backward(gradient.dtype == torch.float64, solve)
        return start, found

    def _solve(self, z: Tensor, layers: Any, keep: int) -> Solve:
        method, n_steps, saved = self.method, max(self.grid.shape[0] - 1, 0), self.saved
        batch, width = z.shape
        flops = 2 * self.products * batch * max(n_steps, 8) * method.n_stages
        threads = min(library.threads(), 1 + int(flops / FLOPS_EACH))
        solve = Solve(
            batch, width, len(self.stack.layers), n_steps, method.n_stages, len(saved), keep, threads, self.capacity, self.each,
            self.clock.t0, self.clock.t1,
            addressof(layers), *method.addresses, self.grid.data_ptr(),
        )  # fmt: skip
        numbers = (c_int64 * len(saved))(*saved)
        solve.saved = addressof(numbers)
        solve.held = layers, numbers  # they live as long as their addresses are needed
        return solve

    def _layers(self, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor | None] = ()) -> Any:
        """The layers as the kernel takes them; the backward pass meets those of the forward pass, where nothing moved them."""
        addresses = list(map(_address, tensors))
        if addresses != self.addresses:
            self.addresses, self.values = addresses, self._described(tensors)
        values = (c_int64 * len(self.values))(*self.values)
        for i, gradient in enumerate(gradients):
            values[len(LAYER) * (i // 3 + 1) - 3 + i % 3] = _address(gradient)
        return values

    def _described(self, tensors: Sequence[Tensor | None]) -> list[int]:
        values: list[int] = []
        self.products = 0  # of a sample, as if there were all rows that the taps ask for
        widths = self.stack.widths(self.width)
        for i, each in enumerate(self.stack.layers):
            weight, bias, time_weight = tensors[3 * i : 3 * i + 3]
            assert weight is not None
            assert bias is not None
            fan_out, fan_in, *taps = weight.shape
            stride_out, stride_in, *tap_stride = weight.stride()
            self.products += widths[i] * fan_out * (taps[0] if taps else 1)
            values += fan_in, fan_out, *(taps or (1,)), stride_in, stride_out, *(tap_stride or (0,)), bias.stride(0)
            values.append(0 if time_weight is None else time_weight.stride(0))
            values += ACTIVATIONS[each.activation], weight.data_ptr(), bias.data_ptr(), _address(time_weight)
            values += 0, 0, 0  # addresses of gradients
        return values


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class _Tape:
    """Memory that is used again once the graph that needs it is gone: touching fresh memory takes as long as a solve."""

    spare: list[Tensor] = []  # noqa: RUF012 - shared on purpose
    MOST = 4

    def __init__(self, size: int) -> None:
        fitting = [x for x in self.spare if size <= x.numel() <= 2 * size + 4096]
        self.memory = min(fitting, key=Tensor.numel) if fitting else torch.empty(size, dtype=torch.uint8)
        self.spare[:] = [x for x in self.spare if x is not self.memory]
        self.address = self.memory.data_ptr()

    def __del__(self) -> None:
        if self.memory.numel() <= LARGEST_TAPE:
            self.spare.append(self.memory)
            del self.spare[: -self.MOST]


class _NativeSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, done: Any, z: Tensor, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        """``done``: what to keep, or the final state where the forward pass has been done."""
        ctx.run = run
        ctx.save_for_backward(z, *tensors)
        if isinstance(done, Tensor):
            return done, z.new_empty(0)
        return run.forward(z, tensors, done)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        z, *tensors = ctx.saved_tensors  # also tells whether a weight was changed in place since the forward solve
        run: _Run = ctx.run
        if must_be_recorded(gradients):
            given = Given(run.stack, run.tableau, run.clock, run.counter, run.grid, run.saved)
            return None, None, *replay_gradients(given, z, tensors, gradients)
        start, found = run.backward(gradients[0], gradients[1] if run.saved else None, tensors)
        return None, None, start, *found
