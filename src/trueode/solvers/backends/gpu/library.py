"""Find Triton's kernels, where they are asked for."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from torch import Tensor

from trueode.solvers.backends.native.runtime import NOT_ASKED, RUNTIME
from trueode.solvers.backends.switches import Switch

TRITON, GRAPHS = Switch("TRUEODE_TRITON"), Switch("TRUEODE_GRAPHS")


def kernels() -> Any:
    """The module of the kernels; None, with a warning if they were asked for, if they are not used.

    Triton is imported here, when it is first needed.
    """
    if RUNTIME.triton is NOT_ASKED:
        RUNTIME.triton = _found()
    return RUNTIME.triton


def _found() -> Any:
    if not TRITON.is_on():
        return None
    try:
        return import_module("trueode.solvers.backends.gpu.kernels")
    except Exception as failure:  # whatever a broken installation raises
        give_up(failure)
        return None


def give_up(failure: Exception) -> None:
    """Use no kernels from now on, with one warning that names the cause."""
    RUNTIME.triton = None
    cause: BaseException = failure
    while cause.__cause__ is not None:  # the compiler wraps what it meets
        cause = cause.__cause__
    reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
    warnings.warn(
        f"Triton's kernels are not used ({reason}); the portable path gives the same results but "
        f"is slower. Install a version of Triton that fits PyTorch; {TRITON.variable}=off silences "
        "this warning.",
        RuntimeWarning,
        stacklevel=2,
    )


def reaches(z: Tensor) -> bool:
    """Whether kernels are in use for the device of a tensor: a GPU; or, interpreted, any."""
    found = kernels()
    return found is not None and (z.is_cuda or found.INTERPRETED)


def describe() -> str:
    """Describe how solves are computed on GPUs: what is switched on, and what it uses."""
    found = kernels()
    triton = (
        "Triton is missing or broken" if found is None else f"Triton {found.triton.__version__}"
    )
    switches = (f"{each.variable}={'on' if each.is_on() else 'off'}" for each in (TRITON, GRAPHS))
    return ", ".join(switches).replace("TRITON=on", f"TRITON=on ({triton})")
