"""The fields: results as modules and as matrix layers, flops, and invalid requests."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from trueode.catalog import ACTIVATIONS
from trueode.errors import UsageError
from trueode.fields import ConvField, DenseField, build_field
from trueode.layers import LayerStack

PLAIN = {
    "relu": torch.relu,
    "lrelu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "identity": lambda x: x,
}


def seeded(field: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in field.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return field


def apply_stack(stack: LayerStack, t: Tensor | float, z: Tensor) -> Tensor:
    """Apply a stack as documented: each layer multiplies rows of `in` numbers by its matrices."""
    moved = z.movedim(1, -1) if stack.channels_last else z
    batch = z.shape[0]
    x = moved.reshape(batch, -1)
    for weight, bias, activation, time_weight in stack.layers:
        rows = x.reshape(batch, -1, weight.shape[1])
        if weight.dim() == 3:
            rows = (
                F.conv1d(rows.movedim(1, 2), weight, padding=weight.shape[2] // 2).movedim(2, 1)
                + bias
            )
        else:
            rows = F.linear(rows, weight, bias)
        if time_weight is not None:
            time = torch.as_tensor(t, dtype=z.dtype)
            rows = rows + (time.reshape(batch, 1, 1) if time.dim() else time) * time_weight
        x = PLAIN[activation](rows).reshape(batch, -1)
    assert stack.layers[-1].activation == "identity"
    return x.reshape(moved.shape).movedim(-1, 1) if stack.channels_last else x.reshape(moved.shape)


def both_with_gradients(field, call, t, z):
    z = z.clone().requires_grad_()
    value = call(t, z)
    weight = torch.linspace(-1, 1, value.numel(), dtype=z.dtype).view(value.shape)
    return value, torch.autograd.grad((value * weight).sum(), [z, *field.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", ["none", "number", "tensor", "per sample"])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (1, 3), (2, 4), (3, 7)])
@pytest.mark.parametrize("network", ["simple_odenet", "linear_odenet"])
def test_matrix_layers_equal_the_field_with_its_gradients(network, shape, act, time, dtype):
    field = seeded(build_field(network, shape, 5, act, time != "none")).to(dtype)
    z = torch.randn(4, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = {
        "none": 0.0,
        "number": 0.7,
        "tensor": torch.tensor(0.7, dtype=torch.float64),
        "per sample": torch.linspace(0, 1, 4, dtype=dtype).view(4, 1, 1),
    }[time]
    stack = field.layer_stack(z.shape)
    assert stack is not None
    value, gradients = both_with_gradients(field, field, t, z)
    own, own_gradients = both_with_gradients(field, lambda t, z: apply_stack(stack, t, z), t, z)
    tol = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(own, value, rtol=tol, atol=tol)
    for a, b in zip(own_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def by_hand(field, t, z):
    """The paper's network, written out."""
    act = PLAIN[field.act]
    if isinstance(field, DenseField):
        x = z.flatten(1)
        extra = torch.as_tensor(t, dtype=z.dtype).reshape(-1, 1)
        x = torch.cat([x, extra.expand(len(z), 1)], 1) if field.time_dependent else x
        x = act(x @ field.linear1.weight.T + field.linear1.bias)
        x = act(x @ field.linear2.weight.T + field.linear2.bias)
        return (x @ field.linear3.weight.T + field.linear3.bias).view(z.shape)
    conv = F.conv1d if z.dim() == 3 else F.conv2d
    if field.time_dependent:
        z = torch.cat([z, torch.as_tensor(t, dtype=z.dtype) * torch.ones_like(z[:, :1])], 1)
    x = act(conv(z, field.conv1.weight, field.conv1.bias))
    x = act(conv(x, field.conv2.weight, field.conv2.bias, padding=1))
    return conv(x, field.conv3.weight, field.conv3.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dependent", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ("simple_odenet", (2, 9)),
        ("odenet", (1, 6, 5)),
        ("odenet", (3, 5, 4)),
        ("linear_odenet", (2, 3)),
        ("linear_odenet", (2, 3, 2)),
    ],
)
def test_field_is_the_papers_network(network, shape, act, time_dependent, dtype):
    field = seeded(build_field(network, shape, 4, act, time_dependent)).to(dtype)
    z = torch.randn(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    times = [
        0.25,
        torch.tensor(0.25),
        torch.linspace(0, 1, 3, dtype=dtype).view(-1, *[1] * len(shape)),
    ]
    tol = 2e-5 if dtype == torch.float32 else 1e-12
    before = z.clone()
    for t in times:
        value, gradients = both_with_gradients(field, field, t, z)
        expected, expected_gradients = both_with_gradients(
            field, lambda t, z: by_hand(field, t, z), t, z
        )
        assert value.shape == z.shape
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected, rtol=tol, atol=tol)
        for a, b in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=tol, atol=tol)
    assert torch.equal(z, before)  # the caller's state is not overwritten


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 6, 5)])
def test_image_field_keeps_channels_last(shape):
    field = ConvField(shape[0], 8, 2)
    z = torch.randn(2, *shape).contiguous(memory_format=torch.channels_last)
    assert field(0.0, z).is_contiguous(memory_format=torch.channels_last)
    assert field.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(field(0.0, z), field(0.0, z.contiguous()))


@pytest.mark.parametrize("network", ["odenet", "linear_odenet"])
def test_second_derivatives(network):
    field = seeded(build_field(network, (1, 3, 3), 2, "tanh")).double()
    z = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: field(0.0, z), (z,))


