"""Copies to a device that do not wait for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def send(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU on a device, converted to ``dtype``; derivatives are kept.

    A GPU copies constants from memory that the system cannot move, while the host goes on.
    """
    dtype = dtype or x.dtype
    if device.type != "cuda" or not x.is_cpu or x.requires_grad or forward_ad._current_level >= 0:
        return x.to(dtype=dtype, device=device)
    return x.to(dtype).pin_memory().to(device, non_blocking=True)
