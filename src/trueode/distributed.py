"""Training one model in several processes: ranks, their devices, and sums over ranks."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from trueode.errors import DeviceError, calling, printable


@dataclass(frozen=True)
class Ranks:
    """This process in the group of processes that train together.

    Attributes:
        rank: its number; rank 0 is the main rank, which writes files and prints.
        world_size: the number of processes.
        device: the device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, the same on each; with one rank the tensor itself."""
        if self.world_size == 1:
            return x
        total = x.detach().to(self.device).clone()
        torch.distributed.all_reduce(total)
        return total

    def any(self, fact: bool) -> bool:
        """Whether ``fact`` is true on any rank; all ranks must call this."""
        return bool(self.sum(torch.tensor(float(fact), device="cpu")) > 0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on the main rank first; the others then find its files on the disk."""
        if self.world_size > 1 and not self.is_main:
            torch.distributed.barrier()
        yield
        if self.world_size > 1 and self.is_main:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            # a model that still holds the group would keep its threads alive, and abort at exit
            gc.collect()
            torch.distributed.destroy_process_group()


def launched() -> bool:
    """Whether torchrun, or `launch`, started this process among several."""
    return _number("WORLD_SIZE", 1) > 1


def _number(variable: str, default: int) -> int:
    """Read a whole number of at least 0 from the environment.

    Raises:
        DeviceError: the variable has another value.
    """
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise DeviceError(
            f"The environment variable {variable} is {printable(text)!r}; torchrun sets it to a "
            "number. To train in one process, unset it."
        )
    return int(text)


def check_gpus(use_gpu: bool, gpu_ids: str) -> list[int]:
    """The requested GPUs; an empty list for a run on the CPU.

    Raises:
        DeviceError: a requested GPU does not exist, or ``gpu_ids`` is not a list of numbers.
    """
    if not use_gpu:
        return []
    try:
        ids = [int(part) for part in gpu_ids.split(",")]
    except ValueError:
        raise DeviceError(
            f"--gpu_ids {gpu_ids!r} must be a list of numbers, such as '0' or '0,1,2'."
        ) from None
    if min(ids) < 0 or len(set(ids)) < len(ids):
        raise DeviceError(
            f"--gpu_ids {gpu_ids!r} must be distinct numbers of at least 0, such as '0' or '0,1,2'."
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [i for i in ids if i >= count]
    if missing:
        found = (
            f"torch sees {count} GPU{'s' if count != 1 else ''}"
            if count
            else "torch sees no GPU on this machine"
        )
        raise DeviceError(
            f"--use_gpu true: the device cuda:{missing[0]} does not exist; {found}. "
            "Leave --use_gpu out to train on the CPU"
            + (", or choose others with --gpu_ids." if count else ".")
        )
    return ids


def connect(use_gpu: bool, gpu_ids: str) -> Ranks:
    """Join the processes that torchrun started, or run as a single process.

    Raises:
        DeviceError: there are fewer GPUs than processes.
    """
    gpus = check_gpus(use_gpu, gpu_ids)
    if not launched():
        return Ranks(0, 1, torch.device("cuda", gpus[0]) if gpus else torch.device("cpu"))
    local = _number("LOCAL_RANK", 0)
    if gpus and local >= len(gpus):
        raise DeviceError(
            f"Process {local} on this machine has no GPU: --gpu_ids {gpu_ids} names {len(gpus)}; "
            "name one per process."
        )
    device = torch.device("cuda", gpus[local]) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    patience = timedelta(hours=12)  # the other ranks wait while the main rank certifies
    with calling(
        "The processes cannot connect",
        " torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. To train in one process, "
        "unset WORLD_SIZE.",
    ):
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        torch.distributed.init_process_group(
            "nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=patience
        )
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``python ARGUMENTS`` in several processes that train together; return the exit code."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    return subprocess.call([*command, *arguments])
