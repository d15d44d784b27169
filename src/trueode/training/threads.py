"""How many threads PyTorch gets for training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod

from torch import nn

from trueode.solvers.backends import native

MOST_PARAMETERS = (
    2**15
)  # of a tensor: PyTorch itself does not divide what is smaller, where it asks for the size
MOST_INPUTS = 2**13  # numbers in a batch: layers make them more


def spared(
    model: nn.Module, batch_size: int, sample: tuple[int, ...]
) -> AbstractContextManager[None]:
    """A block for training steps: PyTorch gets one thread where all tensors are so small that more
    would win nothing.

    Args:
        model: what is trained.
        batch_size: samples of an iteration.
        sample: the shape of an input.
    """
    parameters = list(model.parameters())
    small = batch_size * prod(sample) <= MOST_INPUTS and all(
        p.numel() <= MOST_PARAMETERS for p in parameters
    )
    return (
        native.torch_on_one_thread()
        if small and all(p.device.type == "cpu" for p in parameters)
        else nullcontext()
    )
