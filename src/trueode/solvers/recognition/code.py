"""Read the code of a field: what it may touch, and whether calling it does nothing but compute."""

from __future__ import annotations

import builtins
import dis
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trueode.catalog import ACTIVATIONS
from trueode.solvers.recognition import hooks
from trueode.solvers.recognition.rules import FORMS, NAMES, RULES
from trueode.solvers.recognition.values import RecognitionError

# modules of PyTorch that do nothing but call functions on tensors
_KNOWN = (
    *(getattr(nn, known.module) for known in ACTIVATIONS.values()),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Sequential, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.ModuleList, nn.ModuleDict),
)
_FUNCTIONS = (len, range, enumerate, zip, reversed, isinstance, min, max, sum, abs, super)
_TYPES = (tuple, list, int, float, bool, Tensor, nn.Module, nn.Parameter)
_MODULES = (torch, nn, nn.functional, math)
_SAFE = frozenset((*_FUNCTIONS, *_TYPES, *_MODULES, *RULES, *FORMS))
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)
# methods that list what a module contains
_LISTING = ("children", "modules", "items", "values", "parameters")
# further names that code may use: of modules of PyTorch, of constants, of lists
_NAMES = NAMES.union(
    *(_LISTING, ("nn", "functional", "Tensor", "forward", "append")),
    ("pi", "e", "sqrt", "log", "exp", "float32", "float64"),
)
# methods that Python calls by itself, but not when a module is called
_SILENT = ("__init__", "__repr__", "__str__", "__setstate__", "__getstate__", "__annotate_func__")
_CALLING = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
_MISSING = object()
_DEEPEST = 8  # functions that close over functions


def parts_of(value: Any, depth: int = 0) -> Iterator[Any]:
    """The code of a function or method, and the parts of all that it closes over: modules, values,
    and code.

    Raises:
        ValueError: a variable has no value yet.
    """
    if isinstance(value, MethodType):
        yield from parts_of(value.__func__, depth + 1)
        yield value.__self__
    elif isinstance(value, FunctionType) and depth < _DEEPEST:
        yield value.__code__
        for cell in value.__closure__ or ():
            yield from parts_of(cell.cell_contents, depth + 1)
        for each in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield from parts_of(each, depth + 1)
    else:
        yield value


