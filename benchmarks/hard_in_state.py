"""Models with fields that are hard at some states, and models of graphs, images and noise.

The hard fields have switches, stiffness, blow-up or chaos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from known_flows import (
    Field,
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
    uniform,
)  # fmt: skip
from torch import Tensor, nn

from trueode import Adaptive, FixedStep
from trueode.solvers import Solver

CLOSED = "closed form"
NONE = "none"


def by_scipy(field: Field, x: Tensor) -> Tensor:
    """The states at time 1, all samples solved as one system."""
    from scipy.integrate import solve_ivp

    def flat(t: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rates: np.ndarray[Any, Any] = (
            field(torch.tensor(t), torch.from_numpy(y).view_as(x)).flatten().numpy()
        )
        return rates

    found = solve_ivp(
        flat, (0.0, 1.0), x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12
    )
    if not found.success:
        raise ArithmeticError(found.message)
    return torch.from_numpy(found.y[:, -1]).view_as(x)


def solved(
    field: Field, solve: Solve | Solver, draw: Callable[[int, int], Tensor], size: int = 2
) -> Known:
    """A model whose exact flow is computed by SciPy."""
    head = Head(size)
    return Known(
        network(field, solve, head),
        draw,
        lambda x: head(by_scipy(field, x)),
        "SciPy's DOP853",
        many=1000,
    )


def known(
    field: Field,
    flow: Callable[[Tensor], Tensor],
    solve: Solve | Solver,
    draw: Callable[[int, int], Tensor] | None = None,
    offset: float = 0.2,
    many: int = 5000,
) -> Known:
    """A model whose flow is known in closed form."""
    head = Head(offset=offset)
    return Known(
        network(field, solve, head), draw or normal(), lambda x: head(flow(x)), CLOSED, many=many
    )


def crossing(solve: Solve | Solver) -> Known:
    """A switch that each sample crosses at a different time."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(z[:, 0]), 6 * z[:, 0].sign()], 1)

    def flow(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] + 1, x[:, 1] + 6 * ((x[:, 0] + 1).abs() - x[:, 0].abs())], 1)

    return known(field, flow, solve)


