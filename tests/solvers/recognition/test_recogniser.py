from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solvers.recognition.fields import CALLS, LAYERS, OTHERS, Given
from trueode.layers import LayerStack
from trueode.solvers import Adaptive, FixedStep, solve
from trueode.solvers.recognition import find_layers

SOLVERS = (FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-6, 1e-6))


class Called:
    """Calls a field, and is nothing else that could be recognised."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.calls = field, 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return self.field(t, z)


def layers_of(field: Any, z: Tensor) -> LayerStack | None:
    return find_layers(field, z, lambda: torch.tensor(0.2, dtype=z.dtype))


def state(given: Given, batch: int = 4, **kind: Any) -> Tensor:
    return torch.randn(batch, *given.shape, generator=torch.Generator().manual_seed(1), **kind)


def params_of(field: Any) -> list[Tensor]:
    modules = [field, getattr(field, "field", None), getattr(field, "__self__", None)]
    modules += [cell.cell_contents for cell in getattr(field, "__closure__", None) or ()]
    modules += getattr(field, "__defaults__", None) or ()
    found = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("given", LAYERS, ids=lambda given: given.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_are_recognised_and_equal_calling_the_field(
    given: Given, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        field = given.make()
    finally:
        torch.set_default_dtype(torch.float32)
    z = state(given, dtype=dtype)
    assert layers_of(field, z) is not None
    params = params_of(field)
    # in single precision, kinks of activations change the steps of an adaptive solver
    for solver in SOLVERS if dtype is torch.float64 else SOLVERS[:1]:
        found = []
        for each in (field, Called(field)):
            start = z.clone().requires_grad_()
            solution = solve(each, start, (0.2, 1.1), solver=solver)
            gradients = torch.autograd.grad(
                solution.z.square().sum(), [start, *params], allow_unused=True
            )
            found.append((solution.z, solution.nfe, *gradients))
        for x, y in zip(*found, strict=True):
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                torch.testing.assert_close(x, y)
            elif isinstance(x, int):
                assert x == y
            else:  # a parameter that is not used may have no gradient, or zeros
                assert all(each is None or not each.any() for each in (x, y))
    assert not CALLS


@pytest.mark.parametrize("given", OTHERS, ids=lambda given: given.name)
@pytest.mark.filterwarnings("ignore:.*")
def test_everything_else_is_called(given: Given) -> None:
    torch.manual_seed(0)
    field = given.make()
    assert layers_of(field, state(given)) is None
    assert not CALLS
