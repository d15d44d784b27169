"""Finds the objects that a call of a function may use or change."""

from __future__ import annotations

import dis
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from weakref import ProxyTypes

from torch import Tensor, nn

MOST = 100_000  # limit on the objects that are examined
LONG = 1_000  # a container with more entries is taken for data
LARGE = 10**7  # so is a tensor with more numbers, unless it is a parameter or buffer
LIBRARIES = frozenset(sys.stdlib_module_names) | {
    *(
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "jax",
        "trueode",
        "torchdiffeq",
        "torchdyn",
        "torchode",
    ),
    *("lightning", "pytorch_lightning", "lightning_fabric"),
}
"""Packages that are not searched, like all installed ones: except for modules, their functions and
objects hold no state of a model.
"""
INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages


class Entries(NamedTuple):
    """Some of the entries of a dict."""

    held: dict[str, Any]
    names: set[str]


@dataclass
class Reachable:
    """The objects found, each once.

    Attributes:
        every: all modules, including nested ones.
        holders: objects with contents that may change: tensors, dicts (including those of
            attributes), lists, sets, deques, cells of closures, classes, and global names that
            functions assign.
        modes: whether some code reads ``training``, the mode of a module.
    """

    every: list[nn.Module] = field(default_factory=list)
    holders: list[Any] = field(default_factory=list)
    modes: bool = False

    @property
    def modules(self) -> list[nn.Module]:
        """Modules that are not part of another one."""
        inside = {
            id(part) for module in self.every for part in module.modules() if part is not module
        }
        return [module for module in self.every if id(module) not in inside]

    @property
    def tensors(self) -> list[Tensor]:
        """Parameters, buffers, and other tensors."""
        return [holder for holder in self.holders if isinstance(holder, Tensor)]


def reachable(*roots: Any) -> Reachable:
    """Search attributes, containers, methods, partials, and the closures, defaults and global names
    of functions.

    Args:
        roots: where the search starts.
    """
    found = Reachable()
    seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is used twice
    waiting = deque(roots)
    while waiting and len(seen) < MOST:
        x = waiting.popleft()
        if id(x) in seen or type(x) in ProxyTypes:
            continue
        seen[id(x)] = x
        if isinstance(x, nn.Module):
            found.every.append(x)
            own = {
                id(part): part for part in (*x.parameters(recurse=False), *x.buffers(recurse=False))
            }
            found.holders.extend(own[key] for key in own.keys() - seen.keys())
            seen.update(own)
        elif (
            (isinstance(x, Tensor) and x.numel() <= LARGE)
            or isinstance(x, dict | list | set | deque | CellType)
            or (isinstance(x, type) and not _is_known(x))
        ):
            found.holders.append(x)
        elif isinstance(x, FunctionType) and not _is_known(x):
            if assigned := _global_names(x.__code__, "STORE_GLOBAL"):
                found.holders.append(Entries(x.__globals__, assigned))
            found.modes = found.modes or any(
                "training" in code.co_names for code in _nested(x.__code__)
            )
        waiting.extend(_parts(x))
    return found


def _parts(x: Any) -> Iterator[Any]:
    """Yield the objects that an object refers to."""
    if isinstance(x, dict):
        yield from list(x.values()) if len(x) <= LONG else ()
    elif isinstance(x, list | tuple | set | frozenset | deque):
        yield from x if len(x) <= LONG else ()
    elif isinstance(x, CellType):
        try:
            yield x.cell_contents
        except ValueError:  # an empty cell
            return
    elif isinstance(x, MethodType):
        yield from (x.__self__, x.__func__)
    elif isinstance(x, partial):
        yield from (x.func, x.args, x.keywords)
    elif isinstance(x, FunctionType):
        if not _is_known(x):
            # a function may have attributes: vars
            yield from (*(x.__closure__ or ()), x.__defaults__, x.__kwdefaults__, vars(x))
            yield from _globals_of(x)
    elif isinstance(x, type):
        if not _is_known(x):
            yield from x.__bases__
            for value in list(vars(x).values()):
                yield from (getattr(value, "fget", None), getattr(value, "__func__", value))
    elif isinstance(x, nn.Module | SimpleNamespace | Namespace) or not (
        isinstance(x, Tensor | ModuleType) or _is_known(type(x))
    ):
        yield type(x)
        yield getattr(x, "__dict__", None)


def _globals_of(function: FunctionType) -> Iterator[Any]:
    """Yield the values of the global names of a function; for a module that is not of a library,
    those members that the function uses.
    """
    code, held = function.__code__, function.__globals__
    for name in _global_names(code, "LOAD_GLOBAL", "LOAD_NAME"):
        value = held.get(name)
        if isinstance(value, ModuleType) and not _is_library(value.__name__):
            taken = {each for part in _nested(code) for each in part.co_names}
            yield from (vars(value)[each] for each in taken & vars(value).keys())
        else:
            yield value


def _is_known(x: Any) -> bool:
    """Whether a function or class belongs to a library."""
    return _is_library(str(getattr(x, "__module__", None) or ""))


@lru_cache
def _is_library(module: str) -> bool:
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in LIBRARIES or any(folder in Path(file).parts for folder in INSTALLED)


def _global_names(code: CodeType, *operations: str) -> set[str]:
    """The global names that code uses in one of these operations."""
    return {
        each.argval
        for part in _nested(code)
        for each in dis.get_instructions(part)
        if each.opname in operations
    }


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Yield code, and the code of the functions defined in it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _nested(part)
