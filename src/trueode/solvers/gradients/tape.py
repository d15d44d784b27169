"""The discrete gradient of a whole solve, written by hand for fields made of matrix layers.

Autograd records every operation of every stage; here the forward solve writes the layers' inputs to one tape, the
backward pass runs the stages in reverse (Hairer, Hochbruck, Iserles & Lubich's "adjoint of the method"; the discrete
adjoint of Sandu, 2006, eq. 8) and the weights' gradients are one matrix product per layer and chunk of the tape.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trueode.layers import Layer, LayerStack
from trueode.solvers.clock import Clock, Span
from trueode.solvers.gradients.replay import Given, must_be_recorded, replay_gradients
from trueode.solvers.solution import Counter
from trueode.solvers.stack import ACTIVATIONS, shift, stack_field
from trueode.solvers.step import Stepper, StepResult, combine, weighted_sum
from trueode.solvers.tableau import ButcherTableau

CHUNK = 32  # stages per piece of the tape: large enough for efficient products, small enough to stay near the cache

Loop = Callable[[Stepper], tuple[Tensor, Tensor | None]]
Saved = tuple[int, ...]


class _Chunk:
    """Buffers of some stages: for each layer its input and, where the derivative needs it, its pre-activation."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], keeps_input: Sequence[bool], slots: int, like: Tensor):
        self.inputs = [like.new_empty(slots, rows, width) for rows, width, _ in shapes]
        # where a layer writes: the input of the next one, seen as its own rows, or a buffer of its own
        self.outputs = [
            like.new_empty(slots, rows, out) if keep else following.view(slots, rows, out)
            for (rows, _, out), keep, following in zip(shapes, keeps_input, self.inputs[1:], strict=False)
        ]
        self.x = [buffer.unbind(0) for buffer in self.inputs]
        self.y = [buffer.unbind(0) for buffer in self.outputs]
        self.activated = [
            buffer.view(slots, rows, out).unbind(0)
            for (rows, _, out), buffer in zip(shapes, self.inputs[1:], strict=False)
        ]


