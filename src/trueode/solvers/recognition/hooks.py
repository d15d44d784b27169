"""Whether anything observes or replaces the calls of modules."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """The hooks on calls of a module, as dictionaries that change with it."""
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def are_global() -> bool:
    """Whether there are hooks on the calls of all modules."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def is_unwatched(*modules: Any) -> bool:
    """Whether there is no hook, on one of the modules or globally, and no ``forward`` set on an
    instance.
    """
    if are_global():
        return False
    return not any(any(hooks_of(m)) or "forward" in m.__dict__ for m in modules)
