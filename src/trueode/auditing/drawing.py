"""Random numbers that a model draws: in its own precision, and the same ones under every solver."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which random numbers of double precision are drawn in single precision: others
    would be those of another model.

    Attributes:
        any: whether numbers were drawn.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first call would import all of torch._dynamo, which takes seconds

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
    """Seed the random numbers of PyTorch, NumPy and Python."""
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a model's global state, not one of ours
    random.seed(seed)


def _is_double(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x
