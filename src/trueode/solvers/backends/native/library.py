"""The compiled kernel: found, loaded, and told which instruction set to use."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trueode.solvers.backends.native.runtime import NOT_ASKED, RUNTIME

VARIABLE = "TRUEODE_NATIVE"  # of the environment: "off", the name of an instruction set, or the path of another build


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


LAYER = (
    *(
        "fan_in",
        "fan_out",
        "taps",
        "stride_in",
        "stride_out",
        "tap_stride",
        "bias_stride",
        "time_stride",
        "activation",
    ),
    *(
        "weight",
        "bias",
        "time_weight",
        "weight_gradient",
        "bias_gradient",
        "time_gradient",
    ),  # addresses
)
"""A layer as in native.c: as many numbers of 64 bits, one after the other, which takes less time
than a `Structure`.
"""


class Solve(Structure):
    """As in native.c; ``held``: what must live as long."""

    held: Any

    _fields_ = (
        *_fields(
            c_int64,
            "batch width n_layers n_steps n_stages n_saved keep threads capacity per_sample",
        ),
        *_fields(c_double, "t0 t1"),
        *_fields(c_void_p, "layers a b c grid saved z0 z1 zs tape g1 gs g0"),
    )


class AdaptiveSolve(Structure):
    """As in native.c."""

    _fields_ = (
        ("solve", Solve),
        *_fields(c_int64, "n_stages fsal error_order max_steps"),
        *_fields(c_void_p, "a b c error"),
        *_fields(c_double, "rtol atol first_step max_step"),
        *_fields(c_int64, "calls n_rows"),
        *_fields(c_void_p, "accepted rejected trace"),
    )


class Convolution(Structure):
    """As in native.c."""

    _fields_ = (
        *_fields(c_int64, "batch height width fan_in fan_out threads"),
        *_fields(c_void_p, "x weight bias y g weight_gradient bias_gradient"),
    )


class Kernel(NamedTuple):
    """The kernel for one instruction set."""

    library: Any
    number: int
    name: str

    def forward(self, double: bool, solve: Solve) -> bool:
        """Solve with fixed steps; whether the final states are finite. ``double``: in double
        precision, here and below.
        """
        code = self.library.trueode_forward(self.number, double, byref(solve))
        if code != FAILED:
            _done(code)
        return bool(code != FAILED)

    def backward(self, double: bool, solve: Solve) -> None:
        """Gradients of such a solve."""
        _done(self.library.trueode_backward(self.number, double, byref(solve)))

    def solve_adaptive(self, double: bool, adaptive: AdaptiveSolve) -> bool:
        """Solve with adaptive steps; whether that went well."""
        code = self.library.trueode_solve_adaptive(self.number, double, byref(adaptive))
        if code != FAILED:
            _done(code)
        return bool(code != FAILED)

    def take(
        self, double: bool, adaptive: AdaptiveSolve, grid: int, errors: int, tape: int | None
    ) -> None:
        """Take the steps of `solve_adaptive`, at the addresses given."""
        _done(self.library.trueode_take(self.number, double, byref(adaptive), grid, errors, tape))

    def convolve(self, double: bool, task: Convolution) -> None:
        """A convolution of images."""
        _done(self.library.trueode_convolve(self.number, double, byref(task)))

    def convolution_gradient(self, double: bool, task: Convolution) -> None:
        """Gradients of the weights and the bias of such a convolution."""
        _done(self.library.trueode_convolution_gradient(self.number, double, byref(task)))

    def tape_size(self, double: bool, solve: Solve) -> int:
        """Bytes that a forward pass keeps for the backward pass."""
        size = int(self.library.trueode_tape_size(self.number, double, byref(solve)))
        _done(NO_MEMORY if size < 0 else 0)
        return size


FAILED, NO_MEMORY = 1, 2  # as in native.c


def _done(code: int) -> None:
    if code:
        raise MemoryError("There is not enough memory for the solve.")


@cache
def _load() -> tuple[Any, str]:
    """The library, or None and why there is none."""
    wanted = os.environ.get(VARIABLE, "")
    usual = Path(__file__).parent / "_kernel"
    candidates = (
        [Path(wanted)]
        if os.sep in wanted
        else [Path(f"{usual}{suffix}") for suffix in EXTENSION_SUFFIXES]
    )
    found = [path for path in candidates if path.is_file()]
    if not found:
        return None, "it was not built: at the installation there was no compiler that could"
    try:
        library = ctypes.CDLL(str(found[0]))
        declare(library)
    except (OSError, AttributeError) as failure:
        return None, f"{found[0].name} cannot be loaded: {failure}"
    structures = Solve, AdaptiveSolve, Convolution
    sizes = (c_int64 * (1 + len(structures)))()
    library.trueode_sizes(sizes)
    if list(sizes) != [8 * len(LAYER), *(ctypes.sizeof(each) for each in structures)]:
        return (
            None,
            f"{found[0].name} was built from another version of the source: install the package again",
        )
    library.trueode_share(threads_of_torch())
    return library, ""


@cache
def threads_of_torch() -> int | None:
    """The address of the function that gives work to the threads of PyTorch; None where OpenMP does
    not have them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


