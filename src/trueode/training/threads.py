"""The number of PyTorch's threads in training and in the verdict of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod

from torch import nn

from trueode.solvers.backends import native

MOST_PARAMETERS = 2**15  # of a tensor; most functions of PyTorch do not divide smaller ones
MOST_INPUTS = 2**13  # numbers in a batch; layers increase them


def spared(
    model: nn.Module, batch_size: int, sample: tuple[int, ...]
) -> AbstractContextManager[None]:
    """A block for work on batches, with a single PyTorch thread if all tensors are small.

    More threads would not make small tensors faster.

    Args:
        model: the model.
        batch_size: the samples of a batch.
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
