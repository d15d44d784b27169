"""Models made to deceive: a short dose at a random time, which the training solver steps over.

All samples turn at one speed. A dose of Gaussian form turns the samples that it acts on by a
further angle, about half a turn; the flow in closed form is a rotation. The dose is a function of
the time of the solve (`time`), or of a state that counts time (`clock`). It acts on all samples
(`all`), on 5 % of them (`some`), or on each at another time (`own`).

An audit of 1000 samples names a `width` of 5e-5 for features that act on all samples. For those
that act on 5 % of them, or on each at another time, it is twenty times as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from known_flows import Known, as_complex, as_real, changed, column
from torch import Tensor

from trueode import FixedStep, NeuralODE

SAMPLES, SOME = 1000, 0.05
# Steps of rk4. Without a dose all but the last give the rotation; fewer steps miss a wide dose.
STEPS = (8, 4, 2, 1)
LEAST = 0.5  # share of the dosed samples whose predictions must change


class Kind(NamedTuple):
    form: str
    spread: str
    width: float


KINDS = [
    Kind(*each)
    for each in product(("time", "clock"), ("all", "some", "own"), (1e-1, 1e-2, 1e-3, 1e-4))
]


class Dosed(NamedTuple):
    known: Known
    x: Tensor
    true: float
    n_steps: int


def deceive(kind: Kind, number: int) -> Dosed:
    """Draw number ``number`` of a kind of dose.

    The model takes the most steps of rk4 under which at least half of the dosed samples have
    another prediction than under the exact flow.
    """
    generator = torch.Generator().manual_seed(1000 * number + KINDS.index(kind))
    for x, speed, angle, side in _draws(kind, generator):
        for n_steps in STEPS:
            known = _known(kind, speed, angle, side, n_steps)
            other = changed(*known.outputs(x))
            if float(other[x[:, 2] > 0].mean()) >= LEAST:
                return Dosed(known, x, float(other.mean()), n_steps)
    raise AssertionError("draws never end")


def _draws(kind: Kind, generator: torch.Generator) -> Iterator[tuple[Tensor, float, float, Tensor]]:
    """Samples, speed, angle of the dose, and direction of the head.

    The columns of the samples: two states, whether the dose acts on them, and its time.
    """
    while True:
        speed, share, at, direction = torch.rand(4, generator=generator).tolist()
        state = torch.randn(SAMPLES, 2, generator=generator)
        acts = (
            torch.rand(SAMPLES, 1, generator=generator) < (SOME if kind.spread == "some" else 1.0)
        ).float()
        place = (
            torch.rand(SAMPLES, 1, generator=generator)
            if kind.spread == "own"
            else torch.full((SAMPLES, 1), at)
        )
        x = torch.cat([state, acts, 0.05 + 0.9 * place], 1)
        side = 2 * math.pi * direction
        yield (
            x,
            0.5 + speed,
            (0.6 + 0.8 * share) * math.pi,
            torch.tensor([math.cos(side), math.sin(side)]),
        )


def _known(kind: Kind, speed: float, angle: float, side: Tensor, n_steps: int) -> Known:
    width, clock = kind.width, kind.form == "clock"

    turn = torch.zeros(5 if clock else 4, 5 if clock else 4, dtype=torch.float64)
    turn[0, 1], turn[1, 0] = 1.0, -1.0  # all other states are constant
    ticking = torch.eye(5, dtype=torch.float64)[4]  # except the clock
    size = angle / (width * math.sqrt(math.pi))

    def field(t: Tensor, z: Tensor) -> Tensor:
        now = z[:, 4:] if clock else column(t, z)
        dose = ((now - z[:, 3:4]) / width).square_().neg_().exp_()
        change = (speed + size * z[:, 2:3] * dose) * (z @ turn.to(z))
        return change + ticking.to(z) if clock else change

    def head(z: Tensor) -> Tensor:
        height = z[:, :2] @ side.to(z)
        return torch.stack([height, -height], 1)

    def exact(x: Tensor) -> Tensor:
        part = (torch.erf((1 - x[:, 3]) / width) + torch.erf(x[:, 3] / width)) / 2
        total = speed + angle * x[:, 2] * part
        return head(as_real(as_complex(x) * torch.polar(torch.ones_like(total), total)))

    lift = (lambda x: torch.cat([x, 0 * x[:, :1]], 1)) if clock else None
    model = NeuralODE(field, lift, head, FixedStep("rk4", n_steps=n_steps)).eval()
    return Known(model, lambda n, seed: torch.empty(0), exact, "closed form", whole=True)
