"""Find Triton's kernels, where they are asked for."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

from torch import Tensor

from trueode.solvers.backends.native.runtime import NOT_ASKED, RUNTIME

# environment variable: "on" or "off", the default
VARIABLE = "TRUEODE_TRITON"


def kernels() -> Any:
    """The module of the kernels; None, with a warning if they were asked for, if they are not used.

    Triton is imported here, when it is first needed.
    """
    if RUNTIME.triton is NOT_ASKED:
        RUNTIME.triton = _found()
    return RUNTIME.triton


def _found() -> Any:
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "on", "off"):
        warnings.warn(
            f"{VARIABLE}={wanted!r} is not known: choose on or off. The kernels are not used.",
            RuntimeWarning,
            stacklevel=2,
        )
    if wanted != "on":
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
        f"is slower. Install a version of Triton that fits PyTorch; {VARIABLE}=off silences this "
        "warning.",
        RuntimeWarning,
        stacklevel=2,
    )


def reaches(z: Tensor) -> bool:
    """Whether kernels are in use for the device of a tensor: a GPU; or, interpreted, any."""
    found = kernels()
    return found is not None and (z.is_cuda or found.INTERPRETED)


def describe() -> str:
    """Describe how fields of layers are solved on GPUs: by Triton's kernels or without them."""
    found = kernels()
    if found is not None:
        return f"Triton's kernels (Triton {found.triton.__version__})"
    on = os.environ.get(VARIABLE) == "on"
    reason = "Triton is missing or broken" if on else f"{VARIABLE}=on uses Triton"
    return f"portable path ({reason})"
