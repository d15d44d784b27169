"""The Neural ODE of diffrax's documentation: it learns the trajectories of a nonlinear field."""

from __future__ import annotations

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

WHAT = (
    "trajectories of a nonlinear field, as in its Neural ODE example (Tsit5, tolerances 1e-3, 1e-6)"
)
PACKAGES = ("diffrax", "equinox", "jax", "optax")
TIMES = jnp.linspace(0.0, 10.0, 100)
ADAPTIVE = diffrax.PIDController(rtol=1e-3, atol=1e-6)


def solved(field: Any, y0: Array, times: Array) -> Array:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), times[0], times[-1], times[1] - times[0], y0,
        saveat=diffrax.SaveAt(ts=times), stepsize_controller=ADAPTIVE,
    )  # fmt: skip
    return solution.ys


class NeuralODE(eqx.Module):
    mlp: eqx.nn.MLP

    def __init__(self, key: Array) -> None:
        self.mlp = eqx.nn.MLP(2, 2, 64, depth=2, activation=jax.nn.softplus, key=key)

    def __call__(self, y0: Array, times: Array) -> Array:
        return solved(lambda t, y, args: self.mlp(y), y0, times)


def trajectories(n: int, key: Array) -> tuple[Array, Array]:
    def field(t: Array, y: Array, args: Any) -> Array:
        x = y / (1 + y)
        return jnp.stack([x[1], -x[0]])

    y0 = jax.random.uniform(key, (n, 2), minval=-0.6, maxval=1.0)
    return y0, jax.vmap(lambda y0: solved(field, y0, TIMES))(y0)


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The model, trajectories that it has not seen, and the arguments of its audit."""
    keys = jax.random.split(jax.random.key(0), 3)
    model, (y0, y) = NeuralODE(keys[0]), trajectories(256, keys[1])
    for rate, part in ((3e-3, 10), (3e-3, 100)):  # the beginning of the trajectories first
        optimizer = optax.adabelief(rate)
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        for number in range(500):
            rows = jnp.arange(32) + 32 * (number % 8)
            model, state = _step(model, state, optimizer, y0[rows], y[rows, :part], TIMES[:part])
    y0, y = trajectories(8000, keys[2])
    return model, (y0, y, TIMES), {
        "task": "timeseries",
        "samples": 8000,
        "call": lambda model, batch: jax.vmap(model, (0, None))(batch[0], batch[2]),
    }  # fmt: skip


@eqx.filter_jit
def _step(
    model: NeuralODE, state: Any, optimizer: Any, y0: Array, y: Array, times: Array
) -> tuple[NeuralODE, Any]:
    def loss(model: NeuralODE) -> Array:
        return jnp.mean((jax.vmap(model, (0, None))(y0, times) - y) ** 2)

    updates, state = optimizer.update(eqx.filter_grad(loss)(model), state, model)
    return eqx.apply_updates(model, updates), state
