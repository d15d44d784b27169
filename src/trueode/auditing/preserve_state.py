"""Leaves an audited model exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from trueode.auditing.kept import Kept
from trueode.auditing.reachable import Reachable
from trueode.evaluation import evaluating


@contextmanager
def preserve_state(found: Reachable) -> Iterator[Kept]:
    """Run a block in evaluation mode without gradients, and restore the model afterwards.

    Restored are parameters, buffers, modes, gradients, attributes, contents of containers, closures
    and global names, and the random state. The block receives the state in evaluation mode.

    Args:
        found: everything that a call of the model may use or change.
    """
    devices = {x.device for x in found.tensors if x.device.type == "cuda"}
    kept = Kept(found.holders)
    grads = [(x, x.grad, x.requires_grad) for x in found.tensors if x.is_leaf]
    shuffled = random.getstate()
    numbers = _numpy_state()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for x, _, _ in grads:
                x.grad = None  # a backward pass inside a forward pass must not add to it
            with torch.no_grad(), ExitStack() as stack:
                for module in found.modules:
                    stack.enter_context(evaluating(module))
                yield kept.now()
        finally:
            kept.restore()
            for x, grad, wanted in grads:
                x.grad = grad
                x.requires_grad_(wanted)
            random.setstate(shuffled)
            _set_numpy_state(numbers)


def _numpy_state() -> Any:
    import numpy as np

    return np.random.get_state()  # noqa: NPY002 - the user's global state


def _set_numpy_state(state: Any) -> None:
    import numpy as np

    np.random.set_state(state)  # noqa: NPY002
