"""Convolutions along short signals as matrix products, in fields of any library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trueode.solvers.checked import is_symbolic

LARGEST = 256  # numbers of a sample before and after a convolution
SHORT = 4  # positions of a signal: PyTorch convolves longer ones as fast


class ShortConvolutions(TorchFunctionMode):
    """Within the block, ``torch.conv1d`` multiplies by a matrix where that takes less time.

    The results are the same up to rounding. A matrix is the convolution of the unit matrix; it is
    computed again only if the parameters change. Convolutions with other weights than parameters,
    with gradients of parameters, or on other devices are left to PyTorch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], _Matrix] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        plain = func is torch.conv1d and not kwargs and not types and not is_symbolic()
        product = self._product(*args) if plain else None
        return func(*args, **(kwargs or {})) if product is None else product

    def _product(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any
    ) -> Tensor | None:
        """The convolution as a matrix product; None if it is left to PyTorch."""
        if not (x.dim() == 3 and 0 < x.shape[2] <= SHORT and 0 < x[0].numel() <= LARGEST):
            return None
        if x.device.type != "cpu" or x.dtype != weight.dtype:
            return None
        if not all(param is None or _is_constant(param) for param in (weight, bias)):
            return None
        key = id(weight), id(bias), x.shape[1:], *map(str, settings)
        known = self._known.get(key)
        if known is None or not known.holds(weight, bias):
            known = self._known[key] = _Matrix(x, weight, bias, settings)
        return known(x) if known.shape.numel() <= LARGEST else None


def _is_constant(param: Tensor) -> bool:
    """Whether a tensor is a parameter, or the copy of one, that needs no gradient here."""
    own = isinstance(param, nn.Parameter) or (param.is_leaf and param.requires_grad)
    return own and not (param.requires_grad and torch.is_grad_enabled())


class _Matrix:
    """A convolution as a matrix and a vector, for inputs of one shape."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> None:
        n = x[0].numel()
        unit = torch.eye(n, dtype=x.dtype, device=x.device).view(n, *x.shape[1:])
        with torch.no_grad():
            found = torch.conv1d(unit, weight, None, *settings)
            self.shape = found.shape[1:]
            self._matrix = found.flatten(1)
            self._shift = None if bias is None else bias.repeat_interleave(self.shape[1])
        self._params = weight, bias  # kept, so that no others take their ids
        self._copies = [None if p is None else p.detach().clone() for p in self._params]

    def holds(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the parameters have not changed."""
        pairs = zip((weight, bias), self._copies, strict=True)
        return all(p is None or c is None or torch.equal(p, c) for p, c in pairs)

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of an input."""
        flat = x.flatten(1)
        if self._shift is None:
            found = flat @ self._matrix
        else:
            found = torch.addmm(self._shift, flat, self._matrix)
        return found.view(len(x), *self.shape)
