"""Record what a GPU does in a solve with fixed steps, and let it do the same again: one launch for
the states, one for their gradients, instead of hundreds.

A module whose solve was asked for a few times, with nothing changed but the numbers in tensors, is
recorded as a CUDA graph. The recording is used if it gives the same bits as calling the field.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from trueode import precision
from trueode.solvers.backends.gpu.library import GRAPHS
from trueode.solvers.backends.gpu.recording import (
    Recording,
    UnclearError,
    alone,
    called,
    recorded,
    root_of,
)
from trueode.solvers.checked import is_symbolic
from trueode.solvers.gradients import Backprop
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.recognition.hooks import is_unwatched
from trueode.solvers.solver import Adaptive

NAME = "it is called, and what the GPU does is recorded and repeated"
EQUAL = 3  # equal solves, after which the next one is recorded
STALE = 50  # a recording that this many solves have not used is dropped, with its memory
MOST = 8  # recordings

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device)


def accepts(problem: Problem) -> bool:
    """Whether a solve may be recorded: of a module on a GPU, with constant, fixed steps."""
    if not problem.first.is_cuda or not GRAPHS.is_on():
        return False
    plain = not isinstance(problem.z0, tuple) and not problem.clock.differentiable
    fixed = not isinstance(problem.solver, Adaptive) and isinstance(problem.gradient, Backprop)
    saved = problem.points is None or problem.points.moving is None
    watched = (
        is_symbolic()
        or forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )
    is_module = isinstance(root_of(problem), nn.Module)
    return plain and fixed and saved and is_module and not watched and problem.first.numel() > 0


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`."""
    try:
        key = _key(problem)
    except UnclearError:
        return called(problem)
    seen = RECORDINGS.of(key, problem)
    if seen.refused:
        return called(problem)
    return alone(problem) if seen.recording is None else seen.recording.solve(problem)


def _key(problem: Problem) -> tuple[Any, ...]:
    """Everything that the work of a solve depends on, but for the numbers in tensors."""
    z, points = problem.first, problem.points
    return (
        threading.get_ident(),
        id(root_of(problem)),
        getattr(problem.field, "__func__", None),
        problem.solver,
        (problem.clock.t0, problem.clock.t1),
        None if points is None else (points.fractions.numpy().tobytes(), points.fractions.shape),
        (z.shape, z.stride(), z.dtype, z.device, z.requires_grad, torch.is_grad_enabled()),
        torch.is_autocast_enabled(z.device.type),
        torch.get_autocast_dtype(z.device.type),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        str(precision.modes()),
        torch.backends.cudnn.benchmark,
        *_contents(root_of(problem), z.device),
    )


def _contents(root: nn.Module, device: torch.device) -> Iterator[Any]:
    """The modules of a field, with their tensors on the device and their attributes.

    Raises:
        UnclearError: there are hooks, or attributes that cannot be compared.
    """
    for module in root.modules():
        if not is_unwatched(module):
            raise UnclearError
        yield type(module)
        for name, value in vars(module).items():
            if name not in _INTERNAL:
                yield name, _plain(value, device)
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            yield name, _plain(tensor, device)


def _plain(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor) and value.device == device:
        return id(value), value.data_ptr(), value.shape, value.stride(), value.requires_grad
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(x, device) for x in value)
    if isinstance(value, FunctionType):
        return value
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type)):
        return value
    raise UnclearError


@dataclass
class Seen:
    """A solve that was asked for: how often, when last, and what was made of it."""

    root: Callable[[], Any]
    asked: int = 0
    last: int = 0
    recording: Recording | None = None
    refused: bool = False


class Recordings:
    """The recordings of a process, and the solves that may be recorded next."""

    def __init__(self) -> None:
        self._seen: dict[Any, Seen] = {}
        self._solves = 0

    def __len__(self) -> int:
        return sum(seen.recording is not None for seen in self._seen.values())

    def clear(self) -> None:
        """Drop all of them."""
        self._seen = {}

    def of(self, key: Any, problem: Problem) -> Seen:
        """What is known of a solve, which is recorded if it was asked for often enough."""
        self._solves += 1
        self._drop_stale()
        root = root_of(problem)
        seen = self._seen.get(key)
        if seen is None or seen.root() is not root:
            seen = self._seen[key] = Seen(weakref.ref(root, lambda _: self._drop(key)))
        seen.asked, seen.last = seen.asked + 1, self._solves
        if seen.recording is None and seen.asked > EQUAL and not seen.refused:
            self._make_room()
            seen.recording = recorded(problem)
            seen.refused = seen.recording is None
        return seen

    def _drop_stale(self) -> None:
        for key, seen in list(self._seen.items()):
            if self._solves - seen.last > STALE:
                self._drop(key)

    def _drop(self, key: Any) -> None:
        self._seen.pop(key, None)

    def _make_room(self) -> None:
        held = [seen for seen in self._seen.values() if seen.recording is not None]
        if len(held) >= MOST:
            min(held, key=lambda seen: seen.last).recording = None


RECORDINGS = Recordings()
