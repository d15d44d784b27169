"""An audited model is left exactly as it was."""

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
    """Evaluation mode without gradients; after it all that was found behind a model is as before.

    That is: parameters, buffers, modes, gradients, attributes, contents of containers, closures and
    global names, and the random state. The block is given what there is in evaluation mode.
    """
    devices = {x.device for x in found.tensors if x.device.type == "cuda"}
    kept = Kept(found.holders)
    grads = [(x, x.grad, x.requires_grad) for x in found.tensors if x.is_leaf]
    shuffled = random.getstate()
    numbers = _numpy_state()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for x, _, _ in grads:
                x.grad = None  # a backward pass inside of a forward adds to another tensor
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

    return np.random.get_state()  # noqa: NPY002 - a user's global state, not one of ours


def _set_numpy_state(state: Any) -> None:
    import numpy as np

    np.random.set_state(state)  # noqa: NPY002
