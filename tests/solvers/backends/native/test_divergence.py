"""Fields with their divergence by the compiled kernel give what autograd gives, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.solvers.backends.native.test_native import (
    ACTIVATIONS,
    GIVEN,
    SETS,
    Called,
    Field,
    assert_as_accurate,
    assert_same,
    portable,
    results,
    states,
)
from trueode.catalog import METHODS
from trueode.errors import SolveError
from trueode.fields import ConvField, DenseField
from trueode.fields.divergence import Divergence
from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep, Solver, solve
from trueode.solvers.backends import backend_of, generic, matrices, native
from trueode.solvers.backends.native import layers, library, runtime
from trueode.solvers.problem import Problem

needs_kernel = pytest.mark.skipif(not SETS, reason=f"there is no kernel: {native.describe()}")
SETS_OR_SKIP = SETS or [pytest.param("", marks=pytest.mark.skip(native.describe()))]


def field_of(
    width: int,
    hidden: Sequence[int],
    activation: str = "tanh",
    timed: bool = True,
    dtype: torch.dtype = torch.double,
) -> Field:
    sizes = [width, *hidden, width]
    names = [*[activation] * len(hidden), "identity"]
    return Field(list(zip(sizes, sizes[1:], names, strict=False)), timed, dtype)


def traced(field: nn.Module, width: int) -> Divergence:
    return Divergence(field, (width,))


def called(field: nn.Module, width: int) -> Divergence:
    """The same, by autograd."""
    return Divergence(Called(field), (width,))


def served(field: nn.Module, z0: Tensor, solver: Solver) -> bool:
    return backend_of(Problem(field, z0, solver=solver)) is layers


@needs_kernel
@pytest.mark.parametrize("hidden", [(10,), (10, 6)], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "identity"])
@pytest.mark.parametrize("solver", GIVEN, ids=str)
def test_given_steps(solver: Solver, activation: str, hidden: Sequence[int]) -> None:
    field, z0, t = field_of(3, hidden, activation), states(37, 4), (0.4, 0.1)
    solution, expected = portable(called(field, 3), z0, solver, t)
    for name, gradient in product(SETS, (Backprop(), Checkpoint())):
        with native.using(name):
            assert served(traced(field, 3), z0, solver)
            again, found = results(traced(field, 3), z0, solver, t, gradient)
        assert_same(found, expected, 1e-11)
        assert (again.nfe, again.n_steps) == (solution.nfe, solution.n_steps)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 5, 512])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("hidden", [(), (1,), (20,), (20, 33), (5, 1), (9, 8, 7)], ids=str)
def test_shapes(hidden: Sequence[int], width: int, batch: int, dtype: torch.dtype) -> None:
    solver = FixedStep("midpoint", n_steps=2)
    field, exact = field_of(width, hidden, dtype=dtype), field_of(width, hidden)
    exact.load_state_dict(field.state_dict())  # rounded, as those of the field
    z0 = states(batch, width + 1, dtype)
    expected = portable(called(exact, width), z0.double(), solver)[1]
    other = portable(called(field, width), z0, solver)[1]
    for name in SETS:
        with native.using(name):
            assert served(traced(field, width), z0, solver) is (len(hidden) < 3)
            found = results(traced(field, width), z0, solver)[1]
        if dtype == torch.float64:
            assert_same(found, expected)
        else:
            assert_as_accurate(found, other, expected)


@pytest.mark.parametrize("name", SETS_OR_SKIP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "cube"])
def test_slopes_over_the_whole_range(activation: str, dtype: torch.dtype, name: str) -> None:
    """One step of a layer that is only an activation: its slope and its curvature."""
    sizes = torch.cat(
        [torch.logspace(-30, 4, 400, dtype=torch.double), torch.linspace(0.01, 30, 3000).double()]
    )
    x = torch.cat([sizes, -sizes]).to(dtype)[:, None]
    field = field_of(1, (1,), activation, timed=False, dtype=dtype)
    for each in field.parameters():
        nn.init.constant_(each, float(each.dim() == 2))

    def slope_and_curvature(x: Tensor) -> list[Tensor]:
        z0 = torch.cat([x, torch.zeros_like(x)], 1).requires_grad_()
        trace = -solve(traced(field, 1), z0, solver=FixedStep("euler", n_steps=1)).z[:, 1]
        return [trace.detach(), torch.autograd.grad(trace.sum(), z0)[0][:, 0]]

    with native.using(name):
        found = slope_and_curvature(x)
    field.double()
    with native.using("off"):
        exact = slope_and_curvature(x.double())
    eps = torch.finfo(dtype).eps
    for y, z in zip(found, exact, strict=True):
        assert bool(((y.double() - z).abs() <= 30 * eps * (z.abs() + 1)).all())


@pytest.mark.parametrize("name", SETS_OR_SKIP)
@pytest.mark.parametrize("hidden", [(40,), (40, 24)], ids=str)
def test_the_number_of_threads_plays_no_role(hidden: Sequence[int], name: str) -> None:
    z0, before = states(777, 3, torch.float32), torch.get_num_threads()
    field = traced(field_of(2, hidden, "silu", dtype=torch.float32), 2)
    found = []
    with native.using(name):
        active = library.kernel()
        assert active is not None
        try:
            for whose in {library.threads_of_torch(), None}:  # and helpers of our own
                active.library.trueode_share(whose)
                for threads in (1, 2, 3, 7):
                    torch.set_num_threads(threads)
                    found.append(results(field, z0, FixedStep("rk4", n_steps=9))[1])
        finally:
            torch.set_num_threads(before)
            active.library.trueode_share(library.threads_of_torch())
    assert all(torch.equal(x, y) for each in found for x, y in zip(found[0], each, strict=True))


@pytest.mark.parametrize("name", SETS_OR_SKIP)
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", [(10,), (10, 6)], ids=str)
def test_stages_computed_again_and_states_inside_steps(
    hidden: Sequence[int], activation: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, z0, times = field_of(3, hidden, activation), states(37, 4), (0.0, 0.13, 0.5, 0.99, 1.0)
    solver = FixedStep("rk4", n_steps=5)
    expected = portable(called(field, 3), z0, solver, save_at=times)[1]
    for room in (runtime.LARGEST_TAPE, 0):
        monkeypatch.setattr(runtime, "LARGEST_TAPE", room)
        with native.using(name):
            found = results(traced(field, 3), z0, solver, save_at=times)[1]
        assert_same(found, expected, 1e-11)


@needs_kernel
@pytest.mark.parametrize("per_sample", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.kind == "adaptive"]
)
def test_chosen_steps(method: str, per_sample: bool) -> None:
    field, z0 = field_of(3, (10, 6)), states(37, 4)
    solver = Adaptive(method, 1e-4, 1e-6, per_sample=per_sample)
    solution, expected = portable(called(field, 3), z0, solver)
    for name in SETS:
        with native.using(name):
            assert served(traced(field, 3), z0, solver)
            again, found = results(traced(field, 3), z0, solver)
        assert_same(found, expected, 1e-6)
        assert torch.equal(torch.as_tensor(again.n_steps), torch.as_tensor(solution.n_steps))


@pytest.mark.parametrize("hidden", [(4,), (4, 3)], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "silu", "softplus", "gelu"])
def test_gradients_are_differences(activation: str, hidden: Sequence[int]) -> None:
    """Also those of second order, which repeat the solve under autograd."""
    field = field_of(2, hidden, activation)
    z0, solver = states(3, 3).requires_grad_(), FixedStep("rk4", n_steps=2)

    def final(z0: Tensor, *_: Tensor) -> Tensor:
        return solve(traced(field, 2), z0, solver=solver).z

    inputs = z0, *field.parameters()
    assert torch.autograd.gradcheck(final, inputs)
    assert torch.autograd.gradgradcheck(final, inputs)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_states_that_are_not_finite(number: float) -> None:
    field, z0, solver = field_of(2, (8, 8)), states(40, 3), FixedStep("rk4", n_steps=3)
    fine = solve(traced(field, 2), z0, solver=solver).z
    z0[7, 1] = number
    with pytest.raises(SolveError, match="not finite"):
        solve(traced(field, 2), z0, solver=solver)
    found = solve(traced(field, 2), z0, solver=solver, on_failure="return")
    others = torch.arange(40) != 7
    assert found.status == "non_finite"
    assert torch.equal(found.z[others], fine[others])


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8)], ids=str)
def test_without_the_kernel_the_coupling_is_computed_once(hidden: Sequence[int]) -> None:
    field, z0, solver = field_of(3, hidden, "silu"), states(9, 4), FixedStep("rk4", n_steps=3)
    with native.using("off"):
        problem = Problem(traced(field, 3), z0, solver=solver)
        assert backend_of(problem) is matrices
        found = results(traced(field, 3), z0, solver)[1]
        assert_same(found, results(called(field, 3), z0, solver)[1])


def test_what_has_no_closed_form_is_called() -> None:
    z0, solver, noise = states(6, 5), FixedStep("rk4", n_steps=2), states(6, 4).sign()
    plain = DenseField(4, 8, "tanh", True).double()
    watched = traced(plain, 4)
    watched.register_forward_hook(lambda *_: None)
    for field in (
        Divergence(ConvField(2, 8, 1, "tanh").double(), (2, 2)),
        Divergence(plain, (4,), noise),
        traced(field_of(4, (8, 8, 8)), 4),
        watched,
    ):
        assert backend_of(Problem(field, z0, solver=solver)) is generic
        assert_same(results(field, z0, solver)[1], portable(field, z0, solver)[1])
    adjoint = Problem(traced(plain, 4), z0, solver=solver, gradient=Adjoint())
    assert backend_of(adjoint) is generic


def test_modules_of_others_are_recognised() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            joined = torch.cat([z, t.expand(len(z), 1)], 1)
            return self.last(torch.tanh(self.first(joined)))  # type: ignore[no-any-return]

    field, z0, solver = Net().double(), states(6, 3), FixedStep("rk4", n_steps=2)
    problem = Problem(traced(field, 2), z0, solver=solver)
    assert problem.layers is not None
    assert problem.layers.coupling is not None
    assert_same(results(traced(field, 2), z0, solver)[1], portable(called(field, 2), z0, solver)[1])