def test_state_dict_reads_naturally_and_copies():
    field = build_field("odenet", (3, 4, 4), 6)
    assert list(field.state_dict()) == [
        f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")
    ]
    other = copy.deepcopy(build_field("odenet", (3, 4, 4), 6))
    other.load_state_dict(field.state_dict())
    z = torch.randn(2, 3, 4, 4)
    assert torch.equal(other(0.0, z), field(0.0, z))


class Doubled(ConvField):
    def forward(self, t, z):
        return 2 * super().forward(t, z)


def global_hook(field):
    return nn.modules.module.register_module_forward_hook(lambda *args: None)


def replaced(field):
    field.conv2 = nn.Conv1d(8, 8, 3, padding=2, dilation=2)


def without_bias(field):
    field.conv2.bias = None


def overwritten(field):
    field.forward = lambda t, z: z


def parametrised(field):
    parametrizations.spectral_norm(field.conv2)


@pytest.mark.parametrize(
    "change",
    [
        lambda field: field.register_forward_hook(lambda *args: None),
        lambda field: field.register_forward_pre_hook(lambda *args: None),
        lambda field: field.conv2.register_forward_hook(lambda *args: None),
        lambda field: field.conv1.register_full_backward_hook(lambda *args: None),
        lambda field: field.conv3.register_full_backward_pre_hook(lambda *args: None),
        global_hook,
        replaced,
        without_bias,
        overwritten,
        parametrised,
    ],
)
def test_no_matrix_layers_for_a_field_that_was_changed(change):
    field = ConvField(1, 8, 1)
    shape = (2, 1, 2)
    assert field.layer_stack(shape) is not None
    handle = change(field)
    assert field.layer_stack(shape) is None
    if handle is not None:
        handle.remove()
        assert field.layer_stack(shape) is not None


def test_no_matrix_layers_where_they_would_be_wrong():
    assert Doubled(1, 4, 1).layer_stack((2, 1, 2)) is None
    assert ConvField(1, 4, 1).layer_stack((2, 1, 0)) is None
    assert ConvField(2, 4, 1).layer_stack((2, 1, 2)) is None
    assert ConvField(2, 4, 2).layer_stack((2, 2, 2)) is None
    assert ConvField(2, 4, 2).layer_stack((2, 1, 2, 2)) is None
    assert ConvField(2, 4, 2).layer_stack((2, 2, 0, 2)) is None
    assert DenseField(4, 4).layer_stack((2, 1, 3)) is None


def test_matrix_layers_follow_the_weights():
    field = ConvField(1, 4, 1)
    before = field.layer_stack((2, 1, 2)).layers[1].weight.clone()
    with torch.no_grad():
        field.conv2.weight.mul_(2)
    assert torch.equal(field.layer_stack((2, 1, 2)).layers[1].weight, 2 * before)


def test_hooks_see_values_that_stay_as_they_were():
    field = ConvField(1, 4, 2)
    seen = []
    field.conv1.register_forward_hook(
        lambda module, args, output: seen.append((output, output.clone()))
    )
    field(0.0, torch.randn(2, 1, 4, 4))
    assert torch.equal(*seen[0])


def test_a_layer_that_returns_its_input_does_not_spoil_the_state():
    field = ConvField(2, 2, 2)
    field.conv1 = nn.Identity()
    z = torch.randn(2, 2, 4, 4)
    before = z.clone()
    field(0.0, z)
    assert torch.equal(z, before)


def test_flops_count_two_for_each_weight_and_position():
    assert build_field("linear_odenet", (1, 2), 32).flops((1, 2)) == 2 * (2 * 32 + 32 * 32 + 32 * 2)
    assert build_field("simple_odenet", (1, 5), 32).flops((1, 5)) == 2 * 5 * (32 + 3 * 32 * 32 + 32)
    assert build_field("odenet", (3, 8, 6), 16).flops((3, 8, 6)) == 2 * 48 * (
        3 * 16 + 9 * 256 + 16 * 3
    )
    assert build_field("odenet", (3, 8, 6), 16, "relu", True).flops((3, 8, 6)) == 2 * 48 * (
        4 * 16 + 9 * 256 + 16 * 3
    )


@pytest.mark.parametrize(
    ("network", "shape", "hidden", "act", "words"),
    [
        ("odenet", (1, 2), 4, "relu", ["odenet", "(1, 2)", "simple_odenet"]),
        ("simple_odenet", (3, 8, 8), 4, "relu", ["simple_odenet", "(3, 8, 8)", "Use odenet"]),
        ("odenett", (3, 8, 8), 4, "relu", ["odenett", "Did you mean 'odenet'?"]),
        ("odenet", (3, 8, 8), 4, "rellu", ["rellu", "Did you mean 'relu'?"]),
        ("odenet", (3, 8, 8), 0, "relu", ["at least 1", "0"]),
        ("linear_odenet", (0,), 4, "relu", ["(0,)"]),
        ("odenet", (8,), 4, "relu", ["(8,)", "linear_odenet"]),
    ],
)
def test_impossible_fields_are_refused_with_reason(network, shape, hidden, act, words):
    with pytest.raises(UsageError) as caught:
        build_field(network, shape, hidden, act)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(UsageError, match="dim = 1"):
        ConvField(1, 1, 3)
