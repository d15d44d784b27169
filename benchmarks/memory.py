"""Measure the memory of a CIFAR-shaped training step with 64 Euler steps.

``python benchmarks/memory.py SIDE`` prints MiB: the peak memory of the process during the step
minus its memory before, both as reported by the operating system. A training step with one Euler
step runs first: what libraries load and keep does not count. ``torchdiffeq`` uses its
back-propagation, ``trueode, checkpoint`` solves with `Checkpoint`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from steps import cifar_parts, training_step

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held() -> tuple[float, float]:
    """The memory of the process in MiB, now and at its peak."""
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (
        20 if sys.platform == "darwin" else 10
    )
    return most, most


def main(side: str) -> None:
    torch.manual_seed(0)
    for n_steps in (1, 64):
        step = training_step(*cifar_parts(side, n_steps), 10, side != "torchdiffeq")
        if FORGET.exists():
            FORGET.write_text("5")  # resets the peak (Linux)
        before = held()[0]
        step()
        growth = held()[1] - before
    print(growth)


if __name__ == "__main__":
    main(*sys.argv[1:])
