"""Compile Triton's kernels for a GPU that need not be there; print what the code says.

Run as ``python -m tests.solvers.backends.gpu.compiled`` with TRUEODE_TRITON=on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.solvers.backends.gpu.interpreted import states
from tests.solvers.backends.native.test_native import Field
from trueode.solvers import FixedStep, solve
from trueode.solvers.backends import native
from trueode.solvers.backends.gpu import kernels, library


class Driver:
    """What the compiler asks a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that is compiled, but not run."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.made: list[Any] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.made.append(self.kernel.warmup(*arguments, grid=grid, **options))

        return launch


def told(dtype: torch.dtype, activation: str, method: str) -> dict[str, dict[str, Any]]:
    """Of each kernel: matrix products in low precision and atomic operations in its code, and how
    often it was compiled for solves of several batches and numbers of steps.
    """
    kept = kernels.forward, kernels.backward
    kernels.forward, kernels.backward = map(Compiled, kept)
    field = Field([(2, 16, activation), (16, 2, "identity")], True, dtype)
    for batch, steps in ((1, 1), (16, 4), (37, 16)):
        z0 = states(batch, 2, dtype=dtype).requires_grad_()
        solution = solve(
            field, z0, solver=FixedStep(method, n_steps=steps), save_at=[1.0], on_failure="return"
        )
        solution.z.sum().backward()
    found = {}
    for kernel in (kernels.forward, kernels.backward):
        code = kernel.made[0].asm["ptx"]
        found[kernel.kernel.__name__] = {
            "unwanted": re.findall(r"tf32|\bf16|bf16|\batom\.\S*|\bred\.\S*", code),
            "compiled": len({id(each) for each in kernel.made}),
        }
    kernels.forward, kernels.backward = kept
    return found


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    library.reaches = lambda z: True
    with native.using("off"):
        print(
            json.dumps(
                [told(torch.float32, "gelu", "dopri5"), told(torch.float64, "softplus", "rk4")]
            )
        )


if __name__ == "__main__":
    main()
