"""An audited model is left exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trueode.evaluation import evaluating


@contextmanager
def preserve_state(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; after it parameters, buffers, modes, gradients and random state are as before."""
    modules = modules_of(model)
    devices = {p.device for module in modules for p in module.parameters() if p.device.type == "cuda"}
    kept = [(x, x.detach().clone()) for module in modules for x in (*module.parameters(), *module.buffers())]
    # forwards also put new tensors in the place of buffers
    named = [(module._buffers, dict(module._buffers)) for whole in modules for module in whole.modules()]
    grads = [(p, p.grad, p.requires_grad) for module in modules for p in module.parameters()]
    shuffled = random.getstate()
    numbers = _numpy_state()
    for p, _, _ in grads:
        p.grad = None  # a backward pass inside of a forward adds to another tensor
    with torch.random.fork_rng(devices=list(devices)):
        try:
            with torch.no_grad(), ExitStack() as stack:
                for module in modules:
                    stack.enter_context(evaluating(module))
                yield
        finally:
            for held, buffers in named:
                held.clear()
                held.update(buffers)
            with torch.no_grad():
                for x, before in kept:
                    if not same(x, before):
                        x.copy_(before)
            for p, grad, wanted in grads:
                p.grad = grad
                p.requires_grad_(wanted)
            random.setstate(shuffled)
            _set_numpy_state(numbers)


def modules_of(model: Any) -> list[nn.Module]:
    """The modules that a callable is, or that are seen behind it: of a method, of a partial, in the closure of a function."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, partial):
        return [module for part in (model.func, *model.args) for module in modules_of(part)]
    inside = [getattr(model, "__self__", None), *(_content(cell) for cell in getattr(model, "__closure__", None) or ())]
    return [part for part in inside if isinstance(part, nn.Module)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    if x.layout != torch.strided:
        x, y = x.to_dense(), y.to_dense()
    return bool(torch.equal(x, y)) or bool(
        torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())
    )


def _numpy_state() -> Any:
    import numpy as np

    return np.random.get_state()  # noqa: NPY002 - a user's global state, not one of ours


def _set_numpy_state(state: Any) -> None:
    import numpy as np

    np.random.set_state(state)  # noqa: NPY002
