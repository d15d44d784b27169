"""Time the training and the audit of a torchdiffeq model; print both in seconds, as JSON.

The model is trained for 200 iterations on Sphere2 (Euler, h = 1/64, batch 128), then audited on
1000 samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import torch
from steps import conv_field, through_odeint
from torch import Tensor, nn
from torch.nn import functional as F

from trueode import audit
from trueode.data.spheres import concentric_spheres

ITERATIONS = 200


class Classifier(nn.Module):
    """A classifier as users of torchdiffeq write it."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = conv_field(1, 1, 32), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = through_odeint(self.field, "euler", 64)(x)
        return self.head(states.flatten(1))


def main() -> None:
    torch.manual_seed(0)
    points, labels = map(torch.from_numpy, concentric_spheres(4000, 2, np.random.default_rng(0)))
    x, model = points.float(), Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train() -> None:
        for chosen in torch.randint(0, 3000, (ITERATIONS, 128)):
            loss = F.cross_entropy(model(x[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    trained = seconds(train)
    audited = min(seconds(lambda: audit(model, (x[-1000:], labels[-1000:]))) for _ in range(2))
    print(json.dumps([trained, audited]))


if __name__ == "__main__":
    main()
