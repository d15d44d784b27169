"""A CUDA device that is not there.

Its tensors say ``cuda:0`` and hold their numbers on the CPU. They refuse to meet tensors of the CPU
as those of CUDA do, and everything that a GPU would launch or wait for is counted, with the line of
the package that caused it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import trueode

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
SOURCES = str(Path(trueode.__file__).parent) + "/"

COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
ASKING = {  # operations whose result, or its shape, the host must know
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
}
NO_NUMBERS_MIX = {aten.cat.default, aten.stack.default, aten.addmm.default, aten.mm.default}
FREE = {  # operations that launch nothing
    aten.detach.default,
    aten.alias.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}


class Device:
    """What a GPU would have done.

    Attributes:
        launches: the number of launches of each operation.
        waits: how often the host waited for the device, by reason and line of the package.
        copies: copies from the host that do not wait, likewise.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()

    def reset(self) -> None:
        """Count from now on."""
        for counter in (self.launches, self.waits, self.copies):
            counter.clear()

    def wait(self, reason: str) -> None:
        self.waits[reason, _line()] += 1

    def __str__(self) -> str:
        lines = [f"{self.launches.total()} launches, {self.waits.total()} waits"]
        lines += [f"{n} x {why}: {where}" for (why, where), n in self.waits.most_common()]
        return "\n".join(lines)


_device = Device()


def _line() -> str:
    """The innermost line of the package that is being executed."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCES):
            return f"{frame.f_code.co_filename.removeprefix(SOURCES)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the package"


class Pretended(Tensor):
    """A tensor of the device; ``inner`` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Pretended:
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",
            requires_grad=requires_grad,
        )
        return made

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.inner = inner.detach()

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def new_tensor(self, data: Any, **how: Any) -> Tensor:
        _device.wait("new_tensor")
        return Pretended(torch.tensor(data, dtype=how.get("dtype", self.dtype), device="cpu"))

    def tolist(self) -> Any:
        _device.wait("tolist")
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:  # as torch.load(map_location="cpu") finds it
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            new: Tensor = Pretended(self.inner.clone())
            if isinstance(self, nn.Parameter) or getattr(self, "_is_param", False):
                new = nn.Parameter(new, self.requires_grad)
            memo[id(self)] = new
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in leaves if isinstance(x, Pretended)]
    there = [x for x in leaves if not isinstance(x, Pretended)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted).type
    _refuse_mixed(func, args, here, there)
    _note_waits(func, args, kwargs, wanted, bool(here))
    if wanted in ("cuda", "meta"):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    is_cuda = bool(here) if wanted is None else wanted in ("cuda", "meta")
    if (is_cuda or here) and func not in FREE and not func.is_view:
        _device.launches[str(func)] += 1
    raw = tree_map(lambda x: x.inner if isinstance(x, Pretended) else x, (args, kwargs))
    result = func(*raw[0], **raw[1])
    if func is aten._local_scalar_dense.default:
        return result
    known = {id(x.inner): x for x in here}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            return x
        return known[id(x)] if id(x) in known else Pretended(x) if is_cuda else x

    return tree_map(wrap, result)


def _refuse_mixed(func: Any, args: Any, here: list[Any], there: list[Tensor]) -> None:
    if func in INDEXING:
        if here and not isinstance(args[0], Pretended):
            raise RuntimeError(f"indices on cuda:0 of a tensor on the CPU in {func}")
    elif (
        func not in COPIES
        and here
        and (any(x.dim() for x in there) or (there and func in NO_NUMBERS_MIX))
    ):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found cuda:0 and cpu in {func}"
        )


def _note_waits(
    func: Any, args: Any, kwargs: dict[str, Any], wanted: str | None, has_here: bool
) -> None:
    if func in ASKING and has_here:
        _device.wait(str(func))
    elif func in INDEXING and isinstance(args[0], Pretended):
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
        if any(isinstance(x, Pretended) and x.dtype in (torch.bool, torch.uint8) for x in indices):
            _device.wait("index by a mask")
        if any(not isinstance(x, Pretended) and x.dim() for x in indices):
            _device.wait("index from the host")
    elif func is aten.copy_.default and isinstance(args[0], Pretended) != isinstance(
        args[1], Pretended
    ):
        waits = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
        if waits:
            _device.wait("copy_ between devices")
        else:
            _device.copies["copy_", _line()] += 1
    elif func is aten._to_copy.default and wanted is not None:
        if isinstance(args[0], Pretended) and wanted == "cpu":
            _device.wait("copy to the host")
        elif not isinstance(args[0], Pretended) and wanted in ("cuda", "meta"):
            if kwargs.get("non_blocking") and _is_pinned(args[0]):
                _device.copies["copy from the host", _line()] += 1
            else:
                _device.wait("copy from the host")


def _making(original: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.tensor`` or ``torch.as_tensor`` with the device."""

    def made(data: Any, *args: Any, **how: Any) -> Any:
        device = how.get("device")
        on_device = device is not None and torch.device(device).type in ("cuda", "meta")
        if isinstance(data, Pretended) and (device is None or on_device):
            return data.to(how["dtype"]) if how.get("dtype") else data
        if on_device:
            _device.wait("tensor from the host")
            return Pretended(original(data, *args, **{**how, "device": "cpu"}))
        return original(data, *args, **how)

    return made


def _pin(x: Tensor, *_: Any) -> Tensor:
    """A copy in memory that counts as pinned."""
    copy = x.clone()
    copy.__dict__["pinned"] = True
    return copy


def _is_pinned(x: Tensor, *_: Any) -> bool:
    return "pinned" in x.__dict__


@contextmanager
def pretend() -> Iterator[Device]:
    """A block in which the device exists; nothing of it is left afterwards."""
    fork_rng = torch.random.fork_rng
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    from tests.pretend_graph import PretendedRecorder

    stand_ins: dict[str, Any] = {
        "trueode.solvers.backends.gpu.recording.recorder_of": PretendedRecorder,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda.synchronize": lambda device=None: None,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.mem_get_info": lambda device=None: (2**34, 2**34),
        "torch.cuda.memory_reserved": lambda device=None: 0,
        "torch.cuda.memory_allocated": lambda device=None: 0,
        "torch.cuda.get_device_name": lambda device=None: "pretended",
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.accelerator.current_stream": lambda device=None: SimpleNamespace(
            is_capturing=lambda: False
        ),
        "torch.cuda.get_rng_state": lambda device=None: torch.get_rng_state(),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch.random.fork_rng": lambda devices=(), **how: fork_rng(devices=[], **how),
        "torch.Tensor.pin_memory": _pin,
        "torch.Tensor.is_pinned": _is_pinned,
        "torch.tensor": _making(torch.tensor),
        "torch.as_tensor": _making(torch.as_tensor),
    }
    _device.reset()
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield _device
