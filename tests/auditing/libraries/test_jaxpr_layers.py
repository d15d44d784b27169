"""Fields of JAX as layers: the same values, and no layers where a field computes anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trueode import Audit, audit
from trueode.auditing.interception import replaced
from trueode.auditing.libraries import common_field
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.layers import LayerStack
from trueode.solvers import Adaptive, FixedStep
from trueode.solvers.stack import stack_field
from trueode.solvers.states import pack_stack

dfx = pytest.importorskip("diffrax")
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import nn  # noqa: E402

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nn.relu,
    "lrelu": nn.leaky_relu,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "cube": lambda x: x**3,
}
RANDOM = np.random.default_rng(0)
W1, W2, W3 = (jnp.asarray(RANDOM.normal(size=s) / 2, "f4") for s in ((8, 2), (5, 8), (2, 5)))
B1, B2, B3 = (jnp.asarray(RANDOM.normal(size=n), "f4") for n in (8, 5, 2))
CLOCK = jnp.asarray(RANDOM.normal(size=8), "f4")
X = RANDOM.normal(size=(40, 2)).astype("f4")
MORE = RANDOM.normal(size=(320, 2)).astype("f4")


def solve(vf: Any, y: Any, t1: float = 1.0, **how: Any) -> Any:
    return dfx.diffeqsolve(dfx.ODETerm(vf), dfx.Euler(), 0.0, t1, t1 / 4, y, **how).ys[-1]


def posed(call: Callable[[Any], Any], x: Any = X) -> tuple[ForeignProblem, LayerStack | None]:
    """The problem of the only solve of a function, and the layers of its field."""
    found: list[tuple[ForeignProblem, LayerStack | None]] = []

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        field: Any = problem.field
        found.append((problem, field.layer_stack(problem.z0.shape)))
        return replace_by(FixedStep("euler", n_steps=1))(problem)

    with replaced(look):
        call(jnp.asarray(x))
    (only,) = found
    return only


def assert_same(problem: ForeignProblem, stack: LayerStack | None) -> None:
    """The layers compute what JAX does, up to rounding."""
    assert stack is not None
    field: Any = problem.field
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        time = torch.rand((), generator=generator, dtype=problem.z0.dtype)
        z = 2 * torch.randn(problem.z0.shape, generator=generator, dtype=problem.z0.dtype)
        rows, unpack = pack_stack(stack, z)
        expected = field(time, z)
        near = 30 * torch.finfo(z.dtype).eps * float(expected.abs().amax())
        torch.testing.assert_close(
            unpack(stack_field(stack)(time, rows)), expected, rtol=0.0, atol=near
        )


def mlp(act: Callable[[Any], Any]) -> Callable[..., Any]:
    def vf(t: Any, y: Any, args: Any) -> Any:
        return W3 @ act(W2 @ act(W1 @ y + B1) + B2) + B3

    return vf


def equinox(act: Callable[[Any], Any]) -> Callable[..., Any]:
    net = eqx.nn.MLP(3, 2, 8, depth=2, activation=act, key=jax.random.key(0))
    return lambda t, y, args: net(jnp.append(y, t))


def added(act: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda t, y, args: W3 @ act(W2 @ act(W1 @ y + 2 * t * CLOCK + B1)) - B3


def rows(act: Callable[[Any], Any]) -> Callable[..., Any]:
    def vf(t: Any, y: Any, args: Any) -> Any:
        y = jnp.concatenate([y[:, :1], jnp.full((len(y), 1), t)], axis=-1)
        return act(act(y @ W1.T + B1) @ W2.T + B2) @ W3.T / 3

    return vf


WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "vmap": (mlp, jax.vmap),
    "Equinox, with the time": (equinox, jax.vmap),
    "the time added": (added, lambda f: jax.jit(jax.vmap(f))),
    "rows": (rows, lambda f: f),
    "vmap in the field": (
        lambda act: lambda t, y, args: jax.vmap(mlp(act), (None, 0, None))(t, y, args),
        lambda f: f,
    ),
    "one trajectory": (mlp, lambda f: lambda x: f(x[0])),
    "nested batches": (mlp, lambda f: lambda x: jax.vmap(jax.vmap(f))(x.reshape(4, 10, 2))),
}


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_compute_what_the_field_does(name: str, way: str, double: bool) -> None:
    make, mapped = WAYS[way]
    with jax.enable_x64(double):
        x = X.astype("f8" if double else "f4")
        problem, stack = posed(mapped(lambda y: solve(make(ACTIVATIONS[name]), y)), x)
        assert_same(problem, stack)
    assert stack is not None
    assert stack.layers[0].weight.dtype == (torch.float64 if double else torch.float32)
    assert [layer.activation for layer in stack.layers] == [name, name, "identity"]


@pytest.mark.parametrize("t1", [1.0, -1.0])
def test_solves_by_layers_are_those_of_the_library(t1: float) -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(X, "f8")

        def call(y: Any) -> Any:
            return jax.vmap(lambda y: solve(added(jnp.tanh), y, t1))(y)

        own = call(x)
        with replaced(replace_by(FixedStep("euler", step_size=0.25))) as solves:
            np.testing.assert_allclose(call(x), own, rtol=1e-12, atol=1e-12)
        assert posed(call, x)[1] is not None
    assert (solves[0].n_steps, solves[0].nfe) == (4, 4)


def test_linear_fields_are_one_layer() -> None:
    def turn(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack([-y[1], 4 * y[0]]) * 3.0 + t

    problem, stack = posed(jax.vmap(lambda y: solve(turn, y)))
    assert_same(problem, stack)
    assert stack is not None
    assert len(stack.layers) == 1


def test_weights_may_be_arguments_that_change() -> None:
    def call(args: Any) -> Any:
        def vf(t: Any, y: Any, args: Any) -> Any:
            return args["w"] @ jnp.tanh(W1 @ y)

        return jax.vmap(lambda y: solve(vf, y, args=args))

    for scale in (1.0, 2.0, 1.0):
        args = {"w": scale * W1.T}
        problem, stack = posed(call(args))
        assert_same(problem, stack)
        assert stack is not None
        np.testing.assert_array_equal(stack.layers[-1].weight, args["w"])


def coupled(t: Any, y: Any, args: Any) -> Any:
    return y - y.mean(0)


def narrow(t: Any, y: Any, args: Any) -> Any:
    return (W1.T @ jnp.tanh(W1 @ y).astype("f2")).astype(y.dtype)


def told(t: Any, y: Any, args: Any) -> Any:
    jax.debug.callback(lambda: None)
    return -y


OTHERS: dict[str, Callable[[Any], Any]] = {
    name: jax.vmap(lambda y, vf=vf: solve(vf, y))  # type: ignore[misc]
    for name, vf in {
        "clipped": lambda t, y, args: jnp.clip(W1.T @ jnp.tanh(W1 @ y), -100, 100),
        "a mask of states": lambda t, y, args: jnp.where(jnp.abs(y) < 100, -y, 0.0),
        "a function of the time": lambda t, y, args: jnp.sin(t) * B3 - y,
        "units of the time": lambda t, y, args: -y + W1.T @ jnp.tanh(CLOCK * t),
        "a product with the time": lambda t, y, args: t * y,
        "a product": lambda t, y, args: y * y[::-1],
        "a shortcut": lambda t, y, args: y + W1.T @ jnp.tanh(W1 @ y),
        "another activation": lambda t, y, args: W1.T @ nn.gelu(W1 @ y, approximate=True),
        "an activation of some": lambda t, y, args: jnp.stack([jnp.tanh(y[0]), y[1]]),
        "softmax": lambda t, y, args: nn.softmax(y),
        "a loop": lambda t, y, args: jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y), y),
        "constant": lambda t, y, args: jnp.ones_like(y),
        "half precision": narrow,
        "a callback": told,
    }.items()
} | {
    "coupled samples": lambda x: solve(coupled, x),
    "another field for one sample": lambda x: solve(lambda t, y, args: -y if len(y) == 1 else y, x),
    "parameters for each sample": lambda x: jax.vmap(
        lambda y, a: solve(lambda t, y, args: a * y, y)
    )(x, x),
    "random numbers": lambda x: solve(
        lambda t, y, key: -y + jax.random.normal(key, y.shape), x, args=jax.random.key(0)
    ),
    "times for each sample": lambda x: jax.vmap(
        lambda y: solve(lambda t, y, args: -y, y, 1 + y[0] ** 2)
    )(x),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_fields_are_called(what: str) -> None:
    assert posed(OTHERS[what])[1] is None


def labels(x: Any) -> Any:
    return (np.linalg.norm(x, axis=1) > 1).astype(int)


def classifier(batch: Any) -> Any:
    return 9 * jax.vmap(lambda y: solve(equinox(jnp.tanh), 3 * y))(batch[0])


def facts(found: Audit) -> Any:
    rows = [
        (r.method, r.setting, r.flips, r.changed, r.status, r.n_steps, r.nfe) for r in found.rows
    ]
    return found.verdict, found.flips, found.decision, rows


def test_an_audit_is_the_same_with_layers_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Audit:
        return audit(
            classifier,
            (MORE, labels(MORE)),
            call=lambda f, batch: f(batch),
            methods=("euler", "dopri5"),
        )

    found = run()
    known = [*common_field.known.values()]
    assert any(stack is not None for stack in known)
    common_field.known.clear()
    monkeypatch.setattr(common_field, "layers_of", lambda *_: None)
    called = run()
    assert not any(common_field.known.values())
    common_field.known.clear()
    assert facts(found) == facts(called)
    assert found.exact is not None
    assert called.exact is not None
    assert found.exact.evaluations <= 1.25 * called.exact.evaluations
    assert found.reference is not None
    assert called.reference is not None
    torch.testing.assert_close(
        found.reference.outputs, called.reference.outputs, rtol=1e-9, atol=1e-9
    )


def test_steps_of_adaptive_solvers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Any:
        with jax.enable_x64(True), replaced(replace_by(Adaptive("dopri5", 1e-6, 1e-6))) as solves:
            states = jax.vmap(lambda y: solve(added(jnp.tanh), y))(jnp.asarray(X, "f8"))
        return solves[0].nfe, solves[0].n_steps, np.asarray(states)

    nfe, n, states = steps()
    common_field.known.clear()
    monkeypatch.setattr(common_field, "layers_of", lambda *_: None)
    same_nfe, same_n, same = steps()
    common_field.known.clear()
    assert (nfe, n) == (same_nfe, same_n)
    np.testing.assert_allclose(states, same, rtol=1e-12, atol=1e-12)
