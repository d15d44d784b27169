"""The divergence: against the Jacobian, in value and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from tests.problems import TanhField, states
from trueode.catalog import ACTIVATIONS
from trueode.errors import UsageError
from trueode.fields import ConvField, DenseField, Divergence, SequentialField
from trueode.solvers import FixedStep, solve
from trueode.solvers.stack import stack_field, with_divergence

TIME = torch.tensor(0.3, dtype=torch.float64)


def layers(hidden: int, act: str = "tanh", d: int = 3, *, timed: bool = True) -> SequentialField:
    """A field with so many hidden layers."""
    torch.manual_seed(hidden)
    sizes = [d + timed, *range(5, 5 + hidden), d]
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), getattr(nn, ACTIVATIONS[act].module)()]
    return SequentialField(*modules[:-1], time_dependent=timed).double()


def augmented(z: Tensor) -> Tensor:
    return torch.cat([z.flatten(1), z.new_zeros(len(z), 1)], dim=1)


def by_jacobian(field: Callable[..., Any], t: Any, z: Tensor) -> Tensor:
    """The field, and minus the trace of its Jacobian, of each sample by itself."""
    rows = []
    for i, sample in enumerate(z):
        own = t[i : i + 1] if isinstance(t, Tensor) and t.dim() else t
        jacobian = torch.autograd.functional.jacobian(
            lambda x, own=own: field(own, x[None])[0].flatten(), sample
        )
        trace = jacobian.reshape(sample.numel(), -1).diagonal().sum()
        rows.append(torch.cat([field(own, sample[None]).flatten(), -trace[None]]))
    return torch.stack(rows).detach()


def other_kinds() -> list[tuple[str, Callable[..., Any], Tensor]]:
    torch.manual_seed(0)
    return [
        ("recognised", TanhField(), states()),
        ("function", lambda t, z: torch.sin(z * t) * z.sum(1, keepdim=True), states(4, 3)),
        ("without the state", lambda t, z: t * torch.ones_like(z), states()),
        ("constant", lambda t, z: torch.ones_like(z), states()),
        ("deep", layers(4), states(4, 3)),
        ("one number", lambda t, z: z**3, states(4, 1)),
        ("images", ConvField(2, 4, 2, "tanh", True).double(), torch.randn(3, 2, 4, 3).double()),
        ("signals", ConvField(2, 4, 1, "softplus").double(), torch.randn(3, 2, 5).double()),
        ("flattened", DenseField(6, 5, "gelu", True).double(), torch.randn(3, 2, 3).double()),
    ]


@pytest.mark.parametrize("hidden", [0, 1, 2, 3])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_trace_of_layers_is_the_sum_of_the_diagonal(hidden: int, act: str) -> None:
    field, z = layers(hidden, act), states(5, 3)
    torch.testing.assert_close(
        Divergence(field, (3,))(TIME, augmented(z)), by_jacobian(field, TIME, z)
    )


@pytest.mark.parametrize("kind", other_kinds(), ids=lambda kind: kind[0])
def test_the_trace_of_any_field_is_the_sum_of_the_diagonal(kind: Any) -> None:
    _, field, z = kind
    expected, traced = by_jacobian(field, TIME, z), Divergence(field, z.shape[1:])
    torch.testing.assert_close(traced(TIME, augmented(z)), expected)
    with torch.no_grad():
        found = traced(TIME, augmented(z))
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(traced(TIME.clone(), augmented(z.clone())).clone(), expected)


@pytest.mark.parametrize("field", [layers(1), layers(4), ConvField(1, 3, 1, "tanh", True).double()])
def test_samples_may_have_their_own_times(field: nn.Module) -> None:
    z = states(4, 3) if isinstance(field, SequentialField) else states(4, 3)[:, None]
    t = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None]
    own = t.view(-1, *[1] * (z.dim() - 1))
    found = Divergence(field, z.shape[1:])(t, augmented(z))
    torch.testing.assert_close(found, by_jacobian(field, own, z))


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("noisy", [False, True])
def test_derivatives_are_right_twice(hidden: int, noisy: bool) -> None:
    field, z = layers(hidden, d=2), states(3)
    traced = Divergence(field, (2,), states(3, seed=5).sign() if noisy else None)
    weights = [p.detach().requires_grad_() for p in field.parameters()]
    names = [f"field.{name}" for name, _ in field.named_parameters()]

    def call(state: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        found: Tensor = torch.func.functional_call(traced, given, (TIME, state))
        return found

    arguments = (augmented(z).requires_grad_(), *weights)
    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("act", ["tanh", "softplus", "gelu", "silu", "sigmoid"])
def test_closed_forms_have_the_derivatives_of_products(hidden: int, act: str) -> None:
    field, z = layers(hidden, act), states(5, 3)
    stack = field.layer_stack(z.shape)
    assert stack is not None
    diverging = with_divergence(stack, 3)
    assert diverging is not None
    weights = torch.randn(5, 4, dtype=torch.float64)
    state = augmented(z).requires_grad_()
    value, trace = Divergence(field, (3,))._products(TIME, state[:, :-1])
    products = torch.cat([value, -trace[:, None]], dim=1)
    gradients = [
        torch.autograd.grad((found * weights).sum(), [state, *field.parameters()])
        for found in (stack_field(diverging)(TIME, state), products)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_estimate_has_the_trace_as_its_mean() -> None:
    """Over all noises of ±1 there are."""
    field, z = layers(2), states(4, 3)
    found = [
        Divergence(field, (3,), torch.tensor(noise, dtype=torch.float64).expand(4, 3))(
            TIME, augmented(z)
        )
        for noise in product((-1.0, 1.0), repeat=3)
    ]
    torch.testing.assert_close(torch.stack(found).mean(0), by_jacobian(field, TIME, z))
    assert torch.stack(found)[:, :, -1].std(0).min() > 0


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap": torch.func.vmap,
    "grad": lambda f: torch.func.grad(lambda z: f(z).cos().sum()),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda z: f(z).cos().sum())),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
}


def plain(name: str, f: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """What a transform computes, by a loop and by autograd."""
    if name == "vmap":
        return torch.stack([f(z) for z in states])
    if name.startswith("jac"):
        found: Tensor = torch.autograd.functional.jacobian(f, states[0])
        return found
    rows = []
    for z in states if name == "vmap of grad" else states[:1]:
        z = z.clone().requires_grad_()
        rows += torch.autograd.grad(f(z).cos().sum(), z)
    return torch.stack(rows) if name == "vmap of grad" else rows[0]


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch's own, in forward mode
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    "kind", [("layers", layers(1), states(4, 3)), *other_kinds()], ids=lambda kind: kind[0]
)
@pytest.mark.parametrize("noisy", [False, True])
def test_transforms_of_a_solve_give_what_loops_and_autograd_give(
    noisy: bool, kind: Any, name: str
) -> None:
    _, field, z = kind
    noise = states(*augmented(z).shape, seed=5)[:, 1:].sign() if noisy else None
    traced, solver = Divergence(field, z.shape[1:], noise), FixedStep("midpoint", n_steps=2)

    def flow(state: Tensor) -> Tensor:
        return solve(traced, state, solver=solver).z

    starts = torch.stack([augmented(z), augmented(0.5 * z.flip(0))])
    expected = plain(name, flow, starts)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            found = TRANSFORMS[name](flow)(starts if "vmap" in name else starts[0])
        torch.testing.assert_close(found, expected)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(n, 4\).*\(5, 3\)"):
        Divergence(layers(1), (3,))(TIME, states(5, 3))
    with pytest.raises(UsageError, match=r"noise.*\(2, 3\).*\(5, 3\)"):
        Divergence(layers(1), (3,), states(2, 3))(TIME, augmented(states(5, 3)))
