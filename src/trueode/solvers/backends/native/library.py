"""Find the compiled kernel, load it, and choose its instruction set."""

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

# environment variable: "off", the name of an instruction set, or the path of another build
VARIABLE = "TRUEODE_NATIVE"


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
"""The members of a layer in native.c, each of 64 bits. An array of them is faster to fill than a
`Structure`.
"""


class Solve(Structure):
    """As in native.c; ``held`` keeps objects alive whose addresses are used."""

    held: Any

    _fields_ = (
        *_fields(
            c_int64,
            "batch width n_layers n_steps n_stages n_saved keep threads capacity per_sample "
            "height columns divergence",
        ),
        *_fields(c_double, "t0 t1"),
        *_fields(c_void_p, "layers a b c grid saved inside"),
        ("degree", c_int64),
        *_fields(c_void_p, "dense z0 z1 zs tape g1 gs g0"),
    )


class AdaptiveSolve(Structure):
    """As in native.c."""

    _fields_ = (
        ("solve", Solve),
        *_fields(c_int64, "n_stages fsal error_order max_steps"),
        *_fields(c_void_p, "a b c error"),
        *_fields(c_double, "rtol atol first_step max_step"),
        ("points", c_void_p),
        *_fields(c_double, "slack next_step"),
        *_fields(c_int64, "calls n_rows"),
        *_fields(c_void_p, "accepted rejected trace"),
    )


class Kernel(NamedTuple):
    """The kernel for one instruction set."""

    library: Any
    number: int
    name: str

    def forward(self, double: bool, solve: Solve) -> bool:
        """Solve with fixed steps; return whether the final states are finite. ``double``, here and
        below: use double precision.
        """
        code = self.library.trueode_forward(self.number, double, byref(solve))
        if code != FAILED:
            _done(code)
        return bool(code != FAILED)

    def backward(self, double: bool, solve: Solve) -> None:
        """Compute the gradients of a solve."""
        _done(self.library.trueode_backward(self.number, double, byref(solve)))

    def solve_adaptive(self, double: bool, adaptive: AdaptiveSolve) -> int:
        """Solve with adaptive steps; return 0, FAILED, or, with the same steps for the whole batch,
        EXHAUSTED if it took ``max_steps``. `take` must follow unless it failed.
        """
        code = int(self.library.trueode_solve_adaptive(self.number, double, byref(adaptive)))
        if code not in (FAILED, EXHAUSTED):
            _done(code)
        return code

    def take(
        self, double: bool, adaptive: AdaptiveSolve, grid: int, errors: int, tape: int | None
    ) -> None:
        """Write the steps of `solve_adaptive` to the given addresses."""
        _done(self.library.trueode_take(self.number, double, byref(adaptive), grid, errors, tape))

    def tape_size(self, double: bool, solve: Solve) -> int:
        """The number of bytes that a forward pass keeps for the backward pass."""
        size = int(self.library.trueode_tape_size(self.number, double, byref(solve)))
        _done(NO_MEMORY if size < 0 else 0)
        return size


FAILED, NO_MEMORY, EXHAUSTED = 1, 2, 3  # as in native.c


def _done(code: int) -> None:
    if code:
        raise MemoryError("There is not enough memory for the solve.")


@cache
def _load() -> tuple[Any, str]:
    """The library, or None and the reason."""
    wanted = os.environ.get(VARIABLE, "")
    usual = Path(__file__).parent / "_kernel"
    candidates = (
        [Path(wanted)]
        if os.sep in wanted
        else [Path(f"{usual}{suffix}") for suffix in EXTENSION_SUFFIXES]
    )
    found = [path for path in candidates if path.is_file()]
    if not found:
        return None, "it was not built: the installation found no suitable compiler"
    try:
        library = ctypes.CDLL(str(found[0]))
        declare(library)
    except (OSError, AttributeError) as failure:
        return None, f"{found[0].name} cannot be loaded: {failure}"
    sizes = (c_int64 * 8)()  # other versions may write more of them
    library.trueode_sizes(sizes)
    own = [8 * len(LAYER), ctypes.sizeof(Solve), ctypes.sizeof(AdaptiveSolve)]
    if [size for size in sizes if size] != own:
        return (
            None,
            f"{found[0].name} was built from another version of the source: "
            "install the package again",
        )
    library.trueode_share(threads_of_torch())
    return library, ""


@cache
def threads_of_torch() -> int | None:
    """The address of the function that gives work to PyTorch's threads; None if OpenMP does not
    manage them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


def declare(library: Any) -> None:
    """Declare the signatures of the library's functions."""
    for name in ("forward", "backward"):
        getattr(library, f"trueode_{name}").argtypes = (c_int64, c_int64, POINTER(Solve))
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
    """The kernels that this machine can run, by name of the instruction set, fastest first."""
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
    """The instruction sets for which the kernel was compiled and that this machine has, fastest
    first.
    """
    return tuple(_kernels())


def kernel() -> Kernel | None:
    """The kernel in use; None, with one warning, if there is none."""
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
            f"{VARIABLE}={wanted!r} is not available here; choose from {known}.",
            RuntimeWarning,
            stacklevel=2,
        )
    if not kernels:
        warnings.warn(
            f"The compiled kernel is not used ({_load()[1]}); the portable path gives the same "
            f"results but is slower. {VARIABLE}=off silences this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return kernels.get(wanted) or next(iter(kernels.values()))


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use another instruction set within the block, or no kernel: ``"off"``."""
    before = kernel()
    RUNTIME.kernel = None if name == "off" else _kernels()[name]
    try:
        yield
    finally:
        RUNTIME.kernel = before


def threads() -> int:
    """The number of threads of the kernel: as many as PyTorch, or as PyTorch had before
    `torch_on_one_thread`.
    """
    return RUNTIME.threads or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Let PyTorch use one thread within the block, and the kernel as many as PyTorch had before.

    This is for tensors that are too small for several threads. PyTorch would still use all threads
    (for an optimiser, a softmax, a product), without any gain. If another process is busy, this
    costs milliseconds each time, because all threads wait for one that does not get a processor.
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
    """Describe how fields of layers are solved on this machine: by the kernel or without it."""
    if os.environ.get(VARIABLE) == "off":
        return f"portable path ({VARIABLE}=off)"
    _, reason = _load()
    active = None if reason else kernel()
    return (
        f"portable path (no compiled kernel: {reason})"
        if active is None
        else f"compiled kernel, {active.name}"
    )
