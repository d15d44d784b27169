"""Optimisers without the overhead of torch.optim: its bookkeeping, and its import of a compiler.

For a small model, that overhead costs more than the step. The optimisers call PyTorch's fused
functions, and the results equal those of ``torch.optim`` with ``fused=True`` bit for bit. Without a
fused function, ``torch.optim`` computes. All save their state in the same form.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trueode.errors import CheckpointError


def make_optimizer(
    name: str, parameters: Iterable[Tensor], lr: float, weight_decay: float
) -> Optimizer:
    """Make an optimiser.

    Args:
        name: ``"adam"``, ``"sgd"`` or ``"rmsprop"``.
        parameters: the parameters to change.
        lr: the learning rate.
        weight_decay: the parameters times this factor are added to their gradients.
    """
    params = list(parameters)
    kinds: dict[str, type[Optimizer]] = {
        "adam": TorchAdam,
        "sgd": TorchSGD,
        "rmsprop": TorchRMSprop,
    }
    # the fused functions take parameters of one device and type
    if len({(p.device, p.dtype) for p in params}) == 1 and params[0].device.type in ("cpu", "cuda"):
        kinds |= {"adam": FusedAdam, "sgd": FusedSGD}
    return kinds[name](params, lr, weight_decay)


class Optimizer(ABC):
    """Changes parameters by their gradients; parameters without a gradient do not change."""

    NAMES: tuple[str, ...] = ()  # of the tensors in a parameter's state
    counts_on: str | None = None  # device of "step"; None: the parameter's device

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        # each parameter has a state from its first gradient on
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @abstractmethod
    def update(self, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Make a step of the parameters that have a gradient."""

    def step(self) -> None:
        """Change the parameters by their gradients."""
        pairs = [(param, gradient) for param in self.params if (gradient := param.grad) is not None]
        if pairs:
            with torch.no_grad():
                self.update([param for param, _ in pairs], [gradient for _, gradient in pairs])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {number of the parameter: {name: tensor}}}``; the tensors are not copied."""
        return {
            "state": {
                number: dict(self.state.get(param, {})) for number, param in enumerate(self.params)
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of a saved state, from any device, class or ``torch.optim``.

        Raises:
            CheckpointError: the state does not fit the parameters.
        """
        states = state_dict.get("state")
        if not isinstance(states, dict):
            raise CheckpointError("The saved optimiser has no state.")
        # torch.optim leaves out parameters without a state, but its groups contain them
        groups = state_dict.get("param_groups")
        n = (
            sum(len(group["params"]) for group in groups)
            if groups
            else len(states) or len(self.params)
        )
        if n != len(self.params) or not states.keys() <= set(range(n)):
            raise CheckpointError(
                f"The saved optimiser changes {n} parameters; the model has {len(self.params)}."
            )
        loaded = {
            param: self._loaded(number, param, states[number])
            for number, param in enumerate(self.params)
            if states.get(number)
        }
        self.state.clear()
        self.state.update(loaded)

    def _loaded(self, number: int, param: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        """A copy of a saved state, with the devices and types of a new one."""
        own = self._new(param)
        needed = {name: tuple(value.shape) for name, value in own.items()}
        found = {
            name: tuple(value.shape) for name, value in saved.items() if isinstance(value, Tensor)
        }
        if found != needed:
            raise CheckpointError(
                f"The saved optimiser has {found} for parameter {number}; {needed} is needed."
            )
        return {name: value.copy_(saved[name]) for name, value in own.items()}

    def _new(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        count = param.new_zeros((), dtype=torch.float32, device=self.counts_on)
        return {
            name: count if name == "step" else torch.zeros_like(param, requires_grad=False)
            for name in self.NAMES
        }


class FusedAdam(Optimizer):
    """Adam (Kingma & Ba, 2015, Algorithm 1), with PyTorch's defaults.

    Parameters that have always stepped together share one tensor that counts their steps.
    """

    NAMES = "step", "exp_avg", "exp_avg_sq"
    BETAS = 0.9, 0.999
    EPS = 1e-8

    def update(self, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Make a step of Algorithm 1, for all parameters at once."""
        if new := {param: self._new(param) for param in params if param not in self.state}:
            count = next(iter(new.values()))["step"]
            self.state |= {param: state | {"step": count} for param, state in new.items()}
        states = [self.state[param] for param in params]
        if len(states) < len(self.state):  # the counts of the others do not change
            for state in states:
                state["step"] = state["step"].clone()
        first, second, steps = (
            [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        for step in {id(step): step for step in steps}.values():
            step += 1
        torch._fused_adam_(
            params, gradients, first, second, [], steps,
            lr=self.lr, beta1=self.BETAS[0], beta2=self.BETAS[1], eps=self.EPS,
            weight_decay=self.weight_decay, amsgrad=False, maximize=False,
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of a saved state, from any device, class or ``torch.optim``."""
        super().load_state_dict(state_dict)
        counts: dict[float, Tensor] = {}
        for state in self.state.values():
            state["step"] = counts.setdefault(float(state["step"]), state["step"])


class FusedSGD(Optimizer):
    """Steepest descent."""

    def update(self, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Make a step of all parameters at once."""
        torch._fused_sgd_(
            params, gradients, [],
            weight_decay=self.weight_decay, momentum=0.0, lr=self.lr, dampening=0.0,
            nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip


class TorchAdam(Optimizer):
    """Adam of ``torch.optim``."""

    NAMES: tuple[str, ...] = FusedAdam.NAMES
    KIND = "Adam"
    counts_on: str | None = "cpu"

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr, weight_decay)
        how: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        if "step" in self.NAMES and all(param.is_cuda for param in params):
            # counts steps on the GPU, for the graphs of whole iterations that may contain them
            how["capturable"], self.counts_on = True, None
            warnings.filterwarnings("ignore", message="This instance was constructed with captur")
        self.inner = getattr(torch.optim, self.KIND)(params, **how)
        self.state = self.inner.state

    def update(self, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Make a step."""
        with torch.device("cpu"):  # keeps the step counts on the CPU whatever the default device
            self.inner.step()


class TorchSGD(TorchAdam):
    """Steepest descent of ``torch.optim``."""

    NAMES, KIND = FusedSGD.NAMES, "SGD"


class TorchRMSprop(TorchAdam):
    """RMSprop (Hinton, 2012) of ``torch.optim``."""

    NAMES, KIND = ("step", "square_avg"), "RMSprop"
