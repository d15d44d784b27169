"""The workloads of `run.py` in trueode, torchdiffeq and torchode.

``python benchmarks/steps.py WORK SIDE`` serves one of them. A training step is forward, loss,
backward and Adam. All sides have the same layers with the same weights, and a learning rate too
small to change them; otherwise a side that takes more training steps would reach other weights, for
which adaptive solvers take other steps. torchdiffeq's rk4 is the 3/8 rule, with as many evaluations
as the classical method.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import weights
from torch import Tensor, nn
from torch.nn import functional as F
from turns import serve

Step = Callable[[], object]
Flow = Callable[[Tensor], Tensor]
RATE, TOLERANCE = 1e-9, 1e-5


class PlainField(nn.Module):
    """A field of plain PyTorch layers, as users of torchdiffeq write it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)
        self._fill(
            [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
        )

    @torch.no_grad()
    def _fill(self, layers: list[nn.Linear | nn.Conv1d | nn.Conv2d]) -> None:
        """Load the weights that all sides have in common."""
        drawn = weights.layers((layer.weight[0].numel(), len(layer.weight)) for layer in layers)
        for layer, (matrix, bias) in zip(layers, drawn, strict=True):
            n_out, n_in, *taps = layer.weight.shape
            by_tap = torch.from_numpy(matrix).view(*taps, n_in, n_out)
            layer.weight.copy_(by_tap.permute(-1, -2, *range(len(taps))))
            layer.bias.copy_(torch.from_numpy(bias))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


class TimedField(PlainField):
    """A field whose first layer takes the time as one more input."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(len(z), 1)], 1))


class TracedField(nn.Module):
    """A field of a state and its log density, as users of torchdiffeq write it: one product with
    the Jacobian for each number of a sample.
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, _ = states
        with torch.enable_grad():
            z.requires_grad_(True)
            value = self.field(t, z)
            rows = (
                torch.autograd.grad(value[:, i].sum(), z, create_graph=True)[0][:, i]
                for i in range(z.shape[1])
            )
            return value, -torch.stack(tuple(rows)).sum(0)


def conv_field(dim: int, channels: int, hidden: int) -> PlainField:
    """The layers of ``simple_odenet`` (dim 1) and ``odenet`` (dim 2)."""
    conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d if dim == 1 else nn.Conv2d
    middle = conv(hidden, hidden, 3, padding=1)
    return PlainField(
        conv(channels, hidden, 1), nn.ReLU(), middle, nn.ReLU(), conv(hidden, channels, 1)
    )


def dense_field(width: int, hidden: int) -> PlainField:
    """The layers of ``linear_odenet``."""
    middle = nn.Linear(hidden, hidden)
    return PlainField(
        nn.Linear(width, hidden), nn.ReLU(), middle, nn.ReLU(), nn.Linear(hidden, width)
    )


def own_field(plain: PlainField, network: str, shape: tuple[int, ...], hidden: int) -> nn.Module:
    """A network of trueode with the weights of a plain field."""
    from trueode.fields import build_field

    field = build_field(network, shape, hidden, "relu")
    field.load_state_dict(dict(zip(field.state_dict(), plain.state_dict().values(), strict=True)))
    return field


def training_step(flow: Flow, field: nn.Module, x: Tensor, classes: int, own: bool) -> Step:
    """Fit a linear head on the flow to labels, on the device of the inputs.

    The optimiser is that of trueode if ``own``, else PyTorch's fused Adam.
    """
    head = nn.Linear(x[0].numel(), classes).to(x.device)
    parameters = [*field.parameters(), *head.parameters()]
    if own:
        from trueode.training.optimizers import make_optimizer

        optimizer: Any = make_optimizer("adam", parameters, lr=RATE, weight_decay=0.0)
    else:
        optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    labels = (torch.arange(len(x)) % classes).to(x.device)

    def step() -> None:
        loss = F.cross_entropy(head(flow(x).flatten(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def gradient_step(flow: Flow, field: nn.Module, x: Tensor) -> Step:
    """A solve forward and backward, without an optimiser."""

    def step() -> None:
        field.zero_grad()
        flow(x).square().mean().backward()

    return step


def forward_step(flow: Flow, x: Tensor) -> Step:
    """A solve without gradients, as in an audit."""

    def step() -> None:
        with torch.no_grad():
            flow(x)

    return step


def through_odeint(
    field: nn.Module,
    method: str,
    n_steps: int | None = None,
    own: bool = False,
    times: int = 2,
    device: torch.device | None = None,
) -> Flow:
    """``odeint`` of torchdiffeq, or that of trueode if ``own``, with its back-propagation; adaptive
    if ``n_steps`` is None. With more than two times, the mean of the states after the first.
    """
    if own:
        from trueode import odeint
    else:
        from torchdiffeq import odeint

    t = torch.linspace(0.0, 1.0, times).to(device)
    how = (
        {"rtol": TOLERANCE, "atol": TOLERANCE}
        if n_steps is None
        else {"options": {"step_size": 1 / n_steps}}
    )
    if times == 2:
        return lambda z: odeint(field, z, t, method=method, **how)[-1]
    return lambda z: odeint(field, z, t, method=method, **how)[1:].mean(0)


def through_torchode(field: nn.Module) -> Flow:
    """dopri5 with direct back-propagation; torchode chooses steps per sample."""
    import torchode

    term = torchode.ODETerm(field)
    controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)

    def flow(z: Tensor) -> Tensor:
        ends = torch.tensor([[0.0, 1.0]]).expand(len(z), 2)
        return solver.solve(torchode.InitialValueProblem(y0=z, t_eval=ends)).ys[:, -1]

    return flow


def through_trueode(
    field: nn.Module, method: str, n_steps: int | None = None, checkpoint: bool = False
) -> Flow:
    """`NeuralODE` with its default gradient, or with `Checkpoint`."""
    from trueode import Adaptive, FixedStep, NeuralODE
    from trueode.solvers import Checkpoint

    solver = (
        Adaptive(method, TOLERANCE, TOLERANCE)
        if n_steps is None
        else FixedStep(method, n_steps=n_steps)
    )
    return NeuralODE(field, solver=solver, gradient=Checkpoint() if checkpoint else None)


def sphere2(side: str, method: str, n_steps: int, batch: int = 128, train: bool = True) -> Step:
    """``simple_odenet`` with 32 channels on points of a plane."""
    x, plain = torch.from_numpy(weights.points(batch)).view(batch, 1, 2), conv_field(1, 1, 32)
    if side == "torchdiffeq":
        field, flow = plain, through_odeint(plain, method, n_steps)
    else:
        field = own_field(plain, "simple_odenet", (1, 2), 32)
        flow = through_trueode(field, method, n_steps)
    return training_step(flow, field, x, 2, side == "trueode") if train else forward_step(flow, x)


def dense(side: str) -> Step:
    """A field 2-64-64-2 under dopri5."""
    x, plain = torch.from_numpy(weights.points(128)), dense_field(2, 64)
    if side == "trueode":
        field = own_field(plain, "linear_odenet", (2,), 64)
        return training_step(through_trueode(field, "dopri5"), field, x, 2, own=True)
    flow = through_torchode(plain) if side == "torchode" else through_odeint(plain, "dopri5")
    return training_step(flow, plain, x, 2, own=False)


def drop_in(
    side: str, method: str, n_steps: int | None = None, train: bool = True, times: int = 2
) -> Step:
    """The same field as a plain module, with one import changed."""
    x, field = torch.from_numpy(weights.points(128)), dense_field(2, 64)
    flow = through_odeint(field, method, n_steps, own=side == "trueode", times=times)
    return gradient_step(flow, field, x) if train else forward_step(flow, x)


def density(side: str, hidden_layers: int) -> Step:
    """The likelihood of points of a plane and its gradient, with 64 units a layer, time, rk4 x 16
    and the exact trace; torchdiffeq with one of its two gradients.
    """
    x, sizes = torch.from_numpy(weights.points(512)), [3, *[64] * hidden_layers]
    hidden = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.Tanh())]
    field = TimedField(*hidden, nn.Linear(64, 2))
    if side == "trueode":
        from trueode import ContinuousFlow, FixedStep

        flow = ContinuousFlow(field, (2,), FixedStep("rk4", n_steps=16))
        log_density: Flow = flow.log_prob
    else:
        import torchdiffeq

        traced = TracedField(field)
        odeint = torchdiffeq.odeint_adjoint if "adjoint" in side else torchdiffeq.odeint
        t, options = torch.tensor([0.0, 1.0]), {"step_size": 1 / 16}

        def log_density(x: Tensor) -> Tensor:
            start = x, torch.zeros(len(x))
            z, change = (y[-1] for y in odeint(traced, start, t, method="rk4", options=options))
            return -z.square().sum(1) / 2 - math.log(2 * math.pi) - change

    def step() -> None:
        field.zero_grad()
        (-log_density(x).mean()).backward()

    return step


class ImageWork(NamedTuple):
    """Images, and the hidden channels of their field."""

    hidden: int
    batch: int
    channels: int = 3
    length: int = 32


IMAGES = {
    "mnist": ImageWork(16, 64, 1, 28),
    "images16": ImageWork(16, 64),
    "images32": ImageWork(32, 64),
    "cifar": ImageWork(64, 32),
    "images128": ImageWork(128, 16),
}


def cifar_parts(
    side: str, n_steps: int, work: ImageWork = IMAGES["cifar"]
) -> tuple[Flow, nn.Module, Tensor]:
    """The flow and the field of ``odenet``, and images."""
    shape = (work.channels, work.length, work.length)
    x, plain = torch.rand(work.batch, *shape), conv_field(2, work.channels, work.hidden)
    if side == "torchdiffeq":
        return through_odeint(plain, "euler", n_steps), plain, x
    field = own_field(plain, "odenet", shape, work.hidden)
    if side == "trueode, bf16":  # as `--precision bf16`
        from trueode.fields import Autocast

        field = Autocast(field, torch.bfloat16, if_faster=True)
    return (
        through_trueode(field, "euler", n_steps, checkpoint=side == "trueode, checkpoint"),
        field,
        x,
    )


def exact_flow() -> Step:
    """Steps of rk4 in double precision, as in a certificate."""
    _, field, x = cifar_parts("trueode", 16, IMAGES["images32"])
    return forward_step(through_trueode(field.double(), "rk4", 16), x.double())


PRODUCT = 1024


def product() -> Step:
    """A product of two square matrices, whose rate is taken as the limit of the machine."""
    a, b, out = (torch.rand(PRODUCT, PRODUCT) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


WORKS: dict[str, Callable[[str], Step]] = {
    "euler": lambda side: sphere2(side, "euler", 64),
    "rk4": lambda side: sphere2(side, "rk4", 16),
    "dopri5": dense,
    "forward": lambda side: sphere2(side, "rk4", 256, batch=1000, train=False),
    "odeint_euler": lambda side: drop_in(side, "euler", 64),
    "odeint_rk4": lambda side: drop_in(side, "rk4", 16),
    "odeint_dopri5": lambda side: drop_in(side, "dopri5"),
    "odeint_euler_forward": lambda side: drop_in(side, "euler", 64, train=False),
    "odeint_rk4_forward": lambda side: drop_in(side, "rk4", 16, train=False),
    "odeint_dopri5_forward": lambda side: drop_in(side, "dopri5", train=False),
    "odeint_times": lambda side: drop_in(side, "dopri5", times=21),
    "odeint_times_forward": lambda side: drop_in(side, "dopri5", train=False, times=21),
    "density": lambda side: density(side, 1),
    "density2": lambda side: density(side, 2),
    "exact": lambda side: exact_flow(),
    "product": lambda side: product(),
}
WORKS |= {
    name: lambda side, work=work: training_step(  # type: ignore[misc]
        *cifar_parts(side, 16, work), 10, side != "torchdiffeq"
    )
    for name, work in IMAGES.items()
}


def main(work: str, side: str) -> Any:
    torch.manual_seed(0)
    serve(WORKS[work](side))


if __name__ == "__main__":
    main(*sys.argv[1:])
