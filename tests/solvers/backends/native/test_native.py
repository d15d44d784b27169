"""The compiled kernel gives what the portable path gives, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trueode import catalog
from trueode.catalog import METHODS
from trueode.errors import SolveError
from trueode.fields import ConvField
from trueode.layers import Layer, LayerStack
from trueode.solvers import (
    Adaptive,
    Backprop,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solution,
    Solver,
    solve,
)
from trueode.solvers.backends import native
from trueode.solvers.backends.native import layers as kernel
from trueode.solvers.backends.native import library, runtime
from trueode.solvers.problem import Problem
from trueode.solvers.stack import stack_field

pytestmark = pytest.mark.skipif(
    not native.instruction_sets(), reason=f"there is no kernel: {native.describe()}"
)

SETS = native.instruction_sets()
BACKPROP = Backprop()
ACTIVATIONS = list(catalog.ACTIVATIONS)


class Field(nn.Module):
    """Layers of given widths, some of which act on each of several rows of a sample.

    Args:
        layers: inputs, outputs and activation of each layer.
        timed: whether the first layer sees the time.
        taps: the number of taps of each layer; above 1 it is a convolution along the rows.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int, str]],
        timed: bool = False,
        dtype: torch.dtype = torch.double,
        taps: Sequence[int] | None = None,
    ):
        super().__init__()
        draw = torch.Generator().manual_seed(len(layers))

        def numbers(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=torch.double).to(dtype))

        # weights have the shapes of nn.Linear and nn.Conv1d
        shapes = [
            (o, i, *(() if n == 1 else (n,)))
            for (i, o, _), n in zip(layers, taps or [1] * len(layers), strict=True)
        ]
        self.weights = nn.ParameterList(
            nn.Parameter(numbers(*shape) / (shape[1] ** 0.5)) for shape in shapes
        )
        self.biases = nn.ParameterList(nn.Parameter(numbers(o) / 2) for _, o, _ in layers)
        self.time_weight = numbers(layers[0][1]) if timed else None
        self.activations = [activation for *_, activation in layers]

    def layer_stack(self, shape: torch.Size) -> LayerStack:
        times = [self.time_weight, *[None] * len(self.activations)]
        rows = zip(self.weights, self.biases, self.activations, times, strict=False)
        return LayerStack(tuple(Layer(*row) for row in rows))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return stack_field(self.layer_stack(z.shape))(t, z)


class Called(nn.Module):
    """A field that can only be called."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        value: Tensor = self.field(t, z)
        return value


def dense(
    width: int, hidden: int, activation: str, timed: bool = False, dtype: torch.dtype = torch.double
) -> Field:
    layers = [
        (width, hidden, activation),
        (hidden, hidden, activation),
        (hidden, width, "identity"),
    ]
    return Field(layers, timed, dtype)


def states(batch: int, width: int, dtype: torch.dtype = torch.double) -> Tensor:
    draw = torch.Generator().manual_seed(batch)
    return torch.randn(batch, width, generator=draw, dtype=torch.double).to(dtype)


def results(
    field: nn.Module,
    z0: Tensor,
    solver: Solver,
    t: tuple[float, float] = (0.0, 1.0),
    gradient: Backprop | Checkpoint = BACKPROP,
    save_at: Sequence[float] | None = None,
) -> tuple[Solution, list[Tensor]]:
    """A solution, with states and gradients of a function of them."""
    z0 = z0.clone().requires_grad_()
    solution = solve(field, z0, t, solver=solver, gradient=gradient, save_at=save_at)
    total = solution.z.square().sum() / len(z0)
    found = [solution.z.detach()]
    if solution.zs is not None:
        total = total + solution.zs.sin().sum() / len(z0)
        found.append(solution.zs.detach())
    return solution, [*found, *torch.autograd.grad(total, [z0, *field.parameters()])]


def portable(*args: object, **options: object) -> tuple[Solution, list[Tensor]]:
    with native.using("off"):
        return results(*args, **options)


def assert_same(
    found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-12
) -> None:
    for x, y in zip(found, expected, strict=True):
        size = float(y.abs().max().clamp(min=1e-3)) if y.numel() else 1.0
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * size)


def assert_as_accurate(
    found: Sequence[Tensor], other: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """Check that errors in single precision are like those of the portable path."""
    for x, y, z in zip(found, other, exact, strict=True):
        size = z.abs().max().clamp(min=1e-3)
        error, usual = ((each.double() - z).abs().max() / size for each in (x, y))
        assert error <= 8 * usual + 2e-6


@pytest.fixture(autouse=True)
def only_the_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a solve falls back to the portable path without the mark ``falls_back``."""
    if "falls_back" in request.keywords:
        return
    original = kernel.accepts

    def watched(problem: Problem) -> bool:
        accepted = original(problem)
        assert accepted or library.kernel() is None or problem.layers is None
        return accepted

    monkeypatch.setattr(kernel, "accepts", watched)
    monkeypatch.setattr(kernel, "generic", None)  # failed solves would be passed to it


