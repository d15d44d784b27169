"""GPUs: which exist, whether they work, and what they are."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from trueode.errors import DeviceError, told
from trueode.precision import modes

DRIVER = Path("/proc/driver/nvidia/version")
FULL = re.compile("out of memory|busy or unavailable|ALLOC_FAILED|NOT_INITIALIZED")
CPU = "--use_gpu false computes on the CPU."


def count() -> int:
    """The number of GPUs that torch can use; 0 if their driver does not work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the driver: a refusal names the cause
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def names() -> list[str]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them, for processes that see one each."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    there = count()
    return given.split(",")[:there] if given else [str(i) for i in range(there)]


def chosen(use_gpu: bool, gpu_ids: str) -> list[int]:
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
    there = count()
    missing = [i for i in ids if i >= there]
    if missing:
        found = f"torch sees {there} GPU{'s' if there != 1 else ''}: choose with --gpu_ids."
        raise DeviceError(
            f"The device cuda:{missing[0]} does not exist; {found if there else _trouble()} {CPU}"
        )
    return ids


def one(use_gpu: bool, gpu_ids: str, what: str) -> torch.device:
    """The device of work that takes a single one, ready for use.

    Raises:
        DeviceError: the requested GPU does not exist or cannot be used, or several are requested.
    """
    ids = chosen(use_gpu, gpu_ids)
    if len(ids) > 1:
        raise DeviceError(f"--gpu_ids {gpu_ids} names {len(ids)} GPUs, but {what} takes one.")
    return claim(torch.device("cuda", ids[0]) if ids else torch.device("cpu"))


def claim(device: torch.device, current: bool = True) -> torch.device:
    """Compute something on a device, to see whether it works.

    Args:
        device: the device.
        current: whether to make it the current GPU of this process.

    Raises:
        DeviceError: it cannot be used.
    """
    if device.type != "cuda":
        return device
    try:
        if current:
            torch.cuda.set_device(device)
        ones = torch.ones(2, 2, device=device)
        float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as failure:  # the latter: torch was built without CUDA
        remedy = (
            "Other processes fill it: wait for them, or choose another GPU with --gpu_ids."
            if FULL.search(str(failure))
            else "Install a driver and a torch that fit this GPU (trueode info names versions)."
        )
        raise DeviceError(f"{device} cannot be used: {told(failure)}. {remedy} {CPU}") from failure
    return device


def free(device: torch.device) -> int:
    """Free bytes of a GPU, including those in PyTorch's cache."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def driver() -> str | None:
    """The version of NVIDIA's driver, as Linux tells it; None: unknown."""
    found = re.search(r"\d+(\.\d+)+", DRIVER.read_text()) if DRIVER.is_file() else None
    return found and found[0]


def facts(device: torch.device) -> dict[str, Any]:
    """What results on a device depend on, under the key ``gpu``; empty for the CPU."""
    if device.type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "gpu": {
            "device": str(device),
            "name": torch.cuda.get_device_name(device),
            "capability": f"{major}.{minor}",
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "precision": modes()._asdict(),
        }
    }


def _trouble() -> str:
    """Why torch sees no GPU."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as failure:
        cause = str(failure).split(". ")[0].strip().rstrip(".")
        advice = " Update it, or install a torch that fits it." if "too old" in cause else ""
        return f"torch sees no GPU on this machine ({cause}).{advice}"
    return "torch sees no GPU on this machine."
