"""Fields that a model calls outside of every solve, too: steps made by hand there are not seen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

SOLVERS = (
    "torchdiffeq.",
    "torchdyn.numerics.",
    "torchode.",
    "trueode.solvers.",
)  # modules whose code calls fields
WRAPPERS = (
    "torchdiffeq.",
    "torchdyn.",
    "torchode.",
    "torch._dynamo.",
)  # their modules only hand on calls
CALL = nn.Module._call_impl.__code__


class FieldCalls:
    """Calls of modules with parameters, inside and outside of solves."""

    def __init__(self) -> None:
        self._outside = Counter[nn.Module]()
        self._inside: dict[
            FrameType, Counter[nn.Module]
        ] = {}  # by solve; of modules that no other one calls

    @property
    def outside(self) -> dict[nn.Module, tuple[int, int]]:
        """Modules that make up the field of a solve and are all called outside of every solve, too:
        calls outside and inside.
        """
        fields = [solve for solve in self._inside.values() if solve.keys() <= self._outside.keys()]
        return {
            module: (self._outside[module], sum(fields, Counter())[module])
            for field in fields
            for module in field
        }

    def note(self, module: nn.Module, given: Any) -> None:
        """A module is called."""
        solve, alone = _around(module)
        if solve is None:
            self._outside[module] += 1
        else:
            calls = self._inside.setdefault(solve, Counter())
            if alone:
                calls[module] += 1


@contextmanager
def field_calls(modules: Iterable[nn.Module]) -> Iterator[FieldCalls]:
    """A block in which calls of modules are noted, of those that have parameters."""
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
    """The outermost solve around a call of a module, if there is one, and whether that calls the
    module without another one.
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