class Reading:
    """What the code of a field touches: of the field, of the modules and functions that it reaches.

    The parts of the field itself (see `parts_of`) are left to the caller, who has it.

    Attributes:
        tensors: the tensors that it may use.

    Raises:
        RecognitionError: the code may do something else than compute, or cannot be read.
    """

    trusted = False

    def __init__(self, field: Callable[..., Any]) -> None:
        self.tensors: list[Tensor] = []
        # dictionaries with a key, and the value that must still be there
        self._guards: dict[tuple[int, Any], tuple[Mapping[Any, Any], Any, Any]] = {}
        self._sizes: list[tuple[Mapping[Any, Any], int]] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._hooks: list[Mapping[Any, Any]] = []
        self._objects: dict[nn.Module, bool] = {}  # with code of their own: whether it is called
        self._functions: set[FunctionType] = set()
        self._attributes: dict[str, bool] = {}  # see `_Names`
        own = [] if isinstance(field, nn.Module) else [*parts_of(field)]
        self._own = [x for x in own if isinstance(x, CodeType)]
        self._read(field, "the field")
        self._resolve()
        self._watched = tuple(self._guards.values())
        del self._guards, self._objects, self._functions  # nothing keeps the field alive

    def holds(self) -> bool:
        """Whether nothing that was read has changed since."""
        for mapping, key, value in self._watched:
            if mapping.get(key, _MISSING) is not value:
                return False
        for mapping, size in self._sizes:
            if len(mapping) != size:
                return False
        for cell, value in self._cells:
            if cell.cell_contents is not value:
                return False
        return not any(self._hooks) and not hooks.are_global()

    def settle(self) -> None:
        """The counterpart of `Snapshot.settle`; calling the field changes nothing here."""

    def _watch(self, mapping: Mapping[Any, Any], key: Any) -> Any:
        """A value in a dictionary, which must stay there."""
        value = mapping.get(key, _MISSING)
        self._guards[id(mapping), key] = mapping, key, value
        return value

    def _read(self, value: Any, name: str, called: bool = True) -> None:
        """Read a value that the code uses under a name; a module whose attributes alone are used is
        not ``called``.
        """
        if type(value) in _PLAIN or _is_known(value):
            return
        if isinstance(value, nn.Module):
            self._read_module(value, called)
        elif isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, FunctionType):
            self._read_function(value, None)
        elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            self._read_module(value.__self__, called=False)
            self._read_function(value.__func__, value.__self__)
        elif type(value) is tuple:
            for each in value:
                self._read(each, name)
        else:
            raise RecognitionError(f"it uses {name}, {_described(value)}")

    def _read_function(self, function: Any, module: nn.Module | None) -> None:
        """Read a function, or a method of a module."""
        if not isinstance(function, FunctionType):
            raise RecognitionError(f"it calls {function!r}")
        code = function.__code__
        named = _names(code)
        if module is not None and named.uses_first:
            self._read_module(module, called=True)
        if function in self._functions:
            return
        self._functions.add(function)
        for name, called in named.attributes.items():
            self._attributes[name] = called or self._attributes.get(name, False)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._read(default, "a default value")
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                if code not in self._own:
                    self._cells.append((cell, cell.cell_contents))
                self._read(cell.cell_contents, name, named.variables.get(name, True))
        for name, called in named.globals.items():
            value = self._watch(function.__globals__, name)
            if value is _MISSING:
                value = getattr(builtins, name, _MISSING)
            self._read(value, name, called)

    def _read_module(self, module: nn.Module, called: bool) -> None:
        if self._objects.get(module, not called) >= called and module in self._objects:
            return
        kind, own = type(module), module.__dict__
        if any(getattr(kind, name) is not getattr(nn.Module, name) for name in _CALLING):
            raise RecognitionError(f"{kind.__name__} is not called as other modules are")
        self._objects[module] = called
        if not called:
            return
        watching = hooks.hooks_of(module)
        self._hooks += watching
        if any(watching) or hooks.are_global():
            raise RecognitionError(f"{kind.__name__} has hooks")
        replaced = [self._watch(own, name) for name in ("forward", "_compiled_call_impl")]
        if not all(value is None or value is _MISSING for value in replaced):
            raise RecognitionError(f"the forward of {kind.__name__} was replaced")
        if kind in _KNOWN:
            forward = self._watch(kind.__dict__, "forward")
            if getattr(forward, "__module__", "torch.").partition(".")[0] != "torch":
                raise RecognitionError(f"the forward of {kind.__name__} was replaced")
            for key in [key for key in own if key[0] != "_"]:
                self._watch(own, key)
            self._read_contents(module)
            return
        for each in _own_classes(kind):
            if each.__module__.partition(".")[0] == "torch":
                raise RecognitionError(f"it has a {kind.__name__}")
            for name, value in each.__dict__.items():
                if name[:2] == "__" and isinstance(value, FunctionType) and name not in _SILENT:
                    raise RecognitionError(f"{kind.__name__} has a method {name}")
        self._watch(own, "training")

    def _read_contents(self, module: nn.Module) -> None:
        """Read all parameters and submodules of a module."""
        for contents in (module._parameters, module._modules):
            self._sizes.append((contents, len(contents)))
            for name in contents:
                self._read(self._watch(contents, name), name)

    def _resolve(self) -> None:
        """Read what each attribute is, of each module that has it."""
        done: set[tuple[nn.Module, str, bool]] = set()
        found = set()
        while todo := set(self._pairs()) - done:
            done |= todo
            found |= {name for module, name, called in todo if self._find(module, name, called)}
        unknown = self._attributes.keys() - found - _NAMES
        if unknown:
            raise RecognitionError(f"it uses the attribute {min(unknown)}")

    def _pairs(self) -> Iterator[tuple[nn.Module, str, bool]]:
        """The modules with code of their own, and the attributes that they may have."""
        for module, is_called in self._objects.items():
            if type(module) not in _KNOWN:
                yield from ((module, name, called) for name, called in self._attributes.items())
                if is_called:
                    yield module, "forward", True

    def _find(self, module: nn.Module, name: str, called: bool) -> bool:
        """Read an attribute of a module; whether it has it."""
        if name in _LISTING:
            self._read_contents(module)
        for contents in (module.__dict__, module._parameters, module._buffers, module._modules):
            value = self._watch(contents, name)
            if value is not _MISSING:
                self._read(value, name, called)
                return True
        found = False
        for kind in _own_classes(type(module)):
            value = self._watch(kind.__dict__, name)
            if value is not _MISSING:
                found = True
                value = value.fget if isinstance(value, property) else value
                if isinstance(value, FunctionType):
                    self._read_function(value, module)
                else:
                    value = value.__func__ if isinstance(value, staticmethod) else value
                    self._read(value, name, called)
        return found


