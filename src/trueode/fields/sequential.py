"""A field of your own, from modules one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from trueode.catalog import ACTIVATIONS
from trueode.fields.plain import append_time, is_unwatched
from trueode.layers import Layer, LayerStack


class SequentialField(nn.Module):
    """``f(t, z)`` = the modules, one after the other, on each flattened sample.

    Where they are `nn.Linear` layers with pointwise activations between them, of any widths and number, solvers know a faster
    way than calling them one by one, with the same results.

    Args:
        *modules: from ``(batch, features)`` to the same shape, where features are the numbers in one sample; with
            ``time_dependent``, from one feature more.
        time_dependent: whether the time is appended to the sample.
    """

    def __init__(self, *modules: nn.Module, time_dependent: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)
        self.time_dependent = time_dependent

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or ``(batch, 1, …)`` with one for each sample; ignored by an autonomous field.
            z: states ``(batch, …)``.

        Returns:
            dz/dt, of the shape of ``z``.
        """
        x = z.flatten(1)
        if self.time_dependent:
            x = append_time(t.flatten(1) if isinstance(t, Tensor) and t.dim() > 1 else t, x)
        return self.net(x).view(z.shape)  # type: ignore[no-any-return]

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The field's layers as matrices for states ``(batch, …)``; None when calling it does more than that."""
        modules = list(self.net)
        if type(self).forward is not SequentialField.forward or type(self.net) is not nn.Sequential:
            return None
        if not is_unwatched(self, self.net, *modules):
            return None
        layers: list[Layer] = []
        for module in modules:
            if type(module) is nn.Linear:
                bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
                layers.append(Layer(module.weight, bias, "identity"))
            elif (name := _activation(module)) is None or not layers or layers[-1].activation != "identity":
                return None
            else:
                layers[-1] = layers[-1]._replace(activation=name)
        if not layers or layers[-1].activation != "identity":
            return None
        if self.time_dependent:
            first = layers[0]
            layers[0] = first._replace(weight=first.weight[:, :-1], time_weight=first.weight[:, -1])
        widths = [prod(state_shape[1:]), *(layer.weight.shape[0] for layer in layers)]
        fits = all(layer.weight.shape[1] == width for layer, width in zip(layers, widths, strict=False))
        return LayerStack(tuple(layers)) if fits and widths[-1] == widths[0] else None


_NAMES: dict[type[nn.Module], str] = {getattr(nn, known.module): name for name, known in ACTIVATIONS.items()}


def _activation(module: nn.Module) -> str | None:
    """The name of an activation, if a module is nothing but that."""
    if type(module) is nn.Identity:
        return "identity"
    name = _NAMES.get(type(module))
    if name is None or any(getattr(module, key) != value for key, value in ACTIVATIONS[name].settings.items()):
        return None
    return name
