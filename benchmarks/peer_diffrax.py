"""The workloads of `run.py` in diffrax, jitted.

``python benchmarks/peer_diffrax.py WORK SIDE`` serves one of them. The fields have the form that is
fastest in diffrax: the convolution of a signal of two points is one matrix. ``diffrax`` uses the
default gradient, ``diffrax, direct`` direct back-propagation. The weights equal those of
`steps.py`, and the learning rate is too small to change them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

if os.environ.get("NPROC") == "1":  # before XLA starts its threads
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    )

import diffrax
import jax
import jax.numpy as jnp
import optax
import weights
from turns import serve

BATCH, RATE, TOLERANCE = 128, 1e-9, 1e-5
Weights = list[tuple[Any, Any]]


def init(*shapes: tuple[int, int]) -> Weights:
    return [(jnp.asarray(matrix), jnp.asarray(bias)) for matrix, bias in weights.layers(shapes)]


def conv_field(t: Any, z: Any, layers: Weights) -> Any:
    """Conv1d 1 -> 32 -> 32 (width 3) -> 1 on two points, whose middle layer is a 64 x 64 matrix."""
    (w1, b1), (w2, b2), (w3, b3) = layers
    x = jax.nn.relu(z[:, :, None] * w1[0] + b1).reshape(len(z), -1)
    left, middle, right = w2.reshape(3, 32, 32)
    x = jax.nn.relu(x @ jnp.block([[middle, left], [right, middle]]) + jnp.tile(b2, 2)).reshape(
        len(z), 2, 32
    )
    return (x @ w3 + b3)[:, :, 0]


def image_field(t: Any, z: Any, layers: Weights) -> Any:
    """Conv2d 3 -> 32 -> 32 (3 x 3) -> 3 on images with the channels last. The middle layer is a
    product with the nine pixels around each, many times as fast on a CPU as XLA's convolution.
    """
    (w1, b1), (w2, b2), (w3, b3) = layers
    x = jnp.pad(jax.nn.relu(z @ w1 + b1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = z.shape[1:3]
    around = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jax.nn.relu(jnp.concatenate(around, -1) @ w2 + b2) @ w3 + b3


def dense_field(t: Any, z: Any, layers: Weights) -> Any:
    (w1, b1), (w2, b2), (w3, b3) = layers
    return jax.nn.relu(jax.nn.relu(z @ w1 + b1) @ w2 + b2) @ w3 + b3


def training_step(
    field: Callable[..., Any], layers: Weights, x: Any, classes: int, adjoint: Any, **how: Any
) -> Callable[[], Any]:
    """Fit a linear head on the flow to labels: loss, gradient and Adam in one compiled function.

    The step returns the new parameters without waiting for them.
    """
    optimizer = optax.adam(RATE)
    parameters = (layers, init((x[0].size, classes)))
    state = optimizer.init(parameters)
    labels = jnp.arange(len(x)) % classes

    def loss(parameters: Any, x: Any, labels: Any) -> Any:
        layers, [(w, b)] = parameters
        term = diffrax.ODETerm(field)
        z = diffrax.diffeqsolve(term, t0=0.0, t1=1.0, y0=x, args=layers, adjoint=adjoint, **how).ys[
            -1
        ]
        logits = z.reshape(len(z), -1) @ w + b
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(parameters: Any, state: Any, x: Any, labels: Any) -> Any:
        gradients = jax.grad(loss)(parameters, x, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), state

    box = [parameters, state]

    def step() -> Any:
        box[0], box[1] = update(box[0], box[1], x, labels)
        return box[0]

    return step


def step_of(work: str, side: str) -> Callable[[], Any]:
    """The training step of a workload."""
    adjoint = (
        diffrax.DirectAdjoint()
        if side == "diffrax, direct"
        else diffrax.RecursiveCheckpointAdjoint()
    )
    points = jnp.asarray(weights.points(BATCH))
    if work == "euler":
        layers = init((1, 32), (96, 32), (32, 1))
        how = {"solver": diffrax.Euler(), "dt0": 1 / 64, "max_steps": 64}
        return training_step(conv_field, layers, points, 2, adjoint, **how)
    if work == "images32":
        layers = init((3, 32), (288, 32), (32, 3))
        how = {"solver": diffrax.Euler(), "dt0": 1 / 16, "max_steps": 16}
        images = jax.random.uniform(jax.random.key(0), (64, 32, 32, 3))
        return training_step(image_field, layers, images, 10, adjoint, **how)
    layers = init((2, 64), (64, 64), (64, 2))
    controller = diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE)
    how = {"solver": diffrax.Dopri5(), "dt0": None, "stepsize_controller": controller}
    return training_step(dense_field, layers, points, 2, adjoint, **how)


def main(work: str, side: str) -> None:
    step = step_of(work, side)
    serve(lambda: jax.block_until_ready(step()))


if __name__ == "__main__":
    main(*sys.argv[1:])
