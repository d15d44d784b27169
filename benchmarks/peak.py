"""The most multiplications and additions that the processor can do, measured.

``python benchmarks/peak.py`` serves them by turns, on as many threads as ``NPROC`` says.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from turns import HERE, serve

COMPILER = shutil.which("cc")


@cache
def library() -> ctypes.CDLL:
    """`peak.c`, compiled for this machine."""
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "peak.so"
        how = [COMPILER, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([*how, str(HERE / "peak.c"), "-o", str(made)], check=True)
        found = ctypes.CDLL(str(made))
    found.operations.restype = ctypes.c_double
    found.multiply_and_add.restype = ctypes.c_float
    found.multiply_and_add.argtypes = (ctypes.c_float, ctypes.c_float)
    return found


def operations(threads: int) -> float:
    """Floating point operations of a `step`."""
    return threads * float(library().operations())


def step(threads: int) -> Callable[[], object]:
    """Multiply and add on some threads."""
    function, pool = library().multiply_and_add, ThreadPoolExecutor(threads)
    return lambda: list(pool.map(function, threads * [0.5], threads * [1.0]))


if __name__ == "__main__":
    serve(step(int(os.environ["NPROC"])))
