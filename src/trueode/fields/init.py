"""Initial weights."""

from __future__ import annotations

import torch
from torch import nn

from trueode.catalog import INITIALISATIONS
from trueode.errors import UsageError, nearest


@torch.no_grad()
def init_weights(
    module: nn.Module,
    init_type: str = "kaiming",
    gain: float = 0.02,
    generator: torch.Generator | None = None,
) -> None:
    """Draw the weights of all linear and convolutional layers in ``module``; biases become zero.

    Args:
        module: layers to initialise, in place.
        init_type: ``"kaiming"``: normal with variance 2 / fan-in (He, Zhang, Ren & Sun, ICCV 2015,
            eq. 10); ``"normal"``: standard deviation ``gain``; ``"xavier"``: normal with variance
            gain² · 2 / (fan-in + fan-out) (Glorot & Bengio, AISTATS 2010, eq. 12);
            ``"orthogonal"``: rows or columns orthogonal with length ``gain`` (Saxe, McClelland &
            Ganguli, ICLR 2014).
        gain: see above; not used by ``"kaiming"``.
        generator: source of the random numbers; the weights do not depend on device or layout.

    Raises:
        UsageError: ``init_type`` is unknown.
    """
    if init_type not in INITIALISATIONS:
        known = ", ".join(INITIALISATIONS)
        raise UsageError(
            f"init_type = {init_type!r} is unknown; choose from {known}."
            f"{nearest(init_type, INITIALISATIONS)}"
        )
    for layer in module.modules():
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue
        weight = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device="cpu")
        if init_type == "kaiming":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        elif init_type == "normal":
            nn.init.normal_(weight, std=gain, generator=generator)
        elif init_type == "xavier":
            nn.init.xavier_normal_(weight, gain=gain, generator=generator)
        else:
            nn.init.orthogonal_(weight, gain=gain, generator=generator)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()
