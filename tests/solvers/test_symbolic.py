"""Symbolic tensors: torch.func, tracing, export, the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.problems import states
from trueode.catalog import METHODS
from trueode.errors import UsageError
from trueode.fields import DenseField, SequentialField, build_field
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep, solve

EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning",
    "ignore:.torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)


def field(t: Tensor, z: Tensor) -> Tensor:
    return torch.sin(z) * torch.cos(t) - 0.3 * z


def flow(solver: Any, gradient: Any = None) -> Callable[[Tensor], Tensor]:
    how = {} if gradient is None else {"gradient": gradient}
    return lambda z: solve(field, z[None], solver=solver, **how).z[0]


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda f, x: vmap(f)(x),
    "grad": lambda f, x: grad(lambda z: f(z).sum())(x[0]),
    "jacrev": lambda f, x: jacrev(f)(x[0]),
    "jacfwd": lambda f, x: jacfwd(f)(x[0]),
    "hessian": lambda f, x: hessian(lambda z: f(z).sum())(x[0]),
    "vjp": lambda f, x: vjp(f, x[0])[1](torch.ones(2, dtype=x.dtype))[0],
    "jvp": lambda f, x: jvp(f, (x[0],), (torch.ones(2, dtype=x.dtype),))[1],
    "vmap of grad": lambda f, x: vmap(grad(lambda z: f(z).sum()))(x),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_fixed_steps_go_with_every_transform(name: str, method: str) -> None:
    """Equal to the transform of the explicit steps."""
    solver, n = FixedStep(method, n_steps=2), 2
    tableau = solver.tableau

    def written(z: Tensor) -> Tensor:
        for i in range(n):
            stages: list[Tensor] = []
            for row, c in zip(tableau.a, tableau.c, strict=True):
                y = (
                    z
                    + sum((w * k for w, k in zip(row, stages, strict=True)), torch.zeros_like(z))
                    / n
                )
                stages.append(field(torch.tensor((i + c) / n, dtype=z.dtype), y))
            z = (
                z
                + sum((w * k for w, k in zip(tableau.b, stages, strict=True)), torch.zeros_like(z))
                / n
            )
        return z

    transform = TRANSFORMS[name]
    torch.testing.assert_close(
        transform(flow(solver), states()), transform(written, states()), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize(
    "gradient", [Backprop(), Checkpoint(), Adjoint()], ids=lambda g: type(g).__name__
)
@pytest.mark.parametrize("per_sample", [None, False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_does_not_go_with_a_transform_is_refused(
    name: str, per_sample: bool | None, gradient: Any
) -> None:
    """Unless it gives the values of fine fixed steps."""
    solver = (
        FixedStep("rk4", n_steps=40)
        if per_sample is None
        else Adaptive("dopri5", 1e-9, 1e-9, per_sample=per_sample)
    )
    transform = TRANSFORMS[name]
    try:
        found = transform(flow(solver, gradient), states())
    except UsageError as refused:
        assert "torch.func" in str(refused) or "vmap" in str(refused)  # noqa: PT017
        assert per_sample is not None or not isinstance(gradient, Backprop)
        return
    expected = transform(flow(FixedStep("rk4", n_steps=40)), states())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "solver", [FixedStep("rk4", n_steps=20), Adaptive("dopri5", 1e-8, 1e-8)], ids=str
)
def test_derivatives_by_an_end_under_transforms(solver: Any) -> None:
    def final(end: Tensor) -> Tensor:
        return solve(
            lambda t, z: z, torch.ones(1, dtype=torch.float64), (0.0, end), solver=solver
        ).z.sum()

    end = torch.tensor(0.8, dtype=torch.float64)
    for found in (grad(final)(end), jvp(final, (end,), (torch.ones_like(end),))[1]):
        torch.testing.assert_close(found, end.exp(), rtol=1e-5, atol=0)
    with pytest.raises(UsageError, match="vmap"):
        vmap(final)(torch.stack([end, end]))


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    dense = SequentialField(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2), time_dependent=True)
    return {
        "sequential": (
            NeuralODE(dense, nn.Linear(2, 2), nn.Linear(2, 3), solver=FixedStep("rk4", n_steps=3)),
            torch.randn(5, 2),
        ),
        "dense, fsal": (
            NeuralODE(DenseField(2, 6, "relu"), solver=FixedStep("dopri5", n_steps=2)),
            torch.randn(5, 2),
        ),
        "signal": (
            NeuralODE(
                build_field("simple_odenet", (1, 2), 8), solver=FixedStep("euler", n_steps=4)
            ),
            torch.randn(5, 1, 2),
        ),
        "image": (
            NeuralODE(
                build_field("odenet", (3, 4, 4), 16), solver=FixedStep("midpoint", n_steps=2)
            ),
            torch.randn(2, 3, 4, 4),
        ),
        "own": (NeuralODE(field, solver=FixedStep("heun2", n_steps=3)), torch.randn(5, 2)),
    }


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_models_with_fixed_steps_are_traced_exported_and_run_on_meta(name: str, mode: Any) -> None:
    model, x = models()[name]
    model = model.eval()
    with mode():
        expected = model(2 * x)
        torch.testing.assert_close(torch.jit.trace(model, x)(2 * x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            torch.export.export(model, (x,)).module()(2 * x), expected, rtol=1e-5, atol=1e-6
        )
        shape = copy.deepcopy(model).to("meta")(x.to("meta"))
    assert shape.is_meta
    assert shape.shape == expected.shape


def test_an_adaptive_solve_on_meta_is_refused() -> None:
    with pytest.raises(UsageError, match="meta"):
        solve(field, torch.ones(2, 2, device="meta"), solver=Adaptive("dopri5", 1e-3, 1e-3))
    with pytest.raises(UsageError, match="time must be"):
        solve(
            field,
            torch.ones(2, 2),
            (0.0, torch.ones((), device="meta")),
            solver=FixedStep("rk4", n_steps=1),
        )


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("rk4", n_steps=3),
        Adaptive("dopri5", 1e-4, 1e-4),
        Adaptive("bosh3", 1e-4, 1e-4, per_sample=True),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "gradient", [Backprop(), Checkpoint(), Adjoint()], ids=lambda g: type(g).__name__
)
@pytest.mark.parametrize("told", [True, False])
def test_another_default_device_changes_nothing(solver: Any, gradient: Any, told: bool) -> None:
    """States on the CPU are solved there, whatever the default device."""
    found = []
    for default in ("cpu", "meta"):
        torch.manual_seed(0)
        layers = SequentialField(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        z0, end = torch.randn(4, 2), torch.tensor(0.9, requires_grad=True)
        called: Any = layers if told else lambda t, z, layers=layers: layers(t, z)
        with torch.device(default):
            solution = solve(
                called, z0, (0.0, 0.9), solver=solver, gradient=gradient, save_at=[0.3, 0.9]
            )
            moving = solve(called, z0, (0.0, end), solver=solver, gradient=gradient, save_at=[0.3])
            total = solution.z.sum() + solution.zs.sum() + moving.zs.sum()
            found.append([solution.z, *torch.autograd.grad(total, [*layers.parameters(), end])])
    assert all(map(torch.equal, *found))
