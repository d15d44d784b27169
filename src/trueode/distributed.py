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
from typing import Any

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from trueode import gpus
from trueode.errors import DeviceError, calling, printable

PATIENCE = timedelta(minutes=10)  # until all processes have connected
LONGEST = timedelta(hours=12)  # of later exchanges: the others wait while the main rank certifies


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


def check_nccl() -> None:
    """Check that GPUs of several processes can exchange tensors.

    Raises:
        DeviceError: this torch has no NCCL.
    """
    if not torch.distributed.is_nccl_available():
        raise DeviceError(
            "Several GPUs need NCCL, which this torch was built without (it is in those for "
            "Linux): name one GPU, as --gpu_ids 0."
        )


def connect(use_gpu: bool, gpu_ids: str) -> Ranks:
    """Join the processes that torchrun started, or run as a single process.

    Raises:
        DeviceError: there are fewer GPUs than processes, or one cannot be used.
        UsageError: the processes cannot reach one another within `PATIENCE`.
    """
    ids = gpus.chosen(use_gpu, gpu_ids)
    if not launched():
        return Ranks(0, 1, gpus.claim(torch.device("cuda", ids[0]) if ids else torch.device("cpu")))
    local = _number("LOCAL_RANK", 0)
    if ids and local >= len(ids):
        raise DeviceError(
            f"Process {local} on this machine has no GPU: --gpu_ids {gpu_ids} names {len(ids)}; "
            "name one per process."
        )
    if ids:
        check_nccl()
    device = gpus.claim(torch.device("cuda", ids[local]) if ids else torch.device("cpu"))
    with calling(
        "The processes cannot connect",
        " torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. To train in one process, "
        "unset WORLD_SIZE.",
    ):
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        if ids:
            _refuse_shared(store, rank, size, str(torch.cuda.get_device_properties(device).uuid))
        torch.distributed.init_process_group(
            "nccl" if ids else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            device_id=device if ids else None,
        )
        first = torch.distributed.all_reduce(torch.ones(1, device=device), async_op=True)
        first.wait(PATIENCE)  # NCCL connects, or fails to, at its first exchange
        _be_patient(LONGEST)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _be_patient(time: timedelta) -> None:
    """Set the time limit of all exchanges to come."""
    group = torch.distributed.distributed_c10d
    # the second is its name in older versions
    (getattr(group, "set_timeout", None) or group._set_pg_timeout)(time)


def _refuse_shared(store: Any, rank: int, size: int, gpu: str) -> None:
    """Check that each process has a GPU of its own: NCCL would wait for ever.

    Raises:
        DeviceError: two processes have the same.
    """
    store.set(f"gpu of rank {rank}", gpu)
    others = [i for i in range(size) if store.get(f"gpu of rank {i}").decode() == gpu]
    if len(others) > 1:
        raise DeviceError(
            f"The processes {', '.join(map(str, others))} have the same GPU ({gpu}): start one "
            "process per GPU, with torchrun or --gpu_ids 0,1."
        )


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``python ARGUMENTS`` in several processes with a GPU each, which train together; return
    the exit code.

    Raises:
        DeviceError: this torch has no NCCL.
    """
    check_nccl()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    return subprocess.call([*command, *arguments])
