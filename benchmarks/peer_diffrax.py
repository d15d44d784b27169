"""Training steps through diffrax, jitted, in a process of their own: ``benchmarks/run.py`` calls this and reads its JSON.

The fields are written in the form that is fastest for it: the convolution of a signal of two points as one matrix.
Of diffrax's ways to take gradients, its default and direct back-propagation, the faster one counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optax

BATCH = 128


def init(key: Any, *shapes: tuple[int, int]) -> list[tuple[Any, Any]]:
    keys = jax.random.split(key, len(shapes))
    return [
        (jax.random.normal(k, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
        for k, shape in zip(keys, shapes, strict=True)
    ]


def conv_field(t: Any, z: Any, weights: Any) -> Any:
    """Conv1d 1 -> 32 -> 32 (width 3) -> 1 on two points: the taps that reach them are one matrix of 64 x 64."""
    (w1, b1), (w2, b2), (w3, b3) = weights
    x = jax.nn.relu(z[:, :, None] * w1[0] + b1).reshape(len(z), -1)
    left, middle, right = w2.reshape(3, 32, 32)
    x = jax.nn.relu(x @ jnp.block([[middle, left], [right, middle]]) + jnp.tile(b2, 2)).reshape(len(z), 2, 32)
    return (x @ w3 + b3)[:, :, 0]


def dense_field(t: Any, z: Any, weights: Any) -> Any:
    (w1, b1), (w2, b2), (w3, b3) = weights
    return jax.nn.relu(jax.nn.relu(z @ w1 + b1) @ w2 + b2) @ w3 + b3


def training_step(field: Callable[..., Any], weights: Any, adjoint: Any, **how: Any) -> Callable[[], None]:
    head = init(jax.random.PRNGKey(1), (2, 2))
    optimizer = optax.adam(1e-4)
    parameters = (weights, head)
    state = optimizer.init(parameters)
    x, labels = jax.random.normal(jax.random.PRNGKey(2), (BATCH, 2)), jnp.arange(BATCH) % 2

    def loss(parameters: Any, x: Any, labels: Any) -> Any:
        weights, [(w, b)] = parameters
        term = diffrax.ODETerm(field)
        z = diffrax.diffeqsolve(term, t0=0.0, t1=1.0, y0=x, args=weights, adjoint=adjoint, max_steps=4096, **how).ys[-1]
        return optax.softmax_cross_entropy_with_integer_labels(z @ w + b, labels).mean()

    @jax.jit
    def update(parameters: Any, state: Any, x: Any, labels: Any) -> Any:
        gradients = jax.grad(loss)(parameters, x, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), state

    box = [parameters, state]

    def step() -> None:
        box[0], box[1] = jax.block_until_ready(update(box[0], box[1], x, labels))

    return step


def median(step: Callable[[], None], seconds: float) -> float:
    """In milliseconds."""
    for _ in range(3):
        step()
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    seconds, key = float(sys.argv[1]), jax.random.PRNGKey(0)
    conv, dense = init(key, (1, 32), (96, 32), (32, 1)), init(key, (2, 64), (64, 64), (64, 2))
    euler = {"solver": diffrax.Euler(), "dt0": 1 / 64}
    dopri5 = {
        "solver": diffrax.Dopri5(),
        "dt0": None,
        "stepsize_controller": diffrax.PIDController(rtol=1e-5, atol=1e-5),
    }
    adjoints = [diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint()]
    cases = {"euler": (conv_field, conv, euler), "dopri5": (dense_field, dense, dopri5)}
    found = {
        name: min(median(training_step(field, weights, adjoint, **how), seconds) for adjoint in adjoints)
        for name, (field, weights, how) in cases.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
