"""Vector fields ``f(t, z)``: the networks of the paper, and their initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from trueode.catalog import NETWORKS
from trueode.errors import UsageError, nearest
from trueode.fields.autocast import Autocast
from trueode.fields.conv import ConvField
from trueode.fields.dense import DenseField
from trueode.fields.divergence import Divergence
from trueode.fields.init import init_weights
from trueode.fields.recognised import RecognisedField, explain, recognise
from trueode.fields.sequential import SequentialField

__all__ = [
    "Autocast",
    "ConvField",
    "DenseField",
    "Divergence",
    "RecognisedField",
    "SequentialField",
    "build_field",
    "explain",
    "init_weights",
    "recognise",
]


def build_field(
    network: str,
    sample_shape: Sequence[int],
    hidden: int,
    act: str = "relu",
    time_dependent: bool = False,
) -> ConvField | DenseField:
    """Build a network by its name, for samples of a given shape.

    Args:
        network: ``"odenet"`` (images), ``"simple_odenet"`` (signals) or ``"linear_odenet"`` (any
            shape).
        sample_shape: ``(channels, length)`` or ``(channels, height, width)``, without the batch.
        hidden: the number C of hidden channels or units.
        act: a name of ``catalog.ACTIVATIONS``.
        time_dependent: whether the time is an input.

    Raises:
        UsageError: a name is unknown, or the network does not fit the shape.
    """
    shape = tuple(sample_shape)
    if network not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UsageError(
            f"network = {network!r} is unknown; choose from {known}.{nearest(network, NETWORKS)}"
        )
    if hidden < 1:
        raise UsageError(
            f"The number of hidden channels (ch_residual_block) must be at least 1, not {hidden}."
        )
    if not shape or min(shape) < 1:
        raise UsageError(
            f"A sample of shape {shape} is empty: it must be (channels, …), all at least 1."
        )
    if network == "linear_odenet":
        return DenseField(prod(shape), hidden, act, time_dependent)
    dim, kind, other = (2, "images (channels, height, width)", "simple_odenet")
    if network == "simple_odenet":
        dim, kind, other = (1, "signals (channels, length)", "odenet")
    if len(shape) != dim + 1:
        instead = f"{other} or linear_odenet" if len(shape) == 4 - dim else "linear_odenet"
        raise UsageError(
            f"network = {network} works on {kind}; the samples have shape {shape}. Use {instead}."
        )
    return ConvField(shape[0], hidden, dim, act, time_dependent)
