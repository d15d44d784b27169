"""Data on its way to a device: copies for which the host does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

CPU = torch.device("cpu")
SHARE = 1 / 3  # of a device's free memory that a part of a data set may take
Made = TypeVar("Made")


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU it is copied from pinned memory, without waiting."""
    if x.device == device:
        return x
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()  # kept by PyTorch until the copy is done
    return x.to(device, non_blocking=True)


def free_on(device: torch.device) -> int:
    """Free bytes of a GPU, including those in PyTorch's cache."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def ahead(made: Iterator[Made]) -> Iterator[Made]:
    """The same items, each given out after the next one was made."""
    for item in made:
        for following in made:
            yield item
            item = following
        yield item
