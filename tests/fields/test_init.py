"""Initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trueode.errors import UsageError
from trueode.fields import init_weights


class TestInit:
    """Moments of drawn weights, in layers wide enough for tight estimates."""

    def draw(self, layer, kind, gain=0.02, seed=0):
        with torch.no_grad():
            layer.bias.fill_(1.0)
        init_weights(layer, kind, gain, torch.Generator().manual_seed(seed))
        assert not layer.bias.any()
        return layer.weight.detach()

    @pytest.mark.parametrize(
        "layer", [nn.Linear(200, 300), nn.Conv1d(60, 100, 3), nn.Conv2d(40, 60, 3)]
    )
    def test_standard_deviations(self, layer):
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight[:, 0].numel()
        expected = {
            "kaiming": (2 / fan_in) ** 0.5,
            "normal": 0.3,
            "xavier": 0.3 * (2 / (fan_in + fan_out)) ** 0.5,
        }
        for kind, deviation in expected.items():
            weight = self.draw(layer, kind, 0.3)
            assert weight.std().item() == pytest.approx(deviation, rel=0.03)
            assert abs(weight.mean().item()) < 0.03 * deviation

    def test_orthogonal_rows(self):
        weight = self.draw(
            nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), "orthogonal", 0.5
        ).flatten(1)
        torch.testing.assert_close(weight @ weight.T, 0.25 * torch.eye(6), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("kind", ["normal", "xavier", "kaiming", "orthogonal"])
    def test_only_the_generator_decides(self, kind):
        state = torch.get_rng_state()
        a = self.draw(nn.Conv2d(3, 4, 3), kind)
        b = self.draw(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), kind)
        layers = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        torch.set_rng_state(state)
        before = torch.get_rng_state()
        other = self.draw(layers[0], kind, seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)

    def test_unknown_kind(self):
        with pytest.raises(UsageError, match="Did you mean 'xavier'"):
            init_weights(nn.Linear(2, 2), "xavir")

    def test_a_layer_without_bias(self):
        init_weights(nn.Linear(2, 2, bias=False), "kaiming")
