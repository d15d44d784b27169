"""Models whose fields change in time: doses, jumps, waves as long as a step, many output times.

All flows are known in closed form.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from known_flows import (
    Head,
    Known,
    Model,
    Solve,
    as_complex,
    as_real,
    column,
    diffeq,
    dyn,
    network,
    normal,
    ode,
    turned,
)
from torch import Tensor, nn

from trueode import Adaptive, FixedStep
from trueode.solvers import Solver

SPEED = 2.0  # of the rotation of all samples
DOSE = cmath.rect(2.0, 1.0)
JUMPS = (0.0, 0.083, 0.217, 0.391, 0.4442, 0.613, 0.78, 0.9031, 1.0)
CLOSED = "closed form"


def pushed(push: complex, z: Tensor) -> Tensor:
    return z.new_tensor([push.real, push.imag])


def dosed(width: float, at: float, solve: Solve | Solver, *, clock: bool = False) -> Known:
    """A rotation and a Gaussian dose in time; with ``clock``, one of the states is the time."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        now = z[:, 2:] if clock else column(t, z)
        dose = torch.exp(-(((now - at) / width) ** 2)) / (width * math.sqrt(math.pi))
        change = SPEED * turned(z) + dose * pushed(DOSE, z)
        return torch.cat([change, torch.ones_like(z[:, 2:])], 1) if clock else change

    head = Head()

    def exact(x: Tensor) -> Tensor:
        late = cmath.exp(1j * SPEED * (1 - at) - (SPEED * width) ** 2 / 4)
        return head(as_real(as_complex(x) * cmath.exp(1j * SPEED) + DOSE * late))

    lift = (lambda x: torch.cat([x, torch.zeros_like(x[:, :1])], 1)) if clock else None
    return Known(network(field, solve, head, lift), normal(), exact, CLOSED)


def protocol(solve: Solve | Solver) -> Known:
    """A rotation under a force that jumps at unequally spaced times, like a voltage protocol."""
    ends = torch.tensor(JUMPS[1:-1], dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        pieces = torch.searchsorted(ends, column(t, z).double().detach(), right=True)
        force = (1 - 2 * (pieces % 2)).to(z)
        return 3 * SPEED * turned(z) + 6 * force * pushed(DOSE, z)

    head = Head()

    def exact(x: Tensor) -> Tensor:
        z, speed = as_complex(x), 3j * SPEED
        for k, (start, end) in enumerate(pairwise(JUMPS)):
            turn = cmath.exp(speed * (end - start))
            z = turn * z + 6 * (-1) ** k * DOSE * (turn - 1) / speed
        return head(as_real(z))

    return Known(network(field, solve, head), normal(), exact, CLOSED)


class Controlled(nn.Module):
    """A linear neural CDE.

    Its path interpolates linearly between ``pieces`` + 1 points of each sample.
    """

    def __init__(self, solve: Solve, pieces: int = 8) -> None:
        super().__init__()
        self.matrices = nn.Parameter(
            1.2 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(5))
        )
        self.solve, self.pieces, self.head = solve, pieces, Head(3)

    def rates(self, x: Tensor) -> Tensor:
        """The matrix of each piece of each sample, ``(n, pieces, 3, 3)``."""
        return torch.einsum("npc,cij->npij", x.diff(dim=1) * self.pieces, self.matrices.to(x))

    def start(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], torch.ones_like(x[:, 0, :1])], 1)

    def forward(self, x: Tensor) -> Tensor:
        rates = self.rates(x)

        def field(t: Tensor, z: Tensor) -> Tensor:
            piece = min(int(float(t) * self.pieces), self.pieces - 1)
            return torch.einsum("nij,nj->ni", rates[:, piece], z)

        return self.head(self.solve(field, self.start(x), torch.tensor([0.0, 1.0])).select(0, -1))


