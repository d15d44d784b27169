"""The tutorial of torchcfm: conditional flow matching from eight Gaussians to two moons."""

from __future__ import annotations

from typing import Any

import torch
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models.models import MLP
from torchcfm.utils import sample_8gaussians, sample_moons, torch_wrapper
from torchdyn.core import NeuralODE

WHAT = "samples of two moons, as in its tutorial (torchdyn's dopri5, tolerance 1e-4)"
PACKAGES = ("torchcfm", "torchdyn")
TIMES = torch.linspace(0, 1, 100)


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The sampler, noise, and the arguments of its audit."""
    model = MLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.1)
    for _ in range(2000):
        optimizer.zero_grad()
        t, xt, ut = matcher.sample_location_and_conditional_flow(
            sample_8gaussians(256), sample_moons(256)
        )
        vt = model(torch.cat([xt, t[:, None]], dim=-1))
        ((vt - ut) ** 2).mean().backward()
        optimizer.step()
    node = NeuralODE(
        torch_wrapper(model), solver="dopri5", sensitivity="adjoint", atol=1e-4, rtol=1e-4
    )
    how = {
        "task": "sampler",
        "methods": ("euler", "midpoint", "rk4", "dopri5"),
        "call": lambda node, batch: node.trajectory(batch, t_span=TIMES)[-1],
    }
    return node, sample_8gaussians(1000), how
