"""Random numbers of a model: the same under every solver, and in double precision."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draw random numbers in single precision within the block, and cast them to double precision
    if that was requested, because draws in double precision would be different numbers.

    Attributes:
        any: whether numbers were drawn.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first call imports torch._dynamo, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.any = True
        double = kwargs.get("dtype") == torch.float64 or any(_is_double(x) for x in args)
        if not double:
            return func(*args, **kwargs)
        single = {
            **kwargs,
            **({"dtype": torch.float32} if kwargs.get("dtype") == torch.float64 else {}),
        }
        drawn = func(*(x.float() if _is_double(x) else x for x in args), **single)
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return tuple(map(_doubled, drawn)) if isinstance(drawn, tuple) else _doubled(drawn)


def seed_all(seed: int) -> None:
    """Seed the random number generators of PyTorch, NumPy and Python."""
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the state that models use
    random.seed(seed)


def _is_double(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x
