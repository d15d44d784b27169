"""A custom field, from a sequence of modules."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from trueode.catalog import ACTIVATIONS
from trueode.fields.plain import append_time
from trueode.layers import Layer, LayerStack
from trueode.solvers.recognition.hooks import is_unwatched


class SequentialField(nn.Module):
    """``f(t, z)`` = the modules, one after the other, on each flattened sample.

    If they are `torch.nn.Linear` layers of any number and widths, with pointwise activations
    between them, solvers compute them faster than by calling them, with the same results.

    Args:
        *modules: map ``(batch, features)`` to the same shape, where features is the number of
            entries of one sample; with ``time_dependent``, the first module takes one more.
        time_dependent: whether the time is appended to the sample.
    """

    def __init__(self, *modules: nn.Module, time_dependent: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)
        self.time_dependent = time_dependent

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or one for each sample, ``(batch, 1, …)``; ignored by an
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
        """The field's layers as matrices for states ``(batch, …)``; None if calling the field does
        more, or has other layers.
        """
        # called before every solve: direct look-ups are faster than ``Module.__getattr__``
        net = self._modules["net"]
        if type(self).forward is not SequentialField.forward or type(net) is not nn.Sequential:
            return None
        modules = net._modules.values()
        if not is_unwatched(self, net, *modules):
            return None
        layers: list[Layer] = []
        width = prod(state_shape[1:])
        activated = True  # whether the last layer so far has its activation
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
    """The name of the activation that a module computes, or None."""
    name = _NAMES.get(type(module))
    settings = ACTIVATIONS[name].settings if name in ACTIVATIONS else {}
    return name if all(getattr(module, key) == value for key, value in settings.items()) else None
