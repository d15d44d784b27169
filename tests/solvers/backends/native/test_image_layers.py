"""Whole solves of images by the compiled kernel give what the portable path gives, to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.solvers.backends.native.test_native import assert_same, portable
from tests.solvers.backends.native.test_native import results as solved
from trueode.catalog import ACTIVATIONS
from trueode.fields import ConvField
from trueode.layers import Layer, LayerStack
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solver,
    solve,
)
from trueode.solvers.backends import backend_of, native
from trueode.solvers.backends.native import layers
from trueode.solvers.problem import Problem

SETS = [name for name in native.instruction_sets() if name != layers.NARROW]
pytestmark = pytest.mark.skipif(not SETS, reason=f"no kernel for images: {native.describe()}")
CHANNELS, SIZES = (1, 3, 7, 16, 20, 64, 100), ((1, 1), (5, 7), (4, 8), (28, 28), (32, 32), (33, 33))
SOLVERS: tuple[Solver, ...] = (
    FixedStep("euler", n_steps=3),
    FixedStep("rk4", n_steps=2),
    FixedStep("midpoint", n_steps=1),
    OnGrid("heun3", (0.0, 0.3, 0.3, 1.0)),
    Adaptive("dopri5", 1e-3, 1e-3),
    Adaptive("fehlberg2", 1e-3, 1e-3),
    Adaptive("bosh3", 1e-3, 1e-3, per_sample=True),
)


def images(batch: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(batch)
    return torch.randn(batch, channels, *size, generator=draw, dtype=torch.double).to(dtype)


def is_served(field: nn.Module, z0: Tensor, solver: Solver) -> bool:
    return backend_of(Problem(field, z0, solver=solver)) is layers


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from(CHANNELS[:5]),
    hidden=st.sampled_from(CHANNELS),
    size=st.sampled_from(SIZES),
    act=st.sampled_from(list(ACTIVATIONS)),
    timed=st.booleans(),
    batch=st.sampled_from((1, 2, 5)),
    solver=st.sampled_from(SOLVERS),
    gradient=st.sampled_from((Backprop(), Checkpoint())),
    saved=st.booleans(),
)
def test_any_field_of_images(
    name: str,
    channels: int,
    hidden: int,
    size: tuple[int, int],
    act: str,
    timed: bool,
    batch: int,
    solver: Solver,
    gradient: Backprop | Checkpoint,
    saved: bool,
) -> None:
    """Values and gradients, with states saved on the grid and inside steps."""
    if size[0] * size[1] * hidden > 20_000:
        batch = 1
    torch.manual_seed(0)
    field = ConvField(channels, hidden, 2, act, timed).double()
    z0 = images(batch, channels, size, torch.double)
    inside = isinstance(solver, Adaptive) and not solver.per_sample and solver.tableau.fsal
    fixed = not isinstance(solver, Adaptive)
    save_at = [0.3, 0.1, 1.0] if saved and (inside or fixed) else None
    _, expected = portable(field, z0, solver, save_at=save_at)
    with native.using(name):
        assert is_served(field, z0, solver)
        _, found = solved(field, z0, solver, save_at=save_at, gradient=gradient)
    assert_same(found, expected, 1e-9 if isinstance(solver, Adaptive) else 1e-11)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("hidden", [16, 64])
def test_single_precision(hidden: int, name: str) -> None:
    torch.manual_seed(0)
    field, solver = ConvField(3, hidden, 2, "tanh", True), FixedStep("rk4", n_steps=3)
    z0 = images(3, 3, (32, 32), torch.float)
    _, usual = portable(field, z0, solver)
    with native.using(name):
        _, found = solved(field, z0, solver)
    _, exact = portable(field.double(), z0.double(), solver)
    for x, y, z in zip(found, usual, exact, strict=True):
        size = z.abs().max().clamp(min=1e-3)
        error, known = ((each.double() - z).abs().max() / size for each in (x, y))
        assert error <= 16 * known + 1e-5  # Winograd's tiles round more: see docs/numerics.md


class Middle(nn.Module):
    """A field whose first and last layers are the wide ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        value: Tensor = self.last(torch.tanh(self.first(z)))
        return value

    def layer_stack(self, shape: tuple[int, ...]) -> LayerStack:
        given = (
            Layer(m.weight, m.bias, a) for m, a in ((self.first, "tanh"), (self.last, "identity"))
        )
        return LayerStack(tuple(given), channels_last=True, image=(shape[2], shape[3]))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [(1, 1), (6, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_at_both_ends(
    layout: torch.memory_format, size: tuple[int, int], name: str
) -> None:
    torch.manual_seed(0)
    field = Middle().double().to(memory_format=layout)
    z0 = images(3, 2, size, torch.double).contiguous(memory_format=layout)
    for solver in (FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-4, 1e-4)):
        _, expected = portable(field, z0, solver)
        with native.using(name):
            assert is_served(field, z0, solver)
            for gradient in (Backprop(), Checkpoint()):
                _, found = solved(field, z0, solver, gradient=gradient)
                assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("name", SETS)
def test_gradients_against_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    field, z0 = ConvField(2, 3, 2, "silu", True).double(), images(2, 2, (3, 5), torch.double)
    z0.requires_grad_()
    params = list(field.parameters())
    with native.using(name):

        def final(z: Tensor, *_: Tensor) -> Tensor:
            return solve(field, z, solver=FixedStep("midpoint", n_steps=2), save_at=[0.3, 1.0]).zs

        torch.autograd.gradcheck(final, (z0, *params))
        torch.autograd.gradgradcheck(final, (z0, *params), fast_mode=True)


@pytest.mark.parametrize("name", SETS)
def test_neither_threads_nor_the_rest_of_the_batch_play_a_role(name: str) -> None:
    torch.manual_seed(0)
    field, z0 = ConvField(3, 32, 2), images(9, 3, (16, 16), torch.float)
    solver, before, found = FixedStep("rk4", n_steps=3), torch.get_num_threads(), []
    try:
        with native.using(name):
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                found.append(solved(field, z0, solver)[1])
            alone = solve(field, z0[4:5], solver=solver).z
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], others, strict=True))
    assert torch.equal(alone, found[0][0][4:5])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_in_their_sample(bad: float, name: str) -> None:
    field, z0 = ConvField(3, 8, 2, "tanh").double(), images(4, 3, (6, 6), torch.double)
    z0[1, 2, 3, 3] = bad
    with native.using(name), torch.no_grad():
        solution = solve(field, z0, solver=FixedStep("rk4", n_steps=2), on_failure="return")
    assert solution.status == "non_finite"
    assert solution.lost().tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", SETS)
