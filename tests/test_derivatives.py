"""Derivatives are right or refused, never dropped: all methods, gradients and kinds of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tests.problems import KINDS, parts_of
from trueode.catalog import METHODS
from trueode.errors import UsageError
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

GRADIENTS: dict[str, Gradient] = {
    "backprop": Backprop(),
    "checkpoint": Checkpoint(),
    "adjoint": Adjoint(),
}
DISCRETE = ["backprop", "checkpoint"]
EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
EPS = 1e-6

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    # PyTorch's warning at the first use of forward mode
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
]
each_method = pytest.mark.parametrize("method", METHODS)


def solvers(method: str, kind: str) -> list[Solver]:
    found: list[Solver] = [FixedStep(method, n_steps=3)]
    if method in EMBEDDED:
        found.append(Adaptive(method, 1e-2, 1e-2))
        found.append(Adaptive(method, 1e-2, 1e-2, per_sample=True))
    return found


def numbers(states: Any) -> Tensor:
    """A weighted sum of all entries of one or several states, with different weights."""
    total = torch.zeros((), dtype=torch.float64)
    for i, part in enumerate(parts_of(states)):
        weights = torch.arange(1.0, 1 + part.numel(), dtype=torch.float64).view(part.shape) + i
        total = total + (weights.cos() * part).sum()
    return total


class Setting:
    """A field and all inputs of a solution."""

    def __init__(self, kind: str, times: bool = False) -> None:
        self.field, self.z0 = KINDS[kind]()
        self.start, self.end = (torch.tensor(t, dtype=torch.float64) for t in (0.1, 0.9))
        self.times = torch.tensor([0.1, 0.3, 0.62, 0.9], dtype=torch.float64)
        self.inputs = [*parts_of(self.z0), *self.field.parameters()]
        if times:
            self.inputs = [self.start, self.end, self.times]
        for x in self.inputs:
            x.requires_grad_()

    def value(self, solver: Solver, gradient: Gradient, save: bool = False) -> Tensor:
        """The scalar value of the solution, see `numbers`."""
        solution = solve(
            self.field,
            self.z0,
            (self.start, self.end),
            solver=solver,
            gradient=gradient,
            save_at=self.times if save else None,
        )
        self.replay = solution.replay() if solution.statuses is None else solver
        return numbers(solution.z) + (numbers(solution.zs) if save else 0)

    def directions(self) -> list[Tensor]:
        draw = torch.Generator().manual_seed(3)
        return [torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in self.inputs]

    def difference(self, call: Callable[[], Tensor]) -> Tensor:
        """The derivative of ``call`` along the directions, by central differences."""
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for x, direction in zip(self.inputs, self.directions(), strict=True):
                    x += sign * EPS * direction
            values.append(call().detach())
            with torch.no_grad():
                for x, direction in zip(self.inputs, self.directions(), strict=True):
                    x -= sign * EPS * direction
        return (values[0] - values[1]) / (2 * EPS)

    def reverse(self, value: Tensor, **options: bool) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.inputs, materialize_grads=True, **options))

    def along(self, gradients: list[Tensor]) -> Tensor:
        return sum(
            ((g * d).sum() for g, d in zip(gradients, self.directions(), strict=True)),
            torch.zeros(()),
        )

    def forward(self, solver: Solver, gradient: Gradient, save: bool = False) -> Tensor:
        """The derivative along the directions, in forward mode."""
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x.detach(), d)
                for x, d in zip(self.inputs, self.directions(), strict=True)
            ]
            with self.replaced(duals):
                return forward_ad.unpack_dual(self.value(solver, gradient, save)).tangent

    def replaced(self, duals: list[Tensor]) -> Any:
        return _Replaced(self, duals)


class _Replaced:
    """A block in which other tensors replace the inputs of a setting."""

    def __init__(self, setting: Setting, tensors: list[Tensor]) -> None:
        self.setting, self.tensors = setting, tensors

    def __enter__(self) -> None:
        setting, by = (
            self.setting,
            dict(zip(map(id, self.setting.inputs), self.tensors, strict=True)),
        )
        self.before = setting.z0, setting.start, setting.end, setting.times
        if isinstance(setting.z0, tuple):
            setting.z0 = tuple(by.get(id(x), x) for x in setting.z0)
        else:
            setting.z0 = by.get(id(setting.z0), setting.z0)
        setting.start, setting.end, setting.times = (
            by.get(id(x), x) for x in (setting.start, setting.end, setting.times)
        )
        self.owners = [
            (m, name, p)
            for m in setting.field.modules()
            for name, p in m._parameters.items()
            if p is not None
        ]
        for module, name, p in self.owners:
            if id(p) in by:
                del module._parameters[name]
                setattr(module, name, by[id(p)])

    def __exit__(self, *_: object) -> None:
        self.setting.z0, self.setting.start, self.setting.end, self.setting.times = self.before
        for module, name, p in self.owners:
            if name in module.__dict__:
                delattr(module, name)
                module.register_parameter(
                    name, p if isinstance(p, nn.Parameter) else nn.Parameter(p)
                )


@each_method
@pytest.mark.parametrize("gradient", DISCRETE)
def test_first_derivatives(kind: str, method: str, gradient: str) -> None:
    """By state and parameters, equal to differences of the same steps."""
    for solver in solvers(method, kind):
        setting = Setting(kind)
        found = setting.along(
            setting.reverse(setting.value(solver, GRADIENTS[gradient], save=True))
        )
        if setting.replay is not solver:  # steps are constants
            steps = setting.replay
            expected = setting.difference(
                lambda setting=setting, steps=steps: setting.value(steps, Backprop(), save=True)
            )
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        else:
            reference = Setting(kind)
            same = reference.along(
                reference.reverse(reference.value(solver, Backprop(), save=True))
            )
            torch.testing.assert_close(found, same, rtol=1e-9, atol=1e-11)


@each_method
def test_the_adjoint_gives_the_derivatives_of_the_exact_flow(kind: str, method: str) -> None:
    reference = Setting(kind)
    exact = reference.reverse(reference.value(FixedStep("rk4", n_steps=64), Backprop(), save=True))
    order = METHODS[method].order
    errors = []
    for n in (16, 32):
        setting = Setting(kind)
        found = setting.reverse(setting.value(FixedStep(method, n_steps=n), Adjoint(), save=True))
        errors.append(max(float((x - y).abs().max()) for x, y in zip(found, exact, strict=True)))
    assert errors[1] < max(errors[0] / 2 ** (min(order, 4) - 0.5), 1e-7)


@each_method
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_forward_mode(kind: str, method: str, gradient: str) -> None:
    """Equal to reverse mode, or refused."""
    for solver in solvers(method, kind):
        setting = Setting(kind)
        if gradient == "adjoint":
            with pytest.raises(UsageError, match="forward mode"):
                setting.forward(solver, GRADIENTS[gradient])
            continue
        expected = setting.along(setting.reverse(setting.value(solver, Backprop(), save=True)))
        found = Setting(kind).forward(solver, GRADIENTS[gradient], save=True)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-11)


@each_method
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_second_derivatives(kind: str, method: str, gradient: str) -> None:
    """Equal to differences of first derivatives, or refused."""
    solver = FixedStep(method, n_steps=2)
    setting = Setting(kind)
    value = setting.value(solver, GRADIENTS[gradient], save=True)
    if gradient == "adjoint":
        with pytest.raises(UsageError, match="second derivatives"):
            setting.reverse(value, create_graph=True)
        return
    found = setting.along(setting.reverse(setting.along(setting.reverse(value, create_graph=True))))
    expected = setting.difference(
        lambda: setting.along(setting.reverse(setting.value(solver, Backprop(), save=True)))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@each_method
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_derivatives_by_times(kind: str, method: str, gradient: str) -> None:
    """By both ends and by independent saved times, in both modes."""
    fine_steps: list[Solver] = [FixedStep(method, n_steps=50)]
    accuracy = {1: 0.2, 2: 5e-3, 3: 2e-4}.get(
        METHODS[method].order, 2e-5
    )  # of the adjoint's exact flow
    for fine in fine_steps if gradient == "adjoint" else solvers(method, kind):
        setting = Setting(kind, times=True)
        found = setting.reverse(setting.value(fine, GRADIENTS[gradient], save=True))
        reference = Setting(kind, times=True)
        expected = reference.reverse(reference.value(fine, Backprop(), save=True))
        tolerance = 1e-9 if gradient != "adjoint" else accuracy
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
        if gradient == "adjoint":
            with pytest.raises(UsageError, match="forward mode"):
                Setting(kind, times=True).forward(fine, GRADIENTS[gradient], save=True)
        else:
            along = Setting(kind, times=True).forward(fine, GRADIENTS[gradient], save=True)
            torch.testing.assert_close(along, setting.along(found), rtol=1e-8, atol=1e-10)


@each_method
def test_derivatives_by_times_are_those_of_differences(kind: str, method: str) -> None:
    """Only inner times move, so none leaves the interval; steps are fixed fractions of it."""
    setting = Setting(kind, times=True)
    setting.times.requires_grad_(False)
    setting.times = torch.tensor([0.3, 0.62], dtype=torch.float64, requires_grad=True)
    setting.inputs = [setting.start, setting.end, setting.times]
    solver = FixedStep(method, n_steps=3)
    found = setting.along(setting.reverse(setting.value(solver, Backprop(), save=True)))
    expected = setting.difference(lambda: setting.value(solver, Backprop(), save=True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
