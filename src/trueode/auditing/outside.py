"""Detects fields that a model also calls outside of its solves, for example for a step by hand."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

# code of these Python modules calls fields
SOLVERS = ("torchdiffeq.", "torchdyn.numerics.", "torchode.", "trueode.solvers.", "zuko.utils")
# layers of these Python modules only pass calls on
WRAPPERS = ("torchdiffeq.", "torchdyn.", "torchode.", "torch._dynamo.")
CALL = nn.Module._call_impl.__code__


class FieldCalls:
    """Counts calls of modules with parameters, inside and outside of solves."""

    def __init__(self) -> None:
        self._outside = Counter[nn.Module]()
        # per solve, the calls of modules that no other module calls
        self._inside: dict[FrameType, Counter[nn.Module]] = {}

    @property
    def outside(self) -> dict[nn.Module, tuple[int, int]]:
        """The numbers of calls outside and inside of solves, for each module of a field. A field
        counts if all its modules are also called outside of every solve.
        """
        fields = [solve for solve in self._inside.values() if solve.keys() <= self._outside.keys()]
        return {
            module: (self._outside[module], sum(fields, Counter())[module])
            for field in fields
            for module in field
        }

    def note(self, module: nn.Module, given: Any) -> None:
        """Count a call of a module."""
        solve, alone = _around(module)
        if solve is None:
            self._outside[module] += 1
        else:
            calls = self._inside.setdefault(solve, Counter())
            if alone:
                calls[module] += 1


@contextmanager
def field_calls(modules: Iterable[nn.Module]) -> Iterator[FieldCalls]:
    """Count calls of those modules that have parameters, within the block."""
    calls = FieldCalls()
    with ExitStack() as stack:
        for module in modules:
            scripted = isinstance(module, torch.jit.ScriptModule)
            if (
                not scripted
                and not _hands_on(module)
                and next(module.parameters(), None) is not None
            ):
                stack.callback(module.register_forward_pre_hook(calls.note).remove)
        yield calls


def _around(module: nn.Module) -> tuple[FrameType | None, bool]:
    """The outermost solve around a call of a module, if any, and whether the solve calls the module
    directly.
    """
    solve, alone = None, True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(SOLVERS):
            solve = frame
        elif solve is None and frame.f_code is CALL:
            other = frame.f_locals["self"]
            alone = alone and (other is module or _hands_on(other))
        frame = frame.f_back
    return solve, alone


def _hands_on(module: nn.Module) -> bool:
    return type(module).__module__.startswith(WRAPPERS)