def test_samples_on_grids_of_their_own(name: str) -> None:
    torch.manual_seed(0)
    field, z0 = ConvField(1, 5, 2, "silu", True).double(), images(3, 1, (5, 4), torch.double)
    chosen = solve(field, z0, solver=Adaptive("dopri5", 1e-6, 1e-6, per_sample=True))
    given = chosen.replay()
    _, expected = portable(field, z0, given)
    with native.using(name):
        assert is_served(field, z0, given)
        for gradient in (Backprop(), Checkpoint()):
            assert_same(solved(field, z0, given, gradient=gradient)[1], expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda field: setattr(
            field, "conv2", nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        ),
        lambda field: setattr(field, "conv2", nn.Conv2d(16, 16, 1)),
        lambda field: setattr(field, "conv2", nn.Conv2d(16, 16, 3, padding=1, bias=False)),
        lambda field: field.conv1.register_forward_hook(lambda *args: None),
        lambda field: setattr(field.conv3, "forward", lambda x: x[:, :3]),
    ],
)
def test_fields_that_were_changed_are_called(change: Callable[[ConvField], object]) -> None:
    field, z, solver = ConvField(3, 16, 2), images(2, 3, (6, 6), torch.float32), SOLVERS[0]
    assert is_served(field, z, solver)
    change(field)
    assert not is_served(field, z, solver)
    found = solve(field, z, solver=FixedStep("euler", n_steps=1)).z
    torch.testing.assert_close(found, z + field(0.0, z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[4], SOLVERS[6]])
def test_the_adjoint_is_left_to_pytorch(solver: Solver) -> None:
    field, z = ConvField(3, 16, 2, "softplus").double(), images(2, 3, (6, 5), torch.float64)
    ends = [
        solve(field, z, solver=solver, gradient=gradient).z for gradient in (Adjoint(), Backprop())
    ]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)
