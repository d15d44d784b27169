"""What the tensors of a field are made of, as far as layers can compute it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from trueode.layers import Layer


class RecognitionError(Exception):
    """A field computes, or does, something that layers do not."""


@dataclass(frozen=True, eq=False)
class Given:
    """A tensor that the field was given: a parameter, a buffer or a constant.

    Two are equal if they are the same tensor, whatever its numbers.
    """

    tensor: Tensor
    transposed: bool = False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Given)
            and self.tensor is other.tensor
            and self.transposed == other.transposed
        )

    def __hash__(self) -> int:
        return hash((id(self.tensor), self.transposed))

    @property
    def now(self) -> Tensor:
        """The tensor, transposed if need be."""
        return self.tensor.t() if self.transposed else self.tensor


@dataclass(frozen=True)
class Uniform:
    """A tensor whose entries all equal ``rate * t + offset``."""

    rate: float
    offset: float


@dataclass(frozen=True)
class Row:
    """A tensor whose rows all equal ``weight * u + bias`` with a `Uniform` u: a layer of the time.

    The weight has shape ``(out, 1)``.
    """

    weight: Given
    bias: Given | None
    time: Uniform


@dataclass(frozen=True)
class Selected:
    """Some entries of a signal: only their number may be used."""


@dataclass(frozen=True)
class Opaque:
    """A tensor that does not depend on the state, and that layers cannot use."""


@dataclass(frozen=True)
class Factor:
    """A product of a number and of tensors of one number."""

    number: float = 1.0
    scalars: tuple[Given, ...] = ()

    def __mul__(self, other: Factor) -> Factor:
        return Factor(self.number * other.number, self.scalars + other.scalars)

    def times(self, x: Tensor) -> Tensor:
        """A tensor, multiplied."""
        if self.number != 1:
            x = x * self.number
        for scalar in self.scalars:
            x = x * scalar.tensor.reshape(())
        return x


ONE = Factor()


@dataclass(frozen=True)
class Recipe:
    """How to make a `Layer` from the current values of its tensors.

    The layer computes ``act(after * (weight @ (before * x) + bias) + added)``.

    Attributes:
        weight: as in `Layer`; the identity matrix if None.
        width: the number of inputs, without the time.
        bias: ``(out,)``.
        time: what is joined to the inputs, if anything.
        leads: whether it is the first input, and not the last one.
        added: what is added to the outputs.
        rows: layers of the time that are added to the outputs.
    """

    weight: Given | None
    width: int
    bias: Given | None = None
    time: Uniform | None = None
    leads: bool = False
    before: Factor = ONE
    after: Factor = ONE
    added: Uniform = Uniform(0.0, 0.0)
    rows: tuple[tuple[Row, Factor], ...] = ()
    activation: str = "identity"

    @cached_property
    def is_plain(self) -> bool:
        """Whether the layer is its weight, bias and activation alone."""
        return self == Recipe(self.weight, self.width, self.bias, activation=self.activation)

    @property
    def outputs(self) -> int:
        """The number of outputs."""
        return self.width if self.weight is None else self.weight.now.shape[0]

    def scaled(self, factor: Factor) -> Recipe:
        """The layer with its outputs multiplied; it has no activation yet."""
        added = Uniform(self.added.rate * factor.number, self.added.offset * factor.number)
        if factor.scalars and added != Uniform(0, 0):
            raise RecognitionError("it multiplies a sum with the time by a parameter")
        rows = tuple((row, each * factor) for row, each in self.rows)
        return replace(self, after=self.after * factor, added=added, rows=rows)

    def plus(self, more: Uniform | tuple[Row, Factor]) -> Recipe:
        """The layer with something added to its outputs; it has no activation yet."""
        if isinstance(more, tuple):
            return replace(self, rows=(*self.rows, more))
        rate, offset = self.added.rate + more.rate, self.added.offset + more.offset
        return replace(self, added=Uniform(rate, offset))

    def layer(self, like: Tensor) -> Layer:
        """The layer, for states of the dtype and device of a tensor."""
        if self.weight is None:
            weight = torch.eye(self.width, dtype=like.dtype, device=like.device)
        else:
            weight = self.weight.now
        bias = weight.new_zeros(self.outputs) if self.bias is None else self.bias.tensor
        if self.is_plain:
            return Layer(weight, bias, self.activation)
        clock = None
        if self.time is not None:
            clock = weight[:, 0] if self.leads else weight[:, -1]
            clock = clock.flatten() if clock.dim() > 1 else clock
            weight = weight[:, 1:] if self.leads else weight[:, :-1]
            if self.time.offset:
                bias = bias + self.time.offset * clock
            clock = (
                None
                if not self.time.rate
                else clock * self.time.rate
                if self.time.rate != 1
                else clock
            )
        weight, bias = self.after.times(self.before.times(weight)), self.after.times(bias)
        clock = None if clock is None else self.after.times(clock)
        for row, factor in self.rows:
            column, rest = factor.times(row.weight.now[:, 0]), row.bias
            bias = bias + row.time.offset * column
            bias = bias if rest is None else bias + factor.times(rest.tensor)
            clock = row.time.rate * column if clock is None else clock + row.time.rate * column
        if self.added.offset:
            bias = bias + self.added.offset
        if self.added.rate:
            clock = (
                torch.full_like(bias, self.added.rate) if clock is None else clock + self.added.rate
            )
        return Layer(weight, bias, self.activation, clock)


@dataclass(frozen=True)
class Signal:
    """A tensor that layers compute from the state.

    Attributes:
        recipes: the layers, first to last; none for the state itself.
        channels: whether the features of a sample lie in dimension 1, as in a convolution, and not
            in the last one; None as long as both are true.
        factor: by what the outputs are multiplied.
    """

    recipes: tuple[Recipe, ...] = ()
    channels: bool | None = None
    factor: Factor = ONE

    @property
    def is_linear(self) -> bool:
        """Whether the last layer has no activation."""
        return bool(self.recipes) and self.recipes[-1].activation == "identity"

    def last(self, recipe: Recipe) -> Signal:
        """The same with another last layer."""
        return replace(self, recipes=(*self.recipes[:-1], recipe))

    def scaled(self, factor: Factor) -> Signal:
        """All entries multiplied."""
        if self.is_linear:
            return self.last(self.recipes[-1].scaled(factor))
        return replace(self, factor=self.factor * factor)

    def then(self, recipe: Recipe, channels: bool) -> Signal:
        """One more layer."""
        if self.channels not in (None, channels):
            raise RecognitionError(
                "its layers read the features of a sample in different dimensions"
            )
        recipe = replace(recipe, before=self.factor)
        return Signal((*self.recipes, recipe), channels)


@dataclass(frozen=True)
class Joined:
    """A signal with the time as one more feature, in the dimension ``dim`` of its tensor."""

    signal: Signal
    time: Uniform
    leads: bool
    dim: int


Value = Given | Uniform | Row | Selected | Opaque | Signal | Joined