def repelling(solve: Solve | Solver) -> Known:
    """A switch that repels samples."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0].sign(), 3 * torch.cos(8 * z[:, 0])], 1)

    def flow(x: Tensor) -> Tensor:
        side = x[:, 0].sign()
        end = x[:, 0] + side
        return torch.stack(
            [end, x[:, 1] + 3 * side * (torch.sin(8 * end) - torch.sin(8 * x[:, 0])) / 8], 1
        )

    return known(field, flow, solve)


def sliding(solve: Solve | Solver) -> Known:
    """A switch that attracts samples from both sides.

    Classical solutions end there; Filippov's slide along it, with the mean of both sides' fields
    that stays on the switch. Solutions with ever smaller steps converge to these.
    """

    def field(t: Tensor, z: Tensor) -> Tensor:
        side = z[:, 0].sign()
        return torch.stack([0.5 - 3 * side, 3 * side], 1)

    def flow(x: Tensor) -> Tensor:
        side = x[:, 0].sign()
        speed = 0.5 - 3 * side
        free = (-x[:, 0] / speed).clamp(max=1.0)  # time until the switch
        sliding = x[:, 1] + 3 * side * free + 0.5 * (1 - free)
        return torch.stack([x[:, 0] + speed * free, sliding], 1)

    return replace(known(field, flow, solve), how="Filippov's solution")


def bouncing(solve: Solve | Solver) -> Known:
    """A ball that falls onto a stiff spring: parabolas and parts of oscillations alternate."""
    gravity, stiffness = 9.8, 1e4
    omega = math.sqrt(stiffness)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], stiffness * (-z[:, 0]).relu() - gravity], 1)

    def flow(x: Tensor) -> Tensor:
        height, speed, left = x[:, 0].clone(), x[:, 1].clone(), torch.ones_like(x[:, 0])
        level = gravity / omega**2  # depth of the point of rest
        for _ in range(40):
            touch = (speed + (speed**2 + 2 * gravity * height).clamp(min=0).sqrt()) / gravity
            free = touch.clamp(min=0).minimum(left)
            height, speed = height + speed * free - gravity * free**2 / 2, speed - gravity * free
            left = left - free
            down = left > 0
            height = torch.where(down, 0.0, height)
            # from height zero, downwards, until height zero again
            lasting = (
                2 * (math.pi - torch.atan2(-speed, torch.full_like(speed, omega * level))) / omega
            )
            pressed = torch.where(down, lasting.minimum(left), 0.0)
            c, s = torch.cos(omega * pressed), torch.sin(omega * pressed)
            pushed = level * c + speed / omega * s - level, speed * c - omega * level * s
            height, speed = (
                torch.where(down, pushed[0], height),
                torch.where(down, pushed[1], speed),
            )
            left = left - pressed
            height = torch.where(left > 0, height.clamp(min=0.0), height)
        return torch.stack([height, speed], 1)

    return known(field, flow, solve, uniform(0.3, 1.0), offset=0.4)


def stiff(rate: float, solve: Solve | Solver) -> Known:
    """A state attracted by a moving point with ``rate``, and the integral of that state."""
    speed, gain = 5.0, 4.0
    size = rate / (rate**2 + speed**2)

    def field(t: Tensor, z: Tensor) -> Tensor:
        led = -rate * (z[:, :1] - torch.cos(speed * column(t, z)))
        return torch.cat([led, gain * z[:, :1]], 1)

    def flow(x: Tensor) -> Tensor:
        away, c, s = x[:, 0] - size * rate, math.cos(speed), math.sin(speed)
        led = size * (rate * c + speed * s) + away * math.exp(-rate)
        integral = size * (rate * s / speed + 1 - c) + away * (1 - math.exp(-rate)) / rate
        return torch.stack([led, x[:, 1] + gain * integral], 1)

    return known(field, flow, solve, many=2000)


def van_der_pol(solve: Solve | Solver) -> Known:
    mu, length = 30.0, 5.0

    def field(t: Tensor, z: Tensor) -> Tensor:
        return length * torch.stack([z[:, 1], mu * (1 - z[:, 0] ** 2) * z[:, 1] - z[:, 0]], 1)

    return solved(field, solve, normal())


def blowing(solve: Solve | Solver, low: float, high: float) -> Known:
    """A state whose rate is its square: from 1 on it blows up before the end."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0] ** 2, z[:, 0]], 1)

    def flow(x: Tensor) -> Tensor:
        left = torch.where(x[:, 0] < 1, 1 - x[:, 0], math.nan)
        return torch.stack([x[:, 0] / left, x[:, 1] - left.log()], 1)

    return known(field, flow, solve, uniform(low, high))


def falling(solve: Solve | Solver) -> Known:
    """Large states whose rates are minus their cubes.

    Coarse steps grow without bound, although the solution does not blow up.
    """

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-50 * z[:, 0] ** 3, 5 * z[:, 0]], 1)

    def flow(x: Tensor) -> Tensor:
        root = (1 + 100 * x[:, 0] ** 2).sqrt()
        return torch.stack(
            [x[:, 0] / root, x[:, 1] + 0.1 * x[:, 0].sign() * ((root - 1) / x[:, 0].abs())], 1
        )

    return known(field, flow, solve, uniform(-10.0, 10.0))


def lorenz(length: float, solve: Solve | Solver) -> Known:
    def field(t: Tensor, z: Tensor) -> Tensor:
        x, y, w = z.unbind(1)
        return length * torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], 1)

    def draw(n: int, seed: int) -> Tensor:
        return normal(3)(n, seed) * 5 + torch.tensor([0.0, 0.0, 25.0])

    if length > 10:
        return Known(network(field, solve, Head(3)), draw, None, f"{NONE}: chaos")
    return solved(field, solve, draw, 3)


