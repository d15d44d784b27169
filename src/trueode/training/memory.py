"""Memory for back-propagation: its estimate, and checkpoints if it does not suffice."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from trueode import gpus
from trueode.distributed import Ranks
from trueode.errors import OutOfMemoryError
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Backprop, Checkpoint, FixedStep, Solver, solve
from trueode.solvers.clock import seconds
from trueode.training.state import random_states, restore_random

Made = TypeVar("Made")
ADAPTIVE_STEPS = 100  # if this many fit, the steps of an adaptive solve are not counted


class MemoryGuard:
    """Changes from back-propagation to checkpoints if the activations would not fit, on all ranks
    or on none; in a single process also if they do not.

    Args:
        notice: receives a message about the change.
        ranks: the processes that train together.
        field: as in `Trainer`.
    """

    def __init__(
        self, notice: Callable[[str], None], ranks: Ranks, field: nn.Module | None
    ) -> None:
        self._notice, self._ranks, self._field = notice, ranks, field
        self._seen: Solver | None = None
        self._step = 0

    def choose_gradient(self, model: NeuralODE, x: Tensor, solver: Solver) -> None:
        """Estimate the need whenever the solver has changed, and use checkpoints if necessary."""
        if self._seen == solver or not isinstance(model.gradient, Backprop):
            return
        self._step = self._step or bytes_per_step(model, x, solver, self._field)
        self._seen = solver
        free = free_memory(x.device)
        length = seconds(model.t[1]) - seconds(model.t[0])
        steps: float = solver.count(length) if isinstance(solver, FixedStep) else ADAPTIVE_STEPS
        short = self._ranks.any(self._step * steps > free / 2)
        if short and isinstance(solver, Adaptive):
            with torch.no_grad():
                steps = model(x, solver, field=self._field, return_solution=True)[1].mean_steps
            short = self._ranks.any(self._step * steps > free / 2)
        if short:
            model.gradient = Checkpoint()
            self._notice(
                f"back-propagation would keep about {self._step * steps / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free: the run continues with `--autodif checkpoint`, "
                "which gives the same gradient."
            )

    def attempt(self, model: NeuralODE, make: Callable[[], Made]) -> Made:
        """Make the gradients of an iteration; if memory runs out under back-propagation, change to
        checkpoints and make them again.

        ``make`` may change gradients and draw random numbers before it succeeds, nothing else.
        """
        # A rank cannot repeat alone: the others wait for its gradients.
        if self._ranks.world_size > 1 or not isinstance(model.gradient, Backprop):
            return make()
        before = random_states(self._ranks.device)
        try:
            return make()
        except torch.OutOfMemoryError:
            pass  # repeat outside of this block, in which the error keeps the tensors of `make`
        for param in model.parameters():
            param.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        restore_random(before, self._ranks.device)
        model.gradient = Checkpoint()
        self._notice(
            f"the memory of {self._ranks.device} did not suffice for back-propagation: the run "
            "continues with `--autodif checkpoint`, which gives the same gradient."
        )
        return make()

    @contextmanager
    def told(self, model: NeuralODE) -> Iterator[None]:
        """A block in which a lack of memory is an error that says what to do.

        Raises:
            OutOfMemoryError: memory ran out.
        """
        try:
            yield
        except torch.OutOfMemoryError as failure:
            advice = "a smaller --batch_size"
            if isinstance(model.gradient, Backprop):
                advice = f"--autodif checkpoint, or {advice}"
            elif isinstance(model.gradient, Checkpoint):
                advice = f"{advice}, fewer channels, or --autodif adjoint"
            raise OutOfMemoryError(
                f"The memory of {self._ranks.device} does not suffice. Start the run again with "
                f"{advice}."
            ) from failure


def bytes_per_step(
    model: NeuralODE, x: Tensor, solver: Solver, field: nn.Module | None = None
) -> int:
    """Bytes that autograd keeps for one step of the solver on inputs ``x``, without weights.

    ``field``: as in `Trainer`.
    """
    # Tensors are kept, not only their sizes, so that no address is used twice.
    kept: dict[tuple[int, int], Tensor] = {}
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
            solve(
                lambda t, state: called(t, state), z, model.t, solver=one_step, on_failure="return"
            )
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def free_memory(device: torch.device) -> int:
    """Free bytes: of a GPU including PyTorch's cache, else of the system or its container."""
    if device.type == "cuda":
        return gpus.free(device)
    free = (
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if hasattr(os, "sysconf")
        else 2**33
    )
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)