def _own_classes(kind: type[nn.Module]) -> tuple[type, ...]:
    """The classes of a module below nn.Module."""
    return kind.__mro__[: kind.__mro__.index(nn.Module)]


class _Names:
    """The names that code uses, also in functions within it, and whether it uses more of them than
    their attributes.

    Attributes:
        globals, variables, attributes: global variables, variables of closures, and attributes.
        uses_first: whether more than the attributes of the first argument are used.

    Raises:
        RecognitionError: the code changes something else than its own variables.
    """

    def __init__(self, code: CodeType) -> None:
        self.globals: dict[str, bool] = {}
        self.variables: dict[str, bool] = {}
        self.attributes: dict[str, bool] = {}
        self.uses_first = False
        for each in _within(code):
            steps = [*dis.get_instructions(each)]
            for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
                self._add(step.opname, step.argval, code, not after.opname.startswith(_ATTRIBUTE))

    def _add(self, kind: str, name: Any, code: CodeType, used: bool) -> None:
        leaves = kind.startswith(("STORE_ATTR", "STORE_GLOBAL", "STORE_NAME", "IMPORT_"))
        deletes = kind.startswith("DELETE_") and kind != "DELETE_FAST"
        if leaves or deletes or (kind == "STORE_DEREF" and name in code.co_freevars):
            what = "imports" if kind.startswith("IMPORT_") else "assigns to"
            raise RecognitionError(f"it {what} {name}")
        if kind.startswith(("STORE_SUBSCR", "STORE_SLICE")):
            raise RecognitionError("it assigns to a part of something")
        if kind.startswith("LOAD_FAST"):
            names = name if isinstance(name, tuple) else (name,)  # two in one instruction
            first = code.co_varnames[:1]
            self.uses_first |= (used and names[-1:] == first) or names[:-1] == first
            return
        if kind.startswith(_VARIABLE) and name in code.co_varnames[:1]:
            self.uses_first |= used
        for prefixes, known in (
            (("LOAD_GLOBAL", "LOAD_NAME"), self.globals),
            (_VARIABLE, self.variables),
            (_ATTRIBUTE, self.attributes),
        ):
            if kind.startswith(prefixes):
                known[name] = used or known.get(name, False)


_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_VARIABLE = ("LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "LOAD_FROM_DICT")
_names = lru_cache(maxsize=256)(_Names)


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _within(constant)


def _is_known(value: Any) -> bool:
    """Whether a value is a function, class or module whose use does nothing but compute."""
    if isinstance(value, type) and issubclass(value, Exception):
        return value.__module__ == "builtins"
    try:
        return value in _SAFE
    except TypeError:  # it has no hash
        return False


def _described(value: Any) -> str:
    if value is _MISSING:
        return "which is not defined"
    if isinstance(value, ModuleType):
        return "a module"
    return (
        "which is not known to do nothing but compute"
        if callable(value)
        else f"a {type(value).__name__}"
    )
