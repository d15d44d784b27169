"""A CUDA graph that is not there: records the operations of a block with the tensors that they
touched, and does the same again on the same memory.

What Python computed while recording (numbers, shapes, branches) is frozen, as in a CUDA graph.
Asking for a value and copying from or to the host while recording are errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretend import ASKING, COPIES, FREE, Pretended


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = {isinstance(x, Pretended) for x in tensors((args, kwargs))}
        to_host = torch.device(kwargs.get("device") or "cuda").type == "cpu"
        crosses = func in COPIES and (to_host or False in devices)
        if True in devices and (func in ASKING or crosses):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **kwargs)
        known = {id(x) for x in tensors((args, kwargs))}
        fresh = [x.detach() if id(x) not in known else None for x in tensors(result)]
        if True in devices and not func.is_view and func not in FREE:

            def again() -> None:
                for old, new in zip(fresh, tensors(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)

            self.operations.append(again)
        return result


class PretendedRecorder:
    """Records on the pretended device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def rehearse(self, work: Callable[[], Any]) -> None:
        work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with _Recording() as recording:
            result = work()

        @torch.no_grad()
        def replay() -> None:
            for operation in recording.operations:
                operation()

        return replay, result

    def random_state(self) -> list[Tensor]:
        return [torch.get_rng_state()]

    def set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