class Tape:
    """The stages of a solve: evaluation writes them, the backward pass reads them in reverse."""

    def __init__(self, stack: LayerStack, z: Tensor, slots: int = CHUNK) -> None:
        self.layers = stack.layers
        self.slots = slots
        self.chunks: list[_Chunk] = []
        self.times: list[float] = []
        batch, width = z.shape
        self._shapes = []
        for layer in self.layers:
            fan_out, fan_in = layer.weight.shape
            rows = batch * (width // fan_in)
            self._shapes.append((rows, fan_in, fan_out))
            width = width // fan_in * fan_out
        self._matrices = [layer.matrix for layer in self.layers]
        self._state_shape = z.shape
        self._activations = [ACTIVATIONS[layer.activation] for layer in self.layers[:-1]]
        self._keeps_input = [not activation.from_output for activation in self._activations]
        self._like = z

    def _chunk(self, slot: int) -> tuple[_Chunk, int]:
        index, offset = divmod(slot, self.slots)
        if index == len(self.chunks):
            self.chunks.append(_Chunk(self._shapes, self._keeps_input, self.slots, self._like))
        return self.chunks[index], offset

    def evaluate(self, slot: int, t: float, z: Tensor) -> Tensor:
        """The field at ``z`` ``(batch, width)``, its layers' inputs written to the slot."""
        chunk, i = self._chunk(slot)
        del self.times[slot:]
        self.times.append(t)
        chunk.x[0][i].copy_(z.view(chunk.x[0][i].shape))
        for j, activation in enumerate(self._activations):
            layer, y = self.layers[j], chunk.y[j][i]
            torch.addmm(shift(layer.bias, layer.time_weight, t, 1), chunk.x[j][i], self._matrices[j], out=y)
            activation.write(y, chunk.activated[j][i])
        last = self.layers[-1]
        k = torch.addmm(shift(last.bias, last.time_weight, t, 1), chunk.x[-1][i], self._matrices[-1])
        return k.view(self._state_shape)


class _Gradients:
    """Gradients of the layers, gathered stage by stage in reverse order."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._shapes = tape._shapes
        self._pulled = [tape._like.new_empty(tape.slots, rows, out) for rows, _, out in tape._shapes]
        self._slots = [buffer.unbind(0) for buffer in self._pulled]
        self._first = self._last = -1  # range of slots pulled back since the last flush
        self.layers = [
            Layer(
                torch.zeros_like(layer.weight, memory_format=torch.contiguous_format),
                torch.zeros_like(layer.bias),
                layer.activation,
                None if layer.time_weight is None else torch.zeros_like(layer.time_weight),
            )
            for layer in tape.layers
        ]

    def pull_back(self, slot: int, gradient: Tensor) -> Tensor:
        """From the gradient of the field's value at a slot to that of its state."""
        tape = self._tape
        chunk, i = tape._chunk(slot)
        if self._last >= 0 and slot // tape.slots != self._last // tape.slots:
            self.flush()
        self._first, self._last = slot, max(self._last, slot)
        last = len(tape.layers) - 1
        g = self._slots[last][i]
        g.copy_(gradient.view(g.shape))
        for j in range(last, 0, -1):
            below = self._slots[j - 1][i]
            pulled = torch.mm(g, tape.layers[j].weight).view(below.shape)
            saved = chunk.y[j - 1][i] if tape._keeps_input[j - 1] else chunk.activated[j - 1][i]
            tape._activations[j - 1].pull_back(pulled, saved, below)
            g = below
        return torch.mm(g, self._tape.layers[0].weight).view(gradient.shape)

    def flush(self) -> None:
        """Add the products of the slots pulled back so far to the gradients of the weights."""
        if self._last < 0:
            return
        tape = self._tape
        chunk = tape._chunk(self._first)[0]
        start, stop = self._first % tape.slots, self._last % tape.slots + 1
        for j, (rows, fan_in, fan_out) in enumerate(self._shapes):
            pulled, count = self._pulled[j][start:stop], (stop - start) * rows
            flat = pulled.view(count, fan_out)
            gradient = self.layers[j]
            gradient.weight.addmm_(flat.t(), chunk.inputs[j][start:stop].view(count, fan_in))
            if gradient.time_weight is None:
                gradient.bias.add_(flat.sum(0))
            else:
                per_slot = pulled.sum(1)
                times = per_slot.new_tensor(tape.times[self._first : self._last + 1])
                gradient.bias.add_(per_slot.sum(0))
                gradient.time_weight.add_(times @ per_slot)
        self._first = self._last = -1


class TapeStepper(Stepper):
    """Takes steps of a method over a stack of layers and keeps what the backward pass needs.

    Args:
        stack: the field.
        tableau: the method.
        clock: the times of the solve; its ends are constants.
        z: a state, ``(batch, width)``.
        counter: counts evaluations of the field.
        recompute: keep only the states at the start of the steps.
        n_stages: how many stages the solve has, where that is known.
    """

    def __init__(
        self,
        stack: LayerStack,
        tableau: ButcherTableau,
        clock: Clock,
        z: Tensor,
        counter: Counter,
        *,
        recompute: bool,
        n_stages: int = CHUNK,
    ) -> None:
        super().__init__(stack_field(stack), tableau, clock)
        self.stack, self.counter, self.keep_stages = stack, counter, not recompute
        self.tape = Tape(stack, z, 2 * tableau.stages if recompute else min(n_stages, CHUNK))
        # accepted steps: first slot, step size, stage times and, where stages are computed again, the state
        self.steps: list[tuple[int, float, Sequence[Any], Tensor | None]] = []
        self._next = 0
        self._pending: tuple[int, float, Sequence[Any], Tensor | None] | None = None

    def spans(self, grid: Sequence[float]) -> Sequence[Span]:
        nodes, clock = (*self.tableau.c, 1.0), self.clock
        spans = []
        for before, after in itertools.pairwise(grid):
            width = after - before
            times: Any = [clock.at(before + c * width) for c in nodes]  # numbers: no tensor is ever made of them
            spans.append(Span(times, width * clock.length))
        return spans

    def start(self, theta: float, z: Tensor) -> Tensor:
        return self._evaluate(self.clock.at(theta), z)

    def probe(self, theta: float, z: Tensor) -> Tensor:
        self.counter.add()
        return self.field(self.clock.at(theta), z)  # type: ignore[arg-type]

    def accept(self) -> None:
        assert self._pending is not None
        self.steps.append(self._pending)
        self._pending = None

    def _evaluate(self, t: Any, z: Tensor) -> Tensor:
        self.counter.add()
        k = self.tape.evaluate(self._next, t, z)
        self._next += 1
        return k

    def step(
        self,
        span: Span,
        z: Tensor,
        first: Tensor | None = None,
        inside: Tensor | None = None,
        with_error: bool = False,
    ) -> StepResult:
        """Take one step; see `Stepper.step`."""
        tableau, (times, h) = self.tableau, span
        if self._pending is not None:  # the last step was rejected: its stages are overwritten
            self._next = self._pending[0] + 1
        if not self.keep_stages:
            self._next = 0 if first is None else 1
        origin = self._next - (first is not None)
        stages = [self._evaluate(times[0], z) if first is None else first]
        y = z
        for i in range(1, tableau.stages if with_error else tableau.advancing_stages):
            y = combine(z, h, tableau.a[i], stages)
            stages.append(self._evaluate(times[i], y))
        free_end = tableau.fsal and len(stages) == tableau.stages
        if not free_end:
            self._next = origin + tableau.advancing_stages  # stages for the error alone are not part of the solution
        after = y if free_end else combine(z, h, tableau.b, stages)
        error = None
        if with_error:
            error = h * weighted_sum([(w, k) for w, k in zip(tableau.error_weights, stages, strict=True) if w])
        assert isinstance(h, float)
        self._pending = (origin, h, times, None if self.keep_stages else z)
        if not with_error:
            self.accept()
        return StepResult(after, stages[-1] if free_end else None, None, error)

    def backward(self, gradient: Tensor, entering: Mapping[int, Tensor]) -> tuple[Tensor, list[Layer]]:
        """From the gradient of the final state to those of the initial one and of the layers.

        Args:
            gradient: of the final state.
            entering: gradients of the states at grid points, by their number.
        """
        tableau, gradients = self.tableau, _Gradients(self.tape)
        count = tableau.advancing_stages
        for number in reversed(range(len(self.steps))):
            origin, h, times, z = self.steps[number]
            if number + 1 in entering:
                gradient = gradient + entering[number + 1]
            if z is not None:
                self._evaluate_again(h, times, z)
            pulled: list[Tensor] = [gradient] * count
            total = gradient
            for i in reversed(range(count)):
                terms = [(h * tableau.b[i], gradient)]
                terms += [(h * tableau.a[j][i], pulled[j]) for j in range(i + 1, count)]
                terms = [(w, g) for w, g in terms if w]
                k = weighted_sum(terms) if terms else torch.zeros_like(gradient)
                pulled[i] = gradients.pull_back(i if z is not None else origin + i, k)
                total = total + pulled[i]
            gradient = total
            if z is not None:
                gradients.flush()
        gradients.flush()
        return gradient + entering[0] if 0 in entering else gradient, gradients.layers

    def _evaluate_again(self, h: float, times: Sequence[Any], z: Tensor) -> None:
        stages: list[Tensor] = []
        for i in range(self.tableau.advancing_stages):
            self.counter.add()
            y = combine(z, h, self.tableau.a[i], stages) if i else z
            stages.append(self.tape.evaluate(i, times[i], y))


class _TapedSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stepper: TapeStepper, loop: Loop, grid: list[float], saved: Saved, z: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.stepper, ctx.grid, ctx.saved = stepper, grid, saved
        ctx.save_for_backward(z, *tensors)
        final, zs = loop(stepper)
        return final.clone() if final is z else final, zs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        z, *tensors = ctx.saved_tensors  # also tells whether a weight was changed in place since the forward solve
        stepper: TapeStepper = ctx.stepper
        if must_be_recorded(gradients):
            grid = torch.tensor(ctx.grid, dtype=torch.float64)
            given = Given(stepper.stack, stepper.tableau, stepper.clock, stepper.counter, grid, ctx.saved)
            return None, None, None, None, *replay_gradients(given, z, tensors, gradients)
        entering: dict[int, Tensor] = {}
        for j, i in enumerate(ctx.saved):
            entering[i] = entering[i] + gradients[1][j] if i in entering else gradients[1][j]
        start, layers = stepper.backward(gradients[0].contiguous(), entering)
        return None, None, None, None, start, *_tensors_of(layers)


def _tensors_of(layers: Sequence[Layer]) -> list[Tensor | None]:
    return [x for layer in layers for x in (layer.weight, layer.bias, layer.time_weight)]


def integrate(
    stack: LayerStack,
    tableau: ButcherTableau,
    clock: Clock,
    z: Tensor,
    loop: Loop,
    grid: list[float],
    saved: Saved,
    counter: Counter,
    *,
    recompute: bool,
    n_stages: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Solve for states ``(batch, width)`` with a gradient for the initial state and the layers.

    Args:
        stack: the field.
        tableau: the method.
        clock: the times; constants.
        z: the initial state ``(batch, width)``.
        loop: takes the steps with the stepper it is given and returns the final state and the saved ones.
        grid: the fractions that the loop steps through; may be filled by the loop.
        saved: numbers of the grid points whose states are saved.
        counter: counts evaluations of the field.
        recompute: keep only the states at the start of the steps.
        n_stages: how many stages the solve has, where that is known.
    """
    stepper = TapeStepper(stack, tableau, clock, z, counter, recompute=recompute, n_stages=max(n_stages, 1))
    states: tuple[Tensor, Tensor | None] = _TapedSolve.apply(stepper, loop, grid, saved, z, *_tensors_of(stack.layers))
    return states
