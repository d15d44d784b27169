"""How much memory back-propagation needs, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver, solve


def bytes_per_step(model: NeuralODE, x: Tensor, solver: Solver, field: nn.Module | None = None) -> int:
    """Bytes that autograd keeps for one step of the solver on inputs ``x``, weights left out; ``field``: as in `train`."""
    kept: dict[tuple[int, int], Tensor] = {}  # tensors, not sizes: an address must not be given out twice
    called = field or model.field
    weights = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr(), tensor.numel()] = tensor
        return tensor

    with torch.enable_grad():
        z = model.upstream(x) if model.upstream is not None else x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one_step = FixedStep(solver.method, n_steps=1)
            solve(lambda t, state: called(t, state), z, model.t, solver=one_step, on_failure="return")
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes that the device has free: on a GPU as its driver tells, else what the system or its container has left."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, free to it
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)
