"""The kernels of whole solves, in Triton: a program solves for a block of samples, with the weights
and all stages of a step on the chip.

Widths are padded to what ``tl.dot`` takes. Padded weights are zero, so padded numbers of a state
stay zero, and those of a hidden layer have no effect.
"""

# ruff: noqa: RUF005 - the compiler does not unpack into tuples

from __future__ import annotations

import os
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from trueode.solvers.backends.gpu.activations import activated

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Form(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        widths: the width of the state, and of each layer's output.
        padded: the same, padded.
        activations: the name of each layer's activation.
        timed: whether each layer sees the time.
        starts: where each layer begins among the packed ones, and where the last one ends.
        stages: the number of stages, and the same as a power of two.
        block: the samples of a program.
        keeps: whether the forward pass keeps what the backward pass needs.
        saves: whether states are saved on the way.
    """

    widths: tuple[int, ...]
    padded: tuple[int, ...]
    activations: tuple[str, ...]
    timed: tuple[bool, ...]
    starts: tuple[int, ...]
    stages: tuple[int, int]
    block: int
    keeps: bool
    saves: bool


class Given(NamedTuple):
    """What both kernels read.

    Attributes:
        layers: the layers, packed: of each its weight ``(out, in)``, bias and time weight.
        table: a row for each step: the times of its stages, and ``h a`` and ``h b``, where ``b``
            is the last row of ``a``; ``(steps, stages * (stages + 2))``.
        saved: for each grid point the number of the first state saved there or later, and the
            number of all, ``(steps + 2,)``.
    """

    layers: Tensor
    table: Tensor
    saved: Tensor


class States(NamedTuple):
    """States that the forward pass reads and writes.

    Attributes:
        first: the initial ones, ``(batch, width)``; read.
        final: the final ones.
        saved: the saved ones, ``(times, batch, width)``.
        entering: those at which the field is evaluated, ``(steps, stages, batch, width)``.
    """

    first: Tensor
    final: Tensor
    saved: Tensor
    entering: Tensor


class Gradients(NamedTuple):
    """What the backward pass reads and writes.

    Attributes:
        final: the gradients of the final states.
        saved: those of the saved states.
        entering: as in `States`.
        first: the gradients of the initial states; written.
        layers: those of the packed layers, a row for each program; written.
    """

    final: Tensor
    saved: Tensor
    entering: Tensor
    first: Tensor
    layers: Tensor


@triton.jit
def _dot(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    return tl.dot(x, y, input_precision="ieee", out_dtype=x.dtype)


@triton.jit
def _places(FORM: tl.constexpr, J: tl.constexpr) -> tl.tuple:
    """Where the weights of layer ``j``, transposed, and its bias lie in it, and masks."""
    i, o = tl.arange(0, FORM.padded[J])[:, None], tl.arange(0, FORM.padded[J + 1])
    inside = o < FORM.widths[J + 1]
    weights = o[None, :] * FORM.widths[J] + i, (i < FORM.widths[J]) & inside[None, :]
    return weights[0], weights[1], FORM.widths[J] * FORM.widths[J + 1] + o, inside


@triton.jit
def _layer(at: tl.tensor, FORM: tl.constexpr, J: tl.constexpr) -> tl.tuple:
    """Weights, bias and time weight of layer ``j``."""
    w_at, w_inside, b_at, b_inside = _places(FORM, J)
    bias = tl.load(at + b_at, mask=b_inside, other=0)
    time = bias
    if FORM.timed[J]:
        time = tl.load(at + FORM.widths[J + 1] + b_at, mask=b_inside, other=0)
    return tl.load(at + w_at, mask=w_inside, other=0), bias, time


@triton.jit
def _layers(at: tl.tensor, FORM: tl.constexpr) -> tl.tuple:
    """All layers, as tuples of weights, bias and time weight."""
    found = ()
    for j in tl.static_range(len(FORM.timed)):
        found = found + (_layer(at + FORM.starts[j], FORM, j),)
    return found


@triton.jit
def _store_layer(at: tl.tensor, sums: tl.tuple, FORM: tl.constexpr, J: tl.constexpr) -> None:
    """Write gradients of layer ``j`` as it is packed."""
    w_at, w_inside, b_at, b_inside = _places(FORM, J)
    weight, bias, time = sums
    tl.store(at + w_at, weight, mask=w_inside)
    tl.store(at + b_at, bias, mask=b_inside)
    if FORM.timed[J]:
        tl.store(at + FORM.widths[J + 1] + b_at, time, mask=b_inside)


@triton.jit
def _field(t: tl.tensor, z: tl.tensor, layers: tl.tuple, FORM: tl.constexpr) -> tl.tuple:
    """The field, with the inputs of the layers and the slopes of their activations."""
    x, inputs, slopes = z, (), ()
    for j in tl.static_range(len(FORM.timed)):
        weight, bias, time = layers[j]
        if FORM.timed[j]:
            bias += t * time
        inputs = inputs + (x,)
        x, slope = activated(_dot(x, weight) + bias[None, :], FORM.activations[j])
        slopes = slopes + (slope,)
    return x, inputs, slopes


@triton.jit
def _pulled_back(
    t: tl.tensor, known: tl.tuple, g: tl.tensor, layers: tl.tuple, sums: tl.tuple
) -> tl.tuple:
    """From the gradient ``g`` of the field's value to that of the state, and the ``sums`` of the
    layers' gradients with these added. ``known``: the layers' inputs and slopes.
    """
    inputs, slopes = known
    found = ()
    for r in tl.static_range(len(inputs)):
        weight, _, _ = layers[len(inputs) - 1 - r]
        d_weight, d_bias, d_time = sums[len(inputs) - 1 - r]
        g *= slopes[len(inputs) - 1 - r]
        d_weight += _dot(tl.trans(inputs[len(inputs) - 1 - r]), g)
        total = tl.sum(g, axis=0)
        found = ((d_weight, d_bias + total, d_time + t * total),) + found
        g = _dot(g, tl.trans(weight))
    return g, found


@triton.jit
def _weighted(weights: tl.tensor, stages: tl.tensor) -> tl.tensor:
    """``sum_i weights_i stages_i``."""
    return tl.sum(weights[:, None, None] * stages, axis=0)


@triton.jit
def _samples(block: tl.tensor, n: tl.tensor, FORM: tl.constexpr) -> tl.tuple:
    """Where the states of a block of samples lie, and a mask."""
    rows = tl.cast(block, tl.int64) * FORM.block + tl.arange(0, FORM.block)[:, None]
    columns = tl.arange(0, FORM.padded[0])[None, :]
    return rows * FORM.widths[0] + columns, (rows < n) & (columns < FORM.widths[0])


@triton.jit
def _save(to: tl.tensor, z: tl.tensor, mask: tl.tensor, saved: tl.tensor, size: tl.tensor) -> None:
    """Write the state of a grid point as often as it is saved."""
    for point in range(tl.load(saved), tl.load(saved + 1)):
        tl.store(to + point * size, z, mask=mask)


@triton.jit
def _saved(
    g: tl.tensor, of: tl.tensor, mask: tl.tensor, saved: tl.tensor, size: tl.tensor
) -> tl.tensor:
    """The gradient of a grid point's state, with those of the states that are saved there."""
    for point in range(tl.load(saved), tl.load(saved + 1)):
        g += tl.load(of + point * size, mask=mask, other=0)
    return g


@triton.jit(do_not_specialize=["n", "steps"])
def forward(
    given: tl.tuple, states: tl.tuple, n: tl.tensor, steps: tl.tensor, FORM: tl.constexpr
) -> None:
    """Solve.

    Args:
        given: a `Given`.
        states: the `States`, written except the first.
        n: the number of samples.
        steps: the number of steps.
        FORM: a `Form`.
    """
    STAGES: tl.constexpr = FORM.stages[0]
    at, mask = _samples(tl.program_id(0), n, FORM)
    size = tl.cast(n, tl.int64) * FORM.widths[0]
    layers = _layers(given.layers, FORM)
    row, saved, entering = given.table, given.saved, states.entering
    number = tl.arange(0, FORM.stages[1])
    z = tl.load(states.first + at, mask=mask, other=0)
    for _ in range(steps):
        if FORM.saves:
            _save(states.saved + at, z, mask, saved, size)
            saved += 1
        stages = tl.zeros((FORM.stages[1], FORM.block, FORM.padded[0]), z.dtype)
        for i in range(STAGES):
            a = tl.load(row + (i + 1) * STAGES + number, mask=number < STAGES, other=0)
            y = z + _weighted(a, stages)
            if FORM.keeps:
                tl.store(entering + at, y, mask=mask)
                entering += size
            k, _inputs, _slopes = _field(tl.load(row + i), y, layers, FORM)
            stages = tl.where((number == i)[:, None, None], k[None, :, :], stages)
        b = tl.load(row + (STAGES + 1) * STAGES + number, mask=number < STAGES, other=0)
        z += _weighted(b, stages)
        row += STAGES * (STAGES + 2)
    if FORM.saves:
        _save(states.saved + at, z, mask, saved, size)
    tl.store(states.final + at, z, mask=mask)


@triton.jit(do_not_specialize=["n", "steps"])
def backward(
    given: tl.tuple, gradients: tl.tuple, n: tl.tensor, steps: tl.tensor, FORM: tl.constexpr
) -> None:
    """Pull the gradients of the final and the saved states back through the steps, with the layers
    of every stage computed again (Sandu, 2006, eq. 8).

    Args:
        given: a `Given`.
        gradients: `Gradients`.
        n: the number of samples.
        steps: the number of steps.
        FORM: a `Form`.
    """
    STAGES: tl.constexpr = FORM.stages[0]
    size = tl.cast(n, tl.int64) * FORM.widths[0]
    layers = _layers(given.layers, FORM)
    number = tl.arange(0, FORM.stages[1])
    sums = ()
    for j in tl.static_range(len(FORM.timed)):
        bias = tl.zeros((FORM.padded[j + 1],), given.layers.dtype.element_ty)
        weight = tl.zeros((FORM.padded[j], FORM.padded[j + 1]), bias.dtype)
        sums = sums + ((weight, bias, bias),)
    for block in range(tl.program_id(0), tl.cdiv(n, FORM.block), tl.num_programs(0)):
        at, mask = _samples(block, n, FORM)
        row = given.table + tl.cast(steps, tl.int64) * STAGES * (STAGES + 2)
        entering = gradients.entering + steps * STAGES * size
        saved = given.saved + steps
        g = tl.load(gradients.final + at, mask=mask, other=0)
        for _ in range(steps):
            if FORM.saves:
                g = _saved(g, gradients.saved + at, mask, saved, size)
                saved -= 1
            row -= STAGES * (STAGES + 2)
            pulled = tl.zeros((FORM.stages[1], FORM.block, FORM.padded[0]), g.dtype)
            for r in range(STAGES):
                i = STAGES - 1 - r
                entering -= size
                y = tl.load(entering + at, mask=mask, other=0)
                a = tl.load(row + (number + 1) * STAGES + i, mask=number < STAGES, other=0)
                k = tl.load(row + (STAGES + 1) * STAGES + i) * g + _weighted(a, pulled)
                t = tl.load(row + i)
                _value, inputs, slopes = _field(t, y, layers, FORM)
                k, sums = _pulled_back(t, (inputs, slopes), k, layers, sums)
                pulled = tl.where((number == i)[:, None, None], k[None, :, :], pulled)
            g += tl.sum(pulled, axis=0)
        if FORM.saves:
            g = _saved(g, gradients.saved + at, mask, saved, size)
        tl.store(gradients.first + at, g, mask=mask)
    part = gradients.layers + tl.program_id(0).to(tl.int64) * FORM.starts[len(FORM.timed)]
    for j in tl.static_range(len(FORM.timed)):
        _store_layer(part + FORM.starts[j], sums[j], FORM, j)
