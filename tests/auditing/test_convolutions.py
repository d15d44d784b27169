"""Short convolutions as matrix products: the same results, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing import convolutions
from trueode.auditing.convolutions import ShortConvolutions


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The block, and the inputs that were multiplied in it."""
    multiplied: list[Tensor] = []
    call = convolutions._Matrix.__call__

    def noted(matrix: Any, x: Tensor) -> Tensor:
        multiplied.append(x)
        return call(matrix, x)

    monkeypatch.setattr(convolutions._Matrix, "__call__", noted)
    with ShortConvolutions():
        yield multiplied


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": "same", "bias": False},
        {"kernel_size": 2, "padding": 1, "stride": 2},
        {"kernel_size": 2, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_convolutions(
    length: int, settings: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 6, **settings, dtype=dtype)
    x = torch.randn(5, 4, length, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        with counted(monkeypatch) as multiplied:
            torch.testing.assert_close(layer(x), expected)
            torch.testing.assert_close(layer(x[:2]), expected[:2])
    assert len(multiplied) == (0 if settings.get("padding_mode") and length > 2 else 2)


def test_gradients_of_inputs_are_those_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv1d(2, 3, 3, padding=1, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    with counted(monkeypatch) as multiplied:
        (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert multiplied
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("change", ["in place", "as data", "another"])
def test_parameters_may_change(change: str) -> None:
    layer = nn.Conv1d(2, 3, 1)
    x = torch.randn(4, 2, 3)
    with torch.no_grad(), ShortConvolutions():
        layer(x)
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "as data":
            layer.bias.data.add_(1)
        else:
            layer.weight = nn.Parameter(torch.randn(3, 2, 1))
        found = layer(x)
    torch.testing.assert_close(found, layer(x))


def left_to_pytorch() -> dict[str, Any]:
    layer = nn.Conv1d(2, 3, 1)
    return {
        "a gradient of a parameter": lambda: layer(torch.randn(4, 2, 3)).sum().backward(),
        "a computed weight": lambda: torch.conv1d(torch.randn(4, 2, 3), 2 * layer.weight.detach()),
        "a long signal": lambda: layer(torch.randn(4, 2, 50)),
        "no batch": lambda: layer(torch.randn(2, 3)),
        "no samples of a signal": lambda: nn.functional.conv1d(
            torch.randn(4, 2, 3), layer.weight.detach()
        ),
        "a transform": lambda: torch.func.vmap(layer)(torch.randn(5, 4, 2, 3)),
    }


@pytest.mark.parametrize("case", left_to_pytorch())
def test_what_is_left_to_pytorch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as multiplied:
        left_to_pytorch()[case]()
    assert not multiplied