class Graph(nn.Module):
    """Classify the nodes of a random graph after heat has flowed along its edges."""

    def __init__(self, solve: Solve, rate: float) -> None:
        super().__init__()
        self.rate, self.solve, self.head = rate, solve, nn.Linear(4, 3, bias=False)
        nn.init.orthogonal_(self.head.weight, generator=torch.Generator().manual_seed(1))

    def edges(self, x: Tensor) -> Tensor:
        n = len(x)
        weights = (torch.rand(n, n, generator=torch.Generator().manual_seed(n)) < 4 / n).to(
            x
        ) + torch.eye(n).to(x)
        return self.rate * (weights / weights.sum(1, keepdim=True) - torch.eye(n).to(x))

    def forward(self, x: Tensor) -> Tensor:
        edges = self.edges(x)
        return self.head(self.solve(lambda t, z: edges @ z, x, torch.tensor([0.0, 1.0]))[-1])


def graph(solve: Solve, rate: float = 3.0) -> Known:
    model = Graph(solve, rate)

    def exact(x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(model.edges(x)) @ x @ model.head.weight.double().T

    census = {"population": "all"}
    return Known(
        model.eval(), normal(4), exact, "matrix exponential", each=600, many=1200, arguments=census
    )


def crowd(solve: Solve) -> Known:
    """All samples turn at one speed, which grows with the sum of their squares."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return 0.0015 * z.square().sum() * turned(z)

    head = Head()

    def exact(x: Tensor) -> Tensor:
        return head(
            as_real(as_complex(x) * torch.polar(torch.ones(1).to(x), 0.0015 * x.square().sum()))
        )

    return Known(Model(field, solve, head).eval(), normal(), exact, CLOSED)


def images(solve: Solve) -> Known:
    """Classify pixels after a linear convolution in continuous time."""
    size = 8
    kernel = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(3))

    def field(t: Tensor, z: Tensor) -> Tensor:
        return nn.functional.conv2d(
            nn.functional.pad(z, (1, 1, 1, 1), mode="circular"), 0.5 * kernel.to(z)
        )

    def exact(x: Tensor) -> Tensor:
        units = torch.eye(2 * size * size, dtype=torch.float64).view(-1, 2, size, size)
        matrix = field(torch.zeros(()), units).flatten(1)
        return (x.flatten(1) @ torch.linalg.matrix_exp(matrix)).view_as(x)

    def draw(n: int, seed: int) -> Tensor:
        return torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(2027 + seed))

    return Known(
        Model(field, solve, nn.Identity()).eval(),
        draw,
        exact,
        "matrix exponential",
        each=500,
        many=1000,
    )


class Latent(nn.Module):
    """A rotation of initial states with added noise of a seeded generator.

    Args:
        solve: the library.
        single: draw the noise in single precision, not in that of the states.
    """

    def __init__(self, solve: Solve, single: bool) -> None:
        super().__init__()
        self.solve, self.single, self.head, self.speed = (
            solve,
            single,
            Head(),
            nn.Parameter(torch.tensor(5.0)),
        )

    def start(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x + 0.5 * torch.randn(
            x.shape, generator=torch.Generator().manual_seed(7), dtype=dtype
        ).to(x)

    def forward(self, x: Tensor) -> Tensor:
        z = self.start(x, torch.float32 if self.single else x.dtype)
        return self.head(
            self.solve(lambda t, z: self.speed * turned(z), z, torch.tensor([0.0, 1.0]))[-1]
        )


def latent(solve: Solve, *, single: bool) -> Known:
    model = Latent(solve, single)

    def exact(x: Tensor) -> Tensor:
        z = model.start(x, torch.float32)
        return model.head(as_real(as_complex(z) * torch.exp(1j * model.speed.detach().double())))

    return Known(model.eval(), normal(), exact, CLOSED)


def controlled(tolerance: float) -> Solve:
    return diffeq("dopri5", rtol=tolerance, atol=tolerance)


MODELS: dict[str, tuple[str, Callable[[], Known]]] = {
    "crossed switch, euler x 4": ("switch", lambda: crossing(FixedStep("euler", n_steps=4))),
    "crossed switch, rk4 x 512": ("switch", lambda: crossing(diffeq("rk4", 512))),
    "repelling switch, torchode euler x 3": ("switch", lambda: repelling(ode("Euler", 3))),
    "repelling switch, dopri5 1e-6": ("switch", lambda: repelling(Adaptive("dopri5", 1e-6, 1e-6))),
    "sliding mode, euler x 8": ("sliding mode", lambda: sliding(FixedStep("euler", n_steps=8))),
    "sliding mode, rk4 x 500": ("sliding mode", lambda: sliding(FixedStep("rk4", n_steps=500))),
    "bouncing ball, euler x 64": ("switch, stiff", lambda: bouncing(diffeq("euler", 64))),
    "bouncing ball, rk4 x 1024": (
        "switch, stiff", lambda: bouncing(FixedStep("rk4", n_steps=1024))
    ),
    "bouncing ball, dopri5 1e-9": (
        "switch, stiff", lambda: bouncing(Adaptive("dopri5", 1e-9, 1e-9, per_sample=True))
    ),
    "stiff 1e3, torchdyn euler x 600": ("stiff", lambda: stiff(1e3, dyn("euler", 600))),
    "stiff 1e3, dopri5 1e-6": ("stiff", lambda: stiff(1e3, Adaptive("dopri5", 1e-6, 1e-6))),
    "stiff 1e4, euler x 8": ("stiff", lambda: stiff(1e4, diffeq("euler", 8))),
    "stiff 1e4, dopri5 1e-6": ("stiff", lambda: stiff(1e4, Adaptive("dopri5", 1e-6, 1e-6))),
    "stiff 1e5, euler x 4": ("stiff", lambda: stiff(1e5, FixedStep("euler", n_steps=4))),
    "van der Pol, bosh3 1e-2": ("stiff", lambda: van_der_pol(Adaptive("bosh3", 1e-2, 1e-2))),
    "van der Pol, dopri5 1e-8": ("stiff", lambda: van_der_pol(Adaptive("dopri5", 1e-8, 1e-8))),
    "blow-up of some, euler x 8": (
        "blow-up", lambda: blowing(FixedStep("euler", n_steps=8), -1.0, 2.0)
    ),
    "blow-up at the end, rk4 x 1000": ("blow-up", lambda: blowing(diffeq("rk4", 1000), -1.0, 1.05)),
    "growth, no blow-up, euler x 16": ("blow-up", lambda: blowing(diffeq("euler", 16), -1.0, 0.9)),
    "growth, no blow-up, dopri5 1e-8": ("blow-up", lambda: blowing(controlled(1e-8), -1.0, 0.9)),
    "fall from far, bosh3 5e-1": (
        "blow-up of steps alone", lambda: falling(Adaptive("bosh3", 0.5, 0.5))
    ),
    "fall from far, dopri5 1e-7": (
        "blow-up of steps alone", lambda: falling(Adaptive("dopri5", 1e-7, 1e-7))
    ),
    "Lorenz to 30, rk4 x 3000": ("chaos", lambda: lorenz(30.0, FixedStep("rk4", n_steps=3000))),
    "Lorenz to 30, dopri5 1e-8": (
        "chaos", lambda: lorenz(30.0, Adaptive("dopri5", 1e-8, 1e-8, max_steps=100_000))
    ),
    "Lorenz to 1, euler x 64": ("chaos", lambda: lorenz(1.0, diffeq("euler", 64))),
    "Lorenz to 1, dopri5 1e-7": ("chaos", lambda: lorenz(1.0, controlled(1e-7))),
    "graph, all nodes, euler x 2": ("graph", lambda: graph(diffeq("euler", 2))),
    "graph, all nodes, dopri5 1e-6": ("graph", lambda: graph(controlled(1e-6))),
    "samples that see one another, euler x 16": ("graph", lambda: crowd(diffeq("euler", 16))),
    "samples that see one another, rk4 x 256": ("graph", lambda: crowd(diffeq("rk4", 256))),
    "images, euler x 4": ("pixels", lambda: images(diffeq("euler", 4))),
    "images, dopri5 1e-5": ("pixels", lambda: images(controlled(1e-5))),
    "seeded noise, euler x 16": ("noise", lambda: latent(diffeq("euler", 16), single=True)),
    "seeded noise, dopri5 1e-6": ("noise", lambda: latent(controlled(1e-6), single=True)),
    "seeded noise of the states' precision, rk4 x 32": (
        "noise", lambda: latent(diffeq("rk4", 32), single=False)
    ),
}  # fmt: skip