GIVEN: list[Solver] = [FixedStep(name, n_steps=5) for name in METHODS]
GIVEN += [
    FixedStep("euler", n_steps=70),
    FixedStep("rk4", step_size=0.03),
    OnGrid("midpoint", (0.0, 0.1, 0.1, 0.7, 1.0)),
]


@pytest.mark.parametrize("timed", [False, True], ids=["autonomous", "timed"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("solver", GIVEN, ids=str)
def test_given_steps(solver: Solver, activation: str, timed: bool) -> None:
    field, z0, t = dense(3, 10, activation, timed), states(37, 3), (0.4, -0.9)
    solution, expected = portable(field, z0, solver, t)
    for name, gradient in product(SETS, (Backprop(), Checkpoint())):
        with native.using(name):
            again, found = results(field, z0, solver, t, gradient)
        assert_same(found, expected)
        assert (again.nfe, again.n_steps) == (solution.nfe, solution.n_steps)
        assert torch.equal(again.grid, solution.grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 128, 1000])
@pytest.mark.parametrize("width", [1, 3, 10, 64, 100, 257])
def test_shapes(width: int, batch: int, dtype: torch.dtype) -> None:
    """Widths of state and layers, and sizes of batches, around those of blocks and tiles."""
    solver = FixedStep("midpoint", n_steps=2)
    for hidden in {width, 10}:
        field, exact = dense(width, hidden, "tanh", True, dtype), dense(width, hidden, "tanh", True)
        exact.load_state_dict(field.state_dict())  # rounded, as those of the field
        z0 = states(batch, width, dtype)
        expected, other = portable(exact, z0.double(), solver)[1], portable(field, z0, solver)[1]
        for name in SETS:
            with native.using(name):
                found = results(field, z0, solver)[1]
            if dtype == torch.float64:
                assert_same(found, expected)
            else:
                assert_as_accurate(found, other, expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(activation: str, dtype: torch.dtype, name: str) -> None:
    """One step of a layer that is only an activation, on numbers of all sizes."""
    sizes = torch.cat(
        [torch.logspace(-30, 4, 400, dtype=torch.double), torch.linspace(0.01, 30, 3000).double()]
    )
    x = torch.cat([sizes, -sizes, torch.zeros(1, dtype=torch.double)]).to(dtype)[:, None]
    field = Field([(1, 1, activation), (1, 1, "identity")], dtype=dtype)
    with torch.no_grad():
        for weight in field.weights:
            weight.fill_(1.0)
        for bias in field.biases:
            bias.zero_()
    wide = Field([(1, 1, activation), (1, 1, "identity")])
    wide.load_state_dict(field.state_dict())
    solver = FixedStep("euler", n_steps=1)

    def value_and_slope(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        z = solve(field, torch.zeros_like(x) + x, solver=solver).z - x  # what the step adds
        return z.detach(), torch.autograd.grad(z.sum(), x)[0]

    with native.using(name):
        found = value_and_slope(field, x)
    with native.using("off"):
        exact = value_and_slope(wide, x.double())
    eps = torch.finfo(dtype).eps
    for y, z in zip(found, exact, strict=True):
        assert bool(((y.double() - z).abs() <= 8 * eps * (x.double().abs() + z.abs() + 1)).all())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_number_of_threads_plays_no_role(dtype: torch.dtype, name: str) -> None:
    field, z0 = dense(3, 40, "silu", True, dtype), states(777, 3, dtype)
    before = torch.get_num_threads()
    solvers: list[Solver] = [FixedStep("rk4", n_steps=9), Adaptive("dopri5", 1e-4, 1e-4)]
    solvers += [Adaptive("bosh3", 1e-4, 1e-4, per_sample=True)]
    with native.using(name):
        active = library.kernel()
        assert active is not None
        for solver in solvers:
            try:
                found = []
                for whose in {library.threads_of_torch(), None}:  # and helpers of our own
                    active.library.trueode_share(whose)
                    for threads in (1, 2, 3, 7):
                        torch.set_num_threads(threads)
                        found.append(results(field, z0, solver)[1])
            finally:
                torch.set_num_threads(before)
                active.library.trueode_share(library.threads_of_torch())
            for others in found[1:]:
                assert all(torch.equal(x, y) for x, y in zip(found[0], others, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize("whose", ["OpenMP's", "our own"])
def test_a_fork_of_a_process_that_has_used_threads_solves(whose: str) -> None:
    """A fork has none of the threads, so waiting for them would never end."""
    script = """
import os, signal, sys, torch
from trueode import FixedStep, solve
from trueode.fields import build_field
from trueode.solvers.backends.native import library
torch.set_num_threads(2)
if sys.argv[1] == "our own":
    library.kernel().library.trueode_share(None)
field, z0 = build_field("linear_odenet", (2,), 32, "tanh"), torch.rand(500, 2)
def solved():
    with torch.no_grad():
        return solve(field, z0, solver=FixedStep("rk4", n_steps=50)).z
first = solved()
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if torch.equal(solved(), first) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(solved(), first)
"""
    subprocess.run([sys.executable, "-c", script, whose], check=True, timeout=300)


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.kind == "adaptive"]
)
def test_chosen_steps(method: str, per_sample: bool, activation: str) -> None:
    """The same steps, accepted and rejected, the same states and gradients."""
    for batch, timed, first_step in ((1, True, None), (37, False, None), (37, True, 0.9)):
        field, z0 = dense(3, 10, activation, timed), 2 * states(batch, 3)
        solver = Adaptive(method, 1e-4, 1e-6, per_sample=per_sample, first_step=first_step)
        solution, expected = portable(field, z0, solver, (0.2, 2.5))
        for name in SETS:
            with native.using(name):
                again, found = results(field, z0, solver, (0.2, 2.5))
            # the first step results from a difference of close numbers
            assert_same(found, expected, 1e-7)
            assert_same_steps(again, solution, exact=method != "dopri8")


def assert_same_steps(again: Solution, solution: Solution, exact: bool) -> None:
    assert again.nfe == solution.nfe
    for x, y in ((again.n_steps, solution.n_steps), (again.n_rejected, solution.n_rejected)):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
    # the error estimate of dopri8 is a small difference of large numbers
    near, share = (1e-6, 1e-3) if exact else (1e-3, 0.1)
    torch.testing.assert_close(again.grid, solution.grid, rtol=0, atol=near)
    assert again.errors is not None
    torch.testing.assert_close(again.errors, solution.errors, rtol=share, atol=near, equal_nan=True)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.kind == "adaptive"]
)
def test_what_is_kept_does_not_depend_on_other_solves(
    method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is bit for bit the same for any expected number of steps.

    It does not matter whether stages are kept or computed again.
    """
    field, z0 = dense(3, 10, "silu", True), 2 * states(37, 3)
    tol = 1e-4 if METHODS[method].order < 4 else 1e-8
    solver = Adaptive(method, tol, tol, first_step=0.9)
    found = []
    with native.using(name):
        for room in (runtime.LARGEST_TAPE, 0):
            monkeypatch.setattr(runtime, "LARGEST_TAPE", room)
            for expected in (0, 1, 2, 3, 5, 99, 10**6):
                monkeypatch.setattr(runtime.RUNTIME, "expected", {solver: expected})
                solution, tensors = results(field, z0, solver, (0.2, 2.5))
                again = 0 if room else solution.n_steps * solver.tableau.advancing_stages
                assert solution.nfe_backward == again
                found.append((solution.nfe, tensors))
    assert solution.n_rejected
    for nfe, tensors in found[1:]:
        assert nfe == found[0][0]
        assert all(map(torch.equal, tensors, found[0][1]))


@pytest.mark.parametrize("name", SETS)
def test_chosen_steps_in_single_precision(name: str) -> None:
    """Rounding changes the steps, but the solution is as accurate."""
    for per_sample in (False, True):
        field, wide = dense(3, 10, "tanh", True, torch.float32), dense(3, 10, "tanh", True)
        wide.load_state_dict(field.state_dict())
        z0 = states(100, 3, torch.float32)
        exact = portable(wide, z0.double(), Adaptive("dopri5", 1e-10, 1e-10))[1]
        solver = Adaptive("dopri5", 1e-4, 1e-4, per_sample=per_sample)
        with native.using(name):
            found = results(field, z0, solver)[1]
        assert_as_accurate(found, portable(field, z0, solver)[1], exact)


UNBOUNDED = library.Kernel.solve_adaptive


def with_max_step(patch: pytest.MonkeyPatch, max_step: float) -> None:
    def bounded(self: library.Kernel, double: bool, adaptive: library.AdaptiveSolve) -> bool:
        adaptive.max_step = max_step
        return UNBOUNDED(self, double, adaptive)

    patch.setattr(library.Kernel, "solve_adaptive", bounded)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("per_sample", [False, True], ids=["together", "apart"])
def test_no_step_is_longer_than_max_step(
    per_sample: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it alone limits the steps, they are those of a fixed grid."""
    field, z0, t = dense(3, 10, "tanh", True), states(37, 3), (0.2, 2.2)
    solver = Adaptive("bosh3", 1e3, 1e3, per_sample=per_sample, first_step=2.0)
    for n_steps in (1, 3, 7, 100):
        with native.using(name), monkeypatch.context() as patch:
            with_max_step(patch, 2 / n_steps)
            found = results(field, z0, solver, t)[1]
            expected = results(field, z0, FixedStep("bosh3", n_steps=n_steps), t)[1]
        assert_same(found, expected)
    solver = Adaptive("bosh3", 1e-5, 1e-5, per_sample=per_sample)
    with native.using(name), monkeypatch.context() as patch:
        free, plain = results(field, z0, solver, t)
        longest = float(free.grid.diff(dim=0).max())
        with_max_step(patch, longest / 2)
        bounded, close = results(field, z0, solver, t)
        assert float(bounded.grid.diff(dim=0).max()) <= longest / 2 * (1 + 1e-8)
        assert_same(close, plain, 1e-3)
        for unbounded in (0.0, -1.0, 2.0):
            with_max_step(patch, unbounded)
            same = results(field, z0, solver, t)[1]
            assert all(map(torch.equal, same, plain))


@pytest.mark.parametrize("name", SETS)
def test_samples_on_grids_of_their_own(name: str) -> None:
    """A grid per sample; samples that arrive early take steps of size zero."""
    draw = torch.Generator().manual_seed(0)
    fractions = torch.rand(9, 37, generator=draw, dtype=torch.double).sort(0).values
    fractions[0], fractions[-1], fractions[-4:, ::3], fractions[4, 5] = 0, 1, 1, fractions[3, 5]
    solver = OnGrid("rk4", tuple(map(tuple, fractions.tolist())))
    field, z0 = dense(3, 10, "softplus", True), states(37, 3)
    expected = portable(field, z0, solver)[1]
    with native.using(name):
        for gradient in (Backprop(), Checkpoint()):
            assert_same(results(field, z0, solver, gradient=gradient)[1], expected)


@pytest.mark.parametrize("name", SETS)
def test_saved_states(name: str) -> None:
    """At grid points, in any order, more than once."""
    field, z0, solver = dense(2, 7, "relu", True), states(20, 2), FixedStep("rk4", n_steps=40)
    save_at = [1.0, 0.25, 0.0, 0.25, 0.975]
    expected = portable(field, z0, solver, save_at=save_at)[1]
    with native.using(name):
        for gradient in (Backprop(), Checkpoint()):
            assert_same(results(field, z0, solver, gradient=gradient, save_at=save_at)[1], expected)


WITHIN = (
    *(FixedStep(name, n_steps=4) for name, (kind, _) in METHODS.items() if kind == "fixed"),
    FixedStep("rk4", n_steps=1),
    OnGrid(Adaptive("dopri5", 1e-3, 1e-3).tableau, (0.0, 0.3, 0.4, 1.0)),
    *(Adaptive(name, 1e-4, 1e-4) for name in ("bosh3", "dopri5", "tsit5", "dopri8")),
    Adaptive("dopri5", 1e-9, 1e-9),  # more steps than are expected at first
)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, -1.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", WITHIN, ids=str)
def test_states_saved_inside_steps(solver: Solver, ends: tuple[float, float]) -> None:
    """Values, gradients and calls are those of the portable path, for several times in one step, in
    any order, repeated, on the grid and at the ends.
    """
    field, z0 = dense(2, 7, "silu", True), states(37, 2)
    (t0, t1), tolerance = ends, 1e-9 if isinstance(solver, Adaptive) else 1e-12
    for fractions in (
        [0.123, 0.13, 0.2, 0.6],
        [1.0, 0.99, 0.0, 0.5, 0.5, 0.25, 0.01],
        [0.9999],
        [0.001],
        [i / 60 for i in range(61)],
    ):
        save_at, said = [t0 + x * (t1 - t0) for x in fractions], []
        solution, expected = portable(field, z0, solver, save_at=save_at, t=ends)
        for name in SETS:
            with native.using(name):
                for gradient in (Backprop(), Checkpoint()):
                    told, found = results(
                        field, z0, solver, save_at=save_at, t=ends, gradient=gradient
                    )
                    assert_same(found, expected, tolerance)  # rounding changes chosen steps
                    said.append((told.nfe, told.n_steps))
        assert set(said) == {(solution.nfe, solution.n_steps)}


@pytest.mark.parametrize("name", SETS)
def test_states_saved_inside_steps_are_differentiated_twice(name: str) -> None:
    field, z0 = dense(2, 4, "tanh", True), states(3, 2).requires_grad_()

    def saved(z: Tensor, solver: Solver) -> Tensor:
        zs = solve(field, z, solver=solver, save_at=[0.2, 0.3, 1.0]).zs
        assert zs is not None
        return zs

    with native.using(name):
        fixed = FixedStep("rk4", n_steps=2)
        torch.autograd.gradcheck(saved, (z0, fixed))
        torch.autograd.gradgradcheck(saved, (z0, fixed))
        chosen = Adaptive("dopri5", 1e-3, 1e-3)
        pairs = []
        for each in (chosen, solve(field, z0, solver=chosen).replay()):
            (first,) = torch.autograd.grad(saved(z0, each).sin().sum(), z0, create_graph=True)
            pairs.append([first, *torch.autograd.grad(first.cos().sum(), z0)])
        assert_same(*([x.detach() for x in pair] for pair in pairs))


def test_states_saved_before_max_steps_are_known() -> None:
    field, z0, save_at = dense(2, 7, "silu", True), states(5, 2), [0.0, 0.01, 0.02, 0.9, 1.0]
    solver = Adaptive("dopri5", 1e-8, 1e-8, max_steps=4)
    found = []
    for name in ("off", *SETS):
        with native.using(name), torch.no_grad():
            solution = solve(field, z0, solver=solver, save_at=save_at, on_failure="return")
            assert solution.status == "max_steps"
            assert solution.zs is not None
            found.append(solution.zs)
    assert found[0].isnan().any()
    for zs in found:
        torch.testing.assert_close(zs, found[0], equal_nan=True)


@pytest.mark.parametrize("name", SETS)
def test_gradients_against_finite_differences(name: str) -> None:
    field, z0 = dense(2, 5, "silu", True), states(3, 2).requires_grad_()
    with native.using(name):
        for solver in (
            FixedStep("rk4", n_steps=3),
            OnGrid("euler", ((0.0, 0.0, 0.0), (0.5, 0.2, 1.0), (1.0, 1.0, 1.0))),
        ):
            flow = partial(solve, field, solver=solver)
            assert torch.autograd.gradcheck(
                lambda z, *_, flow=flow: flow(z).z, (z0, *field.parameters())
            )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 33, 70])