def controlled(solve: Solve) -> Known:
    model, pieces = Controlled(solve), 8

    def draw(n: int, seed: int) -> Tensor:
        steps = 0.3 * torch.randn(
            n, pieces + 1, 2, generator=torch.Generator().manual_seed(2027 + seed)
        )
        return steps.cumsum(1)

    def exact(x: Tensor) -> Tensor:
        flows = torch.linalg.matrix_exp(model.rates(x) / pieces)
        z = model.start(x)
        for k in range(pieces):
            z = torch.einsum("nij,nj->ni", flows[:, k], z)
        return model.head(z)

    return Known(model.eval(), draw, exact, "matrix exponentials")


def waving(waves: int, solve: Solve | Solver) -> Known:
    """A rotation and a cosine force with a number of periods.

    Steps of a whole number of periods see a constant force.
    """

    def field(t: Tensor, z: Tensor) -> Tensor:
        return SPEED * turned(z) + torch.cos(2 * math.pi * waves * column(t, z)) * pushed(DOSE, z)

    head = Head()

    def exact(x: Tensor) -> Tensor:
        parts = [SPEED - 2 * math.pi * waves, SPEED + 2 * math.pi * waves]
        integral = sum((1 - cmath.exp(-1j * a)) / (2j * a) for a in parts)
        return head(as_real(cmath.exp(1j * SPEED) * (as_complex(x) + DOSE * integral)))

    return Known(network(field, solve, head), normal(), exact, CLOSED)


