"""Convolutions by the compiled kernel equal PyTorch's to rounding, and are used by default."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.fields import Autocast, build_field
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Gradient,
    Solver,
    solve,
)
from trueode.solvers.backends import native
from trueode.solvers.backends.native import images
from trueode.solvers.backends.native.library import Kernel

pytestmark = pytest.mark.skipif(
    not native.instruction_sets(), reason=f"there is no kernel: {native.describe()}"
)

SETS = native.instruction_sets()
WIDE = [name for name in SETS if name != images.NARROW]
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


def inputs(
    batch: int, height: int, width: int, fan_in: int, fan_out: int, dtype: torch.dtype
) -> list[Tensor]:
    """Images, weights, a bias, and the gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    shapes = [
        (batch, fan_in, height, width),
        (fan_out, fan_in, 3, 3),
        (fan_out,),
        (batch, fan_out, height, width),
    ]
    x, w, b, g = (
        torch.randn(shape, generator=draw, dtype=torch.double).to(dtype) for shape in shapes
    )
    return [x.requires_grad_(), (w / (3 * fan_in**0.5)).requires_grad_(), b.requires_grad_(), g]


def values(
    convolve: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor, g: Tensor
) -> list[Tensor]:
    y = convolve(x, w, b)
    return [y.detach(), *torch.autograd.grad(y, (x, w, b), g)]