@pytest.mark.parametrize("length", [1, 2, 3, 10, 41])
def test_convolutions(length: int, batch: int, dtype: torch.dtype, name: str) -> None:
    """Equal to PyTorch's, along signals of any length."""
    torch.manual_seed(0)  # the fields are drawn, and must not depend on the tests before
    solver = FixedStep("rk4", n_steps=3)
    for channels, hidden, timed in ((1, 32, False), (3, 9, True)):
        field = ConvField(channels, hidden, 1, "tanh", timed).to(dtype)
        exact = ConvField(channels, hidden, 1, "tanh", timed).double()
        exact.load_state_dict(field.state_dict())
        z0 = states(batch, channels * length, dtype).view(batch, channels, length)
        with native.using(name):
            found = results(field, z0, solver)[1]
        expected = portable(Called(exact), z0.double(), solver)[1]
        if dtype == torch.float64:
            assert_same(found, expected)
        else:
            assert_as_accurate(found, portable(Called(field), z0, solver)[1], expected)


widths = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    taps=st.lists(st.sampled_from([1, 1, 3, 5]), min_size=4, max_size=4),
    inner=st.lists(widths, min_size=3, max_size=3),
    width=st.integers(1, 12),
    activations=st.lists(st.sampled_from([*ACTIVATIONS, "identity"]), min_size=4, max_size=4),
    batch=st.integers(1, 70),
    timed=st.booleans(),
    method=st.sampled_from(list(METHODS)),
    n_steps=st.integers(1, 40),
    checkpoint=st.booleans(),
    name=st.sampled_from(SETS or ("off",)),
)
def test_any_stack_of_layers(
    rows: list[int],
    taps: list[int],
    inner: list[int],
    width: int,
    activations: list[str],
    batch: int,
    timed: bool,
    method: str,
    n_steps: int,
    checkpoint: bool,
    name: str,
) -> None:
    """Any number of layers, each of which acts on the rows of its input or along them."""
    most = 1
    for number in rows:
        most *= number
    state = width * most
    layers, now = [], state
    for i, number in enumerate(rows):
        out = state // number if i == len(rows) - 1 else inner[i] * most
        layers.append((now // number, out, activations[i] if i < len(rows) - 1 else "identity"))
        now = number * out
    field, z0 = Field(layers, timed, taps=taps[: len(layers)]), states(batch, state)
    solver = FixedStep(method, n_steps=n_steps)
    expected = portable(field, z0, solver)[1]
    with native.using(name):
        found = results(field, z0, solver, gradient=Checkpoint() if checkpoint else Backprop())[1]
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_states_that_are_not_finite(activation: str, bad: float, name: str) -> None:
    """Only their samples are not finite, with the same failure."""
    field, z0, solver = dense(3, 10, activation), states(50, 3), FixedStep("rk4", n_steps=3)
    z0[17, 1] = bad
    with native.using("off"):
        expected = solve(field, z0, solver=solver, on_failure="return")
    with native.using(name):
        found = solve(field, z0, solver=solver, on_failure="return")
    assert found.status == expected.status
    assert found.message == expected.message
    torch.testing.assert_close(found.z, expected.z, equal_nan=True, rtol=1e-9, atol=1e-12)


@pytest.mark.falls_back
@pytest.mark.parametrize("per_sample", [False, True], ids=["together", "apart"])
def test_failures_of_chosen_steps_are_told_by_the_portable_path(per_sample: bool) -> None:
    field, z0 = dense(3, 10, "tanh"), states(5, 3)
    z0[2] = float("nan")
    calls = [
        (states(5, 3), Adaptive("dopri5", 1e-9, 1e-9, per_sample=per_sample, max_steps=3)),
        (z0, Adaptive("dopri5", 1e-3, 1e-3, per_sample=per_sample)),
    ]
    for start, solver in calls:
        messages = []
        for name in (SETS[0], "off"):
            with native.using(name), pytest.raises(SolveError) as failure:
                solve(field, start, solver=solver)
            messages.append(str(failure.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "fehlberg2"])
def test_a_solve_that_takes_max_steps_stops_where_the_portable_one_does(
    method: str, name: str
) -> None:
    field, z0 = dense(3, 10, "tanh", True), states(37, 3)
    solver = Adaptive(method, 1e-9, 1e-9, first_step=0.01, max_steps=12)
    found = []
    for kernel_name in (name, "off"):
        with native.using(kernel_name), torch.no_grad():
            call = {"solver": solver, "save_at": [0.2, 2.5], "on_failure": "return"}
            found.append(solve(field, z0, (0.2, 2.5), **call))
    one, other = found
    assert (one.status, one.message) == (other.status, other.message)
    assert one.status == "max_steps"
    assert (one.nfe, one.n_steps, one.n_rejected) == (other.nfe, other.n_steps, other.n_rejected)
    for x, y in ((one.z, other.z), (one.zs, other.zs), (one.grid, other.grid)):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(one.errors, other.errors, rtol=1e-3, atol=1e-6)


class _Subclass(Tensor):
    pass


@pytest.mark.falls_back
def test_what_the_kernel_is_not_made_for_takes_the_portable_path() -> None:
    """Half precision, learnable times and ends, long signals."""
    calls: list[tuple[nn.Module, Tensor, dict[str, object]]] = [
        (dense(3, 10, "tanh", dtype=torch.bfloat16), states(5, 3, torch.bfloat16), {}),
        (
            dense(3, 10, "tanh"),
            states(5, 3),
            {"save_at": torch.tensor([0.123], requires_grad=True)},
        ),
        (dense(3, 10, "tanh"), states(5, 3), {"t": (0.0, torch.tensor(1.0, requires_grad=True))}),
        (dense(3, 10, "tanh"), states(5, 3), {"t": (1.0, 1.0)}),
        (dense(3, 10, "tanh"), states(0, 3), {}),
        (dense(3, 10, "tanh"), states(5, 3).as_subclass(_Subclass), {}),
        (ConvField(1, 32, 1), states(2, 900)[:, None].float(), {}),
    ]
    for field, z0, options in calls:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "solve", None)  # would be called
            solve(field, z0, solver=FixedStep("rk4", n_steps=2), **options)


def test_memory_of_a_tape_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.RUNTIME, "_spare", {})
    field, z0, solver = dense(3, 10, "tanh"), states(5, 3), FixedStep("rk4", n_steps=5)
    for _ in range(5):
        results(field, z0, solver)
    assert [len(spare) for spare in runtime.RUNTIME._spare.values()] == [1]
    kept = [solve(field, z0, solver=solver).z for _ in range(3)]  # live graphs share no memory
    expected = [torch.autograd.grad(z.sum(), list(field.parameters())) for z in kept]
    for x, *others in zip(*expected, strict=True):
        assert all(torch.equal(x, y) for y in others)


def test_backward_twice() -> None:
    field, z0 = dense(3, 10, "tanh"), states(5, 3).requires_grad_()
    z = solve(field, z0, solver=FixedStep("rk4", n_steps=3)).z
    first, second = (torch.autograd.grad(z.sum(), z0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_fastest_instruction_set_is_taken() -> None:
    kernel_in_use = native.library.kernel()
    assert kernel_in_use is not None
    assert kernel_in_use.name == SETS[0]
    assert native.describe() == f"compiled kernel, {SETS[0]}"
