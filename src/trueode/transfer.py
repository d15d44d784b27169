"""Copies to a device that do not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Sent = dict[Any, Tensor]
_sent: ContextVar[Sent | None] = ContextVar("sent", default=None)
_captured: list[Tensor] = []


def send(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU on a device, converted to ``dtype``; derivatives are kept.

    A GPU copies constants from memory that the system cannot move, while the host goes on.
    """
    dtype = dtype or x.dtype
    if device.type != "cuda" or not x.is_cpu or x.requires_grad or forward_ad._current_level >= 0:
        return x.to(dtype=dtype, device=device)
    known = _sent.get()
    if known is None:
        return _copied(x, device, dtype)
    key = x.numpy().tobytes(), x.shape, x.dtype, device, dtype
    if key not in known:
        known[key] = _copied(x, device, dtype)
    return known[key]


def _copied(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    pinned = x.to(dtype).pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)  # a graph of the user's reads it each time it is replayed
    return pinned.to(device, non_blocking=True)


@contextmanager
def sent_once(known: Sent) -> Iterator[None]:
    """A block in which equal tensors are sent once, and kept in ``known``."""
    token = _sent.set(known)
    try:
        yield
    finally:
        _sent.reset(token)
