"""The precision of products of float32 on GPUs: IEEE, or TensorFloat-32.

PyTorch computes convolutions of float32 in TF32 by default, which rounds factors to 10 bits. The
modes are those of the process, and count when a kernel runs: a backward pass must be inside too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch

CUDA, CPU = ("cudnn.conv", "cudnn.rnn", "cuda.matmul"), ("mkldnn.conv", "mkldnn.matmul")

with warnings.catch_warnings(), suppress(RuntimeError):
    warnings.simplefilter("ignore")
    torch.get_float32_matmul_precision()  # torch 2.9 warns, once, that there is another interface


class Modes(NamedTuple):
    """The modes of the process.

    Torch 2.9 has a mode for each part, and refuses to read the older ones where the two contradict
    each other: therefore both are set. None: they contradict each other already, or are unknown to
    this version.
    """

    matmul: str | None
    cudnn: bool | None
    parts: dict[str, str] | None


def modes() -> Modes:
    """The modes in effect."""
    matmul, cudnn = None, None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    if not hasattr(torch.backends.cudnn, "conv"):
        return Modes(matmul, cudnn, None)
    return Modes(matmul, cudnn, {name: _part(name).fp32_precision for name in (*CUDA, *CPU)})


@contextmanager
def ieee() -> Iterator[None]:
    """Compute float32 as IEEE float32 within the block; also a decorator."""
    with _set(Modes("highest", False, dict.fromkeys((*CUDA, *CPU), "ieee"))):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """Let GPUs round the factors of float32 to TF32 within the block; also a decorator."""
    with _set(Modes("high", True, dict.fromkeys(CUDA, "tf32") | dict.fromkeys(CPU, "ieee"))):
        yield


@contextmanager
def _set(wanted: Modes) -> Iterator[None]:
    before = modes()
    unread = {name: None for name, mode in before._asdict().items() if mode is None}
    _write(wanted._replace(**unread))  # they could not be restored
    try:
        yield
    finally:
        _write(before)


def _write(new: Modes) -> None:
    if new.matmul is not None:  # the older modes first: they set parts too
        torch.set_float32_matmul_precision(new.matmul)
    if new.cudnn is not None:
        torch.backends.cudnn.allow_tf32 = new.cudnn
    for name, precision in (new.parts or {}).items():
        _part(name).fp32_precision = precision


def _part(name: str) -> Any:
    backend, part = name.split(".")
    return getattr(getattr(torch.backends, backend), part)
