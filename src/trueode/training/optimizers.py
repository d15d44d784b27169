"""Optimisers for CPUs without what costs more than a small model's step: torch.optim's bookkeeping, and its import of a compiler.

The arithmetic is PyTorch's own fused one, so that results are those of ``torch.optim`` with ``fused=True`` bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """What training asks of an optimiser; those of ``torch.optim`` are such."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state."""


def make_optimizer(name: str, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> Optimizer:
    """An optimiser.

    Args:
        name: ``"adam"``, ``"sgd"`` or ``"rmsprop"``.
        parameters: what it changes.
        lr: the learning rate.
        weight_decay: the factor of the parameters that is added to their gradients.
    """
    params = list(parameters)
    kind = {"adam": FusedAdam, "sgd": FusedSGD}.get(name)
    if kind is not None and all(p.device.type == "cpu" for p in params) and hasattr(torch, kind.NEEDS):
        return kind(params, lr, weight_decay)
    others: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    fused = {"fused": True} if kind is not None and params[0].device.type == "cuda" else {}
    optimizer: Optimizer = others[name](params, lr=lr, weight_decay=weight_decay, **fused)
    return optimizer


class _Fused(ABC):
    """Parameters and a state for each of them; parameters without a gradient stay as they are."""

    NEEDS: str  # of torch

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.state: dict[int, dict[str, Tensor]] = {}  # by the number of the parameter, from its first gradient on

    @abstractmethod
    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""

    @abstractmethod
    def update(self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """One step of those parameters that have a gradient."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    def step(self) -> None:
        """Change the parameters by their gradients."""
        params, gradients, states = [], [], []
        for number, param in enumerate(self.params):
            if (gradient := param.grad) is not None:
                if number not in self.state:
                    self.state[number] = self.new_state(param)
                params.append(param)
                gradients.append(gradient)
                states.append(self.state[number])
        if params:
            with torch.no_grad():
                self.update(params, gradients, states)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, by the numbers of the parameters; the tensors are those in use."""
        return {"state": {number: dict(state) for number, state in self.state.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a copy of a saved state."""
        self.state = {int(number): state for number, state in deepcopy(state_dict["state"]).items()}


class FusedAdam(_Fused):
    """Adam (Kingma & Ba, 2015, Algorithm 1), with PyTorch's defaults."""

    NEEDS = "_fused_adam_"
    BETAS = 0.9, 0.999
    EPS = 1e-8

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Steps done, one tensor for all parameters that begin together, and the two moments."""
        begin = (state["step"] for state in self.state.values() if not state["step"])
        moments = (torch.zeros_like(param, memory_format=torch.preserve_format) for _ in range(2))
        return {"step": next(begin, torch.zeros(())), **dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))}

    def update(self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """Algorithm 1, for all parameters at once."""
        first, second, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        for step in {id(step): step for step in steps}.values():
            step += 1
        torch._fused_adam_(
            params, gradients, first, second, [], steps,
            lr=self.lr, beta1=self.BETAS[0], beta2=self.BETAS[1], weight_decay=self.weight_decay, eps=self.EPS,
            amsgrad=False, maximize=False,
        )  # fmt: skip


class FusedSGD(_Fused):
    """Steepest descent."""

    NEEDS = "_fused_sgd_"

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def update(self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """One step, for all parameters at once."""
        torch._fused_sgd_(
            params, gradients, [],
            weight_decay=self.weight_decay, momentum=0.0, lr=self.lr, dampening=0.0, nesterov=False, maximize=False,
            is_first_step=False,
        )  # fmt: skip
