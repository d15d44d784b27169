"""Tensors of PyTorch and arrays of JAX, made of one another."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_jax(x: Any) -> bool:
    """Whether an object is an array of JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.Array)


def is_array(x: Any) -> bool:
    """Whether an object is an array of JAX or NumPy."""
    return isinstance(x, np.ndarray) or is_jax(x)


def to_tensor(x: Any) -> Tensor:
    """Copy an array of JAX or NumPy to the CPU.

    Raises:
        TypeError: PyTorch has no such numbers.
    """
    if str(x.dtype) == "bfloat16":
        return to_tensor(x.astype("float32")).bfloat16()
    return torch.tensor(np.asarray(x), device="cpu")


def to_array(x: Tensor) -> Any:
    """Copy a tensor to an array of JAX, in 64 bits only if JAX has these enabled."""
    if x.dtype is torch.bfloat16:  # NumPy has no such numbers
        return to_array(x.float()).astype("bfloat16")
    return sys.modules["jax"].device_put(x.detach().cpu().numpy().copy())


def shared_tensor(x: Any) -> Tensor:
    """A tensor with the memory of an array of JAX on the CPU."""
    tensor: Tensor = torch.utils.dlpack.from_dlpack(x.block_until_ready())
    return tensor