def exact(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> list[Tensor]:
    return values(
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        *(t.detach().double().requires_grad_() for t in (x, w, b, g)),
    )


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry per convolution computed by the kernel, with the widest vectors."""
    if not WIDE:
        pytest.skip("the kernel has narrow vectors alone here")
    seen: list[int] = []
    original = Kernel.convolve
    monkeypatch.setattr(
        Kernel, "convolve", lambda self, *args: (seen.append(1), original(self, *args))[1]
    )
    with native.using(WIDE[0]):
        yield seen


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(SETS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 13)),
    channels=st.tuples(st.sampled_from([16, 32, 64, 80]), st.sampled_from([16, 48, 64])),
    last=st.booleans(),
    threads=st.integers(1, 3),
)
def test_it_is_the_convolution(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    channels: tuple[int, int],
    last: bool,
    threads: int,
) -> None:
    x, w, b, g = inputs(*shape, *channels, dtype)
    if last:
        x, g = (t.detach().contiguous(memory_format=torch.channels_last) for t in (x, g))
        x.requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with native.using(name):
            assert images.is_served(x, w, b)
            found = values(images.convolve, x, w, b, g)
    finally:
        torch.set_num_threads(before)
    for own, wanted in zip(found, exact(x, w, b, g), strict=True):
        assert own.shape == wanted.shape
        assert own.dtype == dtype
        assert error(own, wanted) < ROUNDING[dtype]


@pytest.mark.parametrize("name", SETS)
def test_neither_threads_nor_the_rest_of_the_batch_play_a_role(name: str) -> None:
    tensors = inputs(40, 16, 17, 16, 32, torch.float32)
    before = torch.get_num_threads()
    try:
        with native.using(name):
            found = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(values(images.convolve, *tensors))
            alone = images.convolve(*(tensors[0][7:8], *tensors[1:3]))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)
    assert torch.equal(alone[0], found[0][0][7])


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_the_gradients_that_are_wanted(needed: tuple[bool, bool, bool]) -> None:
    *tensors, g = inputs(3, 6, 5, 16, 16, torch.float64)
    for x, wanted in zip(tensors, needed, strict=True):
        x.requires_grad_(wanted)
    images.convolve(*tensors).backward(g)
    for x, wanted, known in zip(tensors, needed, exact(*tensors, g)[1:], strict=True):
        assert (x.grad is not None) == wanted
        assert x.grad is None or error(x.grad, known) < 1e-13


def test_gradients_of_gradients() -> None:
    x, w, b, _ = inputs(1, 3, 4, 16, 16, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda w, b: images.convolve(x, w, b).square(), (w, b), fast_mode=True
    )
    rows = torch.eye(16, dtype=torch.float64)
    many = torch.autograd.grad(
        images.convolve(x, w, b).sum((0, 2, 3)), b, rows, is_grads_batched=True
    )
    torch.testing.assert_close(many[0], 12 * rows)


def test_a_weight_that_changes_before_the_gradient_is_told() -> None:
    x, w, b, g = inputs(1, 3, 4, 16, 16, torch.float64)
    y = images.convolve(x, w, b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(g)


def test_what_it_does_not_serve_is_left_to_pytorch() -> None:
    x, w, b, _ = inputs(2, 5, 5, 16, 16, torch.float32)
    others = [
        inputs(2, 5, 5, 8, 16, torch.float32)[:3],
        inputs(2, 5, 5, 16, 24, torch.float32)[:3],
        [t.bfloat16() for t in (x, w, b)],
        [x[:0], w, b],
        [x, w[:, :, 1:2, 1:2], b],
    ]
    assert not any(images.is_served(*tensors) for tensors in others)
    assert images.convolve(*others[0]).shape == (2, 16, 5, 5)
    assert images.convolve(*others[3]).shape == (0, 16, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert images.convolve(x, w, b).dtype == torch.bfloat16
    found = torch.func.vmap(lambda x: images.convolve(x[None], w, b)[0])(x)
    torch.testing.assert_close(found, images.convolve(x, w, b), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint(), Adjoint()])
@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("rk4", n_steps=3),
        Adaptive("dopri5", 1e-6, 1e-6),
        Adaptive("bosh3", 1e-4, 1e-4, per_sample=True),
    ],
)
@pytest.mark.parametrize("timed", [False, True])
def test_solves_take_it(solver: Solver, gradient: Gradient, timed: bool, calls: list[int]) -> None:
    torch.manual_seed(0)
    field = build_field("odenet", (3, 6, 5), 16, "softplus", timed).double()
    z = torch.randn(4, 3, 6, 5, dtype=torch.double)

    def solved(field: nn.Module) -> tuple[Tensor, list[Tensor]]:
        final = solve(field, z, solver=solver, gradient=gradient).z
        return final, list(torch.autograd.grad(final.square().sum(), list(field.parameters())))

    own, found = solved(field)
    assert bool(calls) == isinstance(gradient, Adjoint)  # others are whole solves of layers
    calls.clear()
    field.conv1.register_forward_hook(lambda *args: None)  # a hook must see PyTorch's call
    wanted, known = solved(field)
    assert not calls
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_fields_that_were_changed_are_called(calls: list[int]) -> None:
    z = torch.randn(2, 3, 6, 6)
    own, adjoint = build_field("odenet", (3, 6, 6), 16), Adjoint()
    solve(own, z, solver=FixedStep("euler", n_steps=1), gradient=adjoint)
    assert len(calls) == 1
    strided = copy.deepcopy(own)
    strided.conv2 = nn.Conv2d(16, 16, 3, padding=1, dilation=1, padding_mode="circular")
    pointwise = copy.deepcopy(own)
    pointwise.conv2 = nn.Conv2d(16, 16, 1)
    unbiased = copy.deepcopy(own)
    unbiased.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    for field in (strided, pointwise, unbiased, Autocast(own, torch.bfloat16)):
        for gradient in (Backprop(), adjoint):
            found = solve(field, z, solver=FixedStep("euler", n_steps=1), gradient=gradient).z
            torch.testing.assert_close(found, z + field(0.0, z), rtol=1e-5, atol=1e-6)
    assert len(calls) == 1
    with native.using("off"):
        solve(own, z, solver=FixedStep("euler", n_steps=1), gradient=adjoint)
    assert len(calls) == 1


def test_numbers_that_are_not_finite_stay_so(calls: list[int]) -> None:
    x, w, b, _ = inputs(1, 9, 9, 16, 16, torch.float32)
    with torch.no_grad():
        x[0, 3, 4, 4] = float("inf")
        found, known = images.convolve(x, w, b), F.conv2d(x, w, b, padding=1)
    assert not found[~known.isfinite()].isfinite().any()
    assert found[..., -1].isfinite().all()