def oscillating(solve: Solve, speed: float, outputs: int, each: int) -> Known:
    """Damped oscillations, observed at several times."""
    rate, times = complex(-0.5, speed), torch.linspace(0, 1, outputs, dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return rate.real * z + rate.imag * turned(z)

    def exact(x: Tensor) -> Tensor:
        return as_real(as_complex(x)[:, None] * torch.exp(rate * times))

    return Known(
        Model(field, solve, times=times).eval(),
        normal(),
        exact,
        CLOSED,
        "timeseries",
        each,
        max(each, 10),
    )


def following(solve: Solve, outputs: int) -> Known:
    """States quickly attracted by a moving point, observed at many times."""
    rate, speed, times = 60.0, 6.0, torch.linspace(0, 2, outputs, dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -rate * (z - torch.cos(speed * column(t, z)))

    def exact(x: Tensor) -> Tensor:
        size = rate / (rate**2 + speed**2)
        led = size * (rate * torch.cos(speed * times) + speed * torch.sin(speed * times))
        return led[:, None] + (x - led[0])[:, None] * torch.exp(-rate * times)[:, None]

    return Known(
        Model(field, solve, times=times).eval(), normal(), exact, CLOSED, "timeseries", 400, 1200
    )


JUMPING = {"jump_t": torch.arange(1, 8, dtype=torch.float32) / 8}
AROUND = {"step_t": torch.linspace(0.277, 0.297, 41)}
MODELS: dict[str, tuple[str, Callable[[], Known]]] = {
    "dose of 1e-1, euler x 8": ("dose", lambda: dosed(1e-1, 0.45, FixedStep("euler", n_steps=8))),
    "dose of 1e-1, rk4 x 64": ("dose", lambda: dosed(1e-1, 0.45, diffeq("rk4", 64))),
    "dose of 1e-2, rk4 x 8": ("dose", lambda: dosed(1e-2, 0.613, diffeq("rk4", 8))),
    "dose of 1e-2, dopri5 1e-3": (
        "dose", lambda: dosed(1e-2, 0.613, Adaptive("dopri5", 1e-3, 1e-3))
    ),
    "dose of 1e-2, rk4 x 512": ("dose", lambda: dosed(1e-2, 0.613, FixedStep("rk4", n_steps=512))),
    "dose of 1e-3, dopri5 1e-5": (
        "dose", lambda: dosed(1e-3, 0.287, diffeq("dopri5", rtol=1e-5, atol=1e-5))
    ),
    "dose of 1e-3, torchode dopri5 1e-5": (
        "dose", lambda: dosed(1e-3, 0.287, ode("Dopri5", tolerance=1e-5))
    ),
    "dose of 1e-3, midpoint x 4000": (
        "dose", lambda: dosed(1e-3, 0.287, FixedStep("midpoint", n_steps=4000))
    ),
    "dose of 1e-3, dopri5 led to it": (
        "dose", lambda: dosed(1e-3, 0.287, diffeq("dopri5", rtol=1e-7, atol=1e-7, options=AROUND))
    ),
    "dose of 1e-1, clock, torchdyn euler x 8": (
        "dose, clock", lambda: dosed(1e-1, 0.5, dyn("euler", 8), clock=True)
    ),
    "dose of 1e-2, clock, rk4 x 20": (
        "dose, clock", lambda: dosed(1e-2, 0.613, FixedStep("rk4", n_steps=20), clock=True)
    ),
    "dose of 1e-3, clock, euler x 16": (
        "dose, clock", lambda: dosed(1e-3, 0.731, diffeq("euler", 16), clock=True)
    ),
    "dose of 1e-1, clock, rk4 x 64": (
        "dose, clock", lambda: dosed(1e-1, 0.5, FixedStep("rk4", n_steps=64), clock=True)
    ),
    "dose of 1e-2, clock, dopri5 of short steps": (
        "dose, clock",
        lambda: dosed(1e-2, 0.613, Adaptive("dopri5", 1e-6, 1e-6, max_step=0.02), clock=True),
    ),
    "protocol, euler x 10": ("jumps in time", lambda: protocol(FixedStep("euler", n_steps=10))),
    "protocol, torchdyn rk4 x 16": ("jumps in time", lambda: protocol(dyn("rk4", 16))),
    "protocol, dopri5 1e-7": (
        "jumps in time", lambda: protocol(diffeq("dopri5", rtol=1e-7, atol=1e-7))
    ),
    "CDE, a step of euler per point": ("jumps in time", lambda: controlled(diffeq("euler", 8))),
    "CDE, a step of rk4 per point": ("jumps in time", lambda: controlled(diffeq("rk4", 8))),
    "CDE, midpoint x 1024": ("jumps in time", lambda: controlled(diffeq("midpoint", 1024))),
    "CDE, dopri5 1e-6 told of jumps": (
        "jumps in time", lambda: controlled(diffeq("dopri5", rtol=1e-6, atol=1e-6, options=JUMPING))
    ),
    "16 waves, euler x 16": ("aliasing", lambda: waving(16, FixedStep("euler", n_steps=16))),
    "16 waves, torchdyn midpoint x 8": ("aliasing", lambda: waving(16, dyn("midpoint", 8))),
    "64 waves, rk4 x 32": ("aliasing", lambda: waving(64, diffeq("rk4", 32))),
    "1000 waves, rk4 x 500": ("aliasing", lambda: waving(1000, FixedStep("rk4", n_steps=500))),
    "16 waves, rk4 x 256": ("aliasing", lambda: waving(16, FixedStep("rk4", n_steps=256))),
    "one trajectory, euler x 20": ("trajectory", lambda: oscillating(diffeq("euler"), 6.0, 21, 1)),
    "one trajectory, rk4 x 20": ("trajectory", lambda: oscillating(diffeq("rk4"), 6.0, 21, 1)),
    "many trajectories, euler x 100": (
        "trajectories", lambda: oscillating(diffeq("euler", 100), 6.0, 21, 1000)
    ),
    "many trajectories, dopri5 1e-6": (
        "trajectories", lambda: oscillating(diffeq("dopri5", rtol=1e-6, atol=1e-6), 6.0, 21, 1000)
    ),
    "1000 output times, a step of euler each": (
        "output times", lambda: oscillating(diffeq("euler"), 30.0, 1000, 400)
    ),
    "1000 output times, a step of rk4 each": (
        "output times", lambda: oscillating(diffeq("rk4"), 30.0, 1000, 400)
    ),
    "200 output times, led, dopri5 1e-7": (
        "output times", lambda: following(diffeq("dopri5", rtol=1e-7, atol=1e-7), 200)
    ),
}  # fmt: skip
