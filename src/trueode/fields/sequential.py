"""A field of your own, from modules one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from trueode.catalog import ACTIVATIONS
from trueode.fields.plain import append_time, is_unwatched
from trueode.layers import Layer, LayerStack


class SequentialField(nn.Module):
    """``f(t, z)`` = the modules, one after the other, on each flattened sample.

    Where they are `torch.nn.Linear` layers with pointwise activations between them, of any widths
    and number, solvers know a faster way than calling them one by one, with the same results.

    Args:
        *modules: from ``(batch, features)`` to the same shape, where features are the numbers in
            one sample; with ``time_dependent``, from one feature more.
        time_dependent: whether the time is appended to the sample.
    """

    def __init__(self, *modules: nn.Module, time_dependent: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)
        self.time_dependent = time_dependent

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or ``(batch, 1, …)`` with one for each sample; ignored by an
                autonomous field.
            z: states ``(batch, …)``.

        Returns:
            dz/dt, of the shape of ``z``.
        """
        x = z.flatten(1)
        if self.time_dependent:
            x = append_time(t.flatten(1) if isinstance(t, Tensor) and t.dim() > 1 else t, x)
        return self.net(x).view(z.shape)  # type: ignore[no-any-return]

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The field's layers as matrices for states ``(batch, …)``; None when calling it does more
        than that.
        """
        # this is asked before every solve, so attributes of modules are looked up where they lie
        net = self._modules["net"]
        if type(self).forward is not SequentialField.forward or type(net) is not nn.Sequential:
            return None
        modules = net._modules.values()
        if not is_unwatched(self, net, *modules):
            return None
        layers: list[Layer] = []
        width = prod(state_shape[1:])
        activated = True  # of the layers so far, whether the last one has its activation
        for module in modules:
            if type(module) is nn.Linear:
                weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
                if weight is None or weight.shape[1] != width + (
                    self.time_dependent and not layers
                ):
                    return None
                width, activated = weight.shape[0], False
                layers.append(
                    Layer(weight, weight.new_zeros(width) if bias is None else bias, "identity")
                )
            elif (name := _activation(module)) is None or activated:
                return None
            elif name != "identity":
                layers[-1], activated = layers[-1]._replace(activation=name), True
        if not layers or activated or width != prod(state_shape[1:]):
            return None
        if self.time_dependent:
            first = layers[0].weight
            layers[0] = layers[0]._replace(weight=first[:, :-1], time_weight=first[:, -1])
        return LayerStack(tuple(layers))


_NAMES: dict[type[nn.Module], str] = {
    getattr(nn, known.module): name for name, known in ACTIVATIONS.items()
}
_NAMES[nn.Identity] = "identity"


def _activation(module: Any) -> str | None:
    """The name of an activation, if a module is nothing but that."""
    name = _NAMES.get(type(module))
    settings = ACTIVATIONS[name].settings if name in ACTIVATIONS else {}
    return name if all(getattr(module, key) == value for key, value in settings.items()) else None
