"""Functions that all fields share: check an activation's name, append the time to a state, and see
whether a field was modified.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trueode.catalog import ACTIVATIONS
from trueode.errors import UsageError, nearest
from trueode.solvers.recognition.hooks import is_unwatched


def check_activation(name: str) -> str:
    """Return ``name`` if it is the name of an activation.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise UsageError(
            f"act = {name!r} is unknown; choose from {', '.join(ACTIVATIONS)}."
            f"{nearest(name, ACTIVATIONS)}"
        )
    return name


def is_plain(field: nn.Module, cls: type[nn.Module], layer: type[nn.Module]) -> bool:
    """Whether ``field`` may be computed in another way, because calling it does exactly what
    ``cls`` defines, and no hook observes it.

    False if forward is overridden, if a hook is registered on the field, on a layer or globally, or
    if a layer was replaced by anything but a ``layer`` (a parametrised layer has another type).
    """
    layers = field._modules.values()
    if type(field).forward is not cls.forward or not all(type(m) is layer for m in layers):
        return False
    return is_unwatched(field, *layers)


def append_time(t: float | Tensor, z: Tensor) -> Tensor:
    """``z`` with the time as one more channel (or feature): ``(batch, channels + 1, …)``.

    Args:
        t: a number, a tensor of one number, or one that broadcasts against ``z``:
            ``(batch, 1, …, 1)``.
        z: ``(batch, channels, …)``.
    """
    time = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    return torch.cat([z, time.expand(z.shape[0], 1, *z.shape[2:])], dim=1)