def declare(library: Any) -> None:
    """Tell ctypes the signatures."""
    for name in ("forward", "backward"):
        getattr(library, f"trueode_{name}").argtypes = (c_int64, c_int64, POINTER(Solve))
    for name in ("convolve", "convolution_gradient"):
        getattr(library, f"trueode_{name}").argtypes = (c_int64, c_int64, POINTER(Convolution))
    library.trueode_solve_adaptive.argtypes = (c_int64, c_int64, POINTER(AdaptiveSolve))
    library.trueode_take.argtypes = (
        c_int64,
        c_int64,
        POINTER(AdaptiveSolve),
        c_void_p,
        c_void_p,
        c_void_p,
    )
    library.trueode_tape_size.argtypes = (c_int64, c_int64, POINTER(Solve))
    library.trueode_tape_size.restype = c_int64
    library.trueode_has.argtypes = (c_int64,)
    library.trueode_has.restype = c_int
    library.trueode_name.argtypes = (c_int64,)
    library.trueode_name.restype = c_char_p
    library.trueode_share.argtypes = (c_void_p,)
    library.trueode_share.restype = None
    library.trueode_sizes.argtypes = (POINTER(c_int64),)
    library.trueode_sizes.restype = None


@cache
def _kernels() -> dict[str, Kernel]:
    """The kernels that this machine can run, by the name of their instruction set, the fastest
    first.
    """
    library, _ = _load()
    kernels: dict[str, Kernel] = {}
    number = 0
    while library is not None and (has := library.trueode_has(number)) >= 0:
        if has:
            name = library.trueode_name(number).decode()
            kernels[name] = Kernel(library, number, name)
        number += 1
    return kernels


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the kernel was compiled for and this machine has, the fastest
    first.
    """
    return tuple(_kernels())


def kernel() -> Kernel | None:
    """The kernel in use; None where there is none, which is told once."""
    if RUNTIME.kernel is NOT_ASKED:
        RUNTIME.kernel = _first()
    found: Kernel | None = RUNTIME.kernel
    return found


def _first() -> Kernel | None:
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        return None
    kernels = _kernels()
    if wanted and wanted not in kernels and os.sep not in wanted:
        known = ", ".join(["off", *kernels])
        warnings.warn(
            f"{VARIABLE}={wanted!r} is not available here; known are {known}.",
            RuntimeWarning,
            stacklevel=2,
        )
    if not kernels:
        warnings.warn(
            f"The compiled kernel is not used ({_load()[1]}); the portable path gives the same results and takes longer. "
            f"{VARIABLE}=off leaves this unsaid.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return kernels.get(wanted) or next(iter(kernels.values()))


@contextmanager
def using(name: str) -> Iterator[None]:
    """A block in which another instruction set is used, or none: ``"off"``."""
    before = kernel()
    RUNTIME.kernel = None if name == "off" else _kernels()[name]
    try:
        yield
    finally:
        RUNTIME.kernel = before


def threads() -> int:
    """How many threads the kernel may use: as many as PyTorch, outside of a block of
    `torch_on_one_thread`.
    """
    return RUNTIME.threads or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """A block in which PyTorch works with one thread, and the kernel goes on with as many as
    PyTorch had.

    It is for tensors that are too small for several threads. PyTorch uses them all the same (for an
    optimiser, a softmax, a product), which wins nothing, and beside a busy process costs
    milliseconds each time: all wait for the one thread that does not get the processor.
    """
    had, before = torch.get_num_threads(), RUNTIME.threads
    RUNTIME.threads = threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        RUNTIME.threads = before
        torch.set_num_threads(had)


def describe() -> str:
    """Which path whole solves of fields made of layers take here, in words."""
    if os.environ.get(VARIABLE) == "off":
        return f"portable path ({VARIABLE}=off)"
    _, reason = _load()
    active = None if reason else kernel()
    return (
        f"portable path (no compiled kernel: {reason})"
        if active is None
        else f"compiled kernel, {active.name}"
    )
