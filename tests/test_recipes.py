"""The recipes of the documentation, on models written as the documentation of their libraries does.

The true answers are closed forms, or independent solves.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import Audit, FixedStep, audit, solve
from trueode.auditing.model_under_test import NO_SOLVER
from trueode.errors import UsageError

torchdiffeq = pytest.importorskip("torchdiffeq")
odeint, odeint_event = torchdiffeq.odeint, torchdiffeq.odeint_event
PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
LONGEST = 15


def code(heading: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n.*?^```python\n(.*?)^```", text, re.M | re.S)
    assert found, heading
    return found[1]


def recipe(heading: str, **names: Any) -> Audit:
    """Run a recipe with these names."""
    scope = {"torch": torch, "audit": audit, "odeint": odeint, **names}
    exec(compile(code(heading), heading, "exec"), scope)
    found: Audit = scope["found"]
    return found


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(low: int, high: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed))


def test_recipes_are_short() -> None:
    headings = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(headings) >= 10
    assert all(len(code(heading).splitlines()) <= LONGEST for heading in headings)


# Graphs: linear diffusion with the attention of the first states, as GRAND-l has it.


class MaxNFEError(Exception):
    pass


class Diffusion(nn.Module):
    """``dx/dt = (A - I) x`` with a limit on the number of calls."""

    def __init__(self, max_nfe: int) -> None:
        super().__init__()
        self.nfe, self.max_nfe, self.edge_index, self.weight = 0, max_nfe, None, None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.nfe > self.max_nfe:
            raise MaxNFEError
        self.nfe += 1
        source, target = self.edge_index
        return torch.zeros_like(x).index_add(0, target, self.weight[:, None] * x[source]) - x


class Grand(nn.Module):
    def __init__(self, step: float, method: str, max_nfe: int = 100) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.query = nn.Linear(6, 8, bias=False), nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 3, bias=False)
        self.odefunc = Diffusion(max_nfe)
        self.how: dict[str, Any] = {"method": method, "options": {"step_size": step}}
        self.register_buffer("t", torch.tensor([0.0, 4.0]))

    def attention(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        scores = (self.query(x)[source] * x[target]).sum(1).exp()
        sums = torch.zeros_like(x[:, 0]).index_add(0, target, scores)
        return scores / sums[target]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encoder(x)
        self.odefunc.edge_index = edge_index
        self.odefunc.weight = self.attention(x, edge_index)
        states = odeint(self.odefunc, x, self.t.to(x), **self.how)
        return self.decoder(states[-1])

    def exact(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits by the matrix exponential."""
        double = Grand(1.0, "euler").double()
        x = double.encoder(x.double())
        matrix = -torch.eye(len(x), dtype=torch.float64)
        source, target = edge_index
        matrix.index_put_((target, source), double.attention(x, edge_index), accumulate=True)
        final = torch.linalg.matrix_exp(4 * matrix) @ x
        return double.decoder(final).detach()


def edges(nodes: int, seed: int) -> Tensor:
    """A ring with some chords, in both directions, and loops."""
    ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    chords = whole(0, nodes, 2 * nodes, seed).view(2, -1)
    each, loops = torch.cat([ring, chords], 1), torch.arange(nodes).expand(2, -1)
    return torch.cat([each, each.flip(0), loops], 1)


def changed(model: Grand, x: Tensor, edge_index: Tensor) -> Tensor:
    with torch.no_grad():
        own = model(x, edge_index).argmax(1)
    model.odefunc.nfe = 0
    return own != model.exact(x, edge_index).argmax(1)


GRAPH = SimpleNamespace(
    x=normal(300, 6), edge_index=edges(300, 0), y=whole(0, 3, 300), test_mask=normal(300) > 0
)


@pytest.mark.parametrize("max_nfe", [100, 20])
@pytest.mark.parametrize(("step", "method", "verdict"), [
    (0.25, "rk4", "ode"), (2.0, "euler", "solver-dependent"),
])  # fmt: skip
def test_one_graph(step: float, method: str, verdict: str, max_nfe: int) -> None:
    if method == "rk4":
        max_nfe *= 4  # enough for the training solver alone
    model = Grand(step, method, max_nfe)
    found = recipe("One graph", model=model, data=GRAPH)
    assert found.n == int(GRAPH.test_mask.sum())
    assert found.flips == int(changed(model, GRAPH.x, GRAPH.edge_index)[GRAPH.test_mask].sum())
    assert (found.verdict, found.decision.level) == (verdict, 0.0)
    assert model.odefunc.nfe == 0


def test_a_limit_that_the_model_itself_exceeds_leaves_it_usable() -> None:
    model = Grand(0.25, "rk4", max_nfe=20)
    with pytest.raises(UsageError, match="MaxNFEError"):
        recipe("One graph", model=model, data=GRAPH)
    assert model.odefunc.nfe == 0
    model.odefunc.max_nfe = 100
    assert recipe("One graph", model=model, data=GRAPH).verdict == "ode"


def graphs(n: int) -> list[SimpleNamespace]:
    """Batches of ten graphs of 5 to 12 nodes."""
    batches = []
    for first in range(0, n, 10):
        sizes = whole(5, 13, 10, first).tolist()
        starts = [sum(sizes[:k]) for k in range(10)]
        together = [edges(size, first + k) + starts[k] for k, size in enumerate(sizes)]
        batch = torch.arange(10).repeat_interleave(torch.tensor(sizes))
        x = normal(len(batch), 6, seed=first)
        known: dict[str, Any] = {"x": x, "edge_index": torch.cat(together, 1), "batch": batch}
        batches.append(SimpleNamespace(**known, y=whole(0, 3, len(batch), first), num_graphs=10))
    return batches


@pytest.mark.parametrize(("step", "method", "verdict"), [
    (0.25, "rk4", "ode"), (2.0, "euler", "solver-dependent"),
])  # fmt: skip
def test_many_graphs(step: float, method: str, verdict: str) -> None:
    model, loader = Grand(step, method), graphs(310)
    found = recipe("Many graphs", model=model, loader=loader)
    shares = []
    for data in loader:
        flips = changed(model, data.x, data.edge_index).double()
        shares += [float(flips[data.batch == k].mean()) for k in range(10)]
    assert found.n == 310
    assert found.decision.counts.share == pytest.approx(sum(shares) / 310, abs=1e-3)
    assert found.verdict == verdict


class Pooled(Grand):
    """A class for each graph."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        nodes = super().forward(x, edge_index)
        return nodes.new_zeros(int(batch[-1]) + 1, 3).index_add(0, batch, nodes)


def test_classes_of_whole_graphs() -> None:
    model, loader = Pooled(2.0, "euler"), graphs(350)
    batches = [
        ({"x": each.x, "edge_index": each.edge_index, "batch": each.batch}, whole(0, 3, 10, k))
        for k, each in enumerate(loader)
    ]
    found = audit(
        model, batches, call=lambda model, batch: model(**batch[0]), methods=(), samples=10_000
    )
    assert (found.n, found.verdict) == (350, "solver-dependent")
    flips = 0
    for each in loader:
        own = model(each.x, each.edge_index, each.batch).argmax(1)
        exact = model.exact(each.x, each.edge_index)
        exact = exact.new_zeros(10, 3).index_add(0, each.batch, exact)
        flips += int((own != exact.argmax(1)).sum())
    assert found.flips == flips


# A neural CDE, as in the first example of torchcde.

ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


class CDEFunc(nn.Module):
    """``dz = R z dX`` turns by the change of a path of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data.copy_(ROTATION)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.linear(z)[..., None]


class NeuralCDE(nn.Module):
    def __init__(self, method: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.func, self.initial, self.readout = CDEFunc(), nn.Linear(1, 2), nn.Linear(2, 1)
        self.method = method

    def forward(self, coeffs: Tensor) -> Tensor:
        torchcde = pytest.importorskip("torchcde")
        X = torchcde.LinearInterpolation(coeffs)
        z0 = self.initial(X.evaluate(X.interval[0]))
        z_T = torchcde.cdeint(
            X=X, z0=z0, func=self.func, t=X.interval, method=self.method, options={"step_size": 1.0}
        )
        return self.readout(z_T[:, -1])


@pytest.mark.parametrize(("method", "verdict"), [("rk4", "ode"), ("euler", "solver-dependent")])
def test_a_neural_cde(method: str, verdict: str) -> None:
    torchcde = pytest.importorskip("torchcde")
    x = (0.4 * normal(400, 12, 1)).cumsum(1)
    coeffs = torchcde.linear_interpolation_coeffs(x)
    model, y = NeuralCDE(method), (x[:, -1, 0] > 0).float()
    found = recipe("A neural CDE", model=model, coeffs=coeffs, y=y, torchcde=torchcde)
    z0 = model.initial(x[:, 0]).double()
    turns = torch.linalg.matrix_exp((x[:, -1] - x[:, 0]).double()[..., None] * ROTATION.double())
    exact = (turns @ z0[..., None])[..., 0] @ model.readout.weight.double().T + model.readout.bias
    flips = (model(coeffs) > 0) != (exact > 0)
    assert (found.n, found.flips, found.verdict) == (400, int(flips.sum()), verdict)


# A latent ODE, as in the example of torchdiffeq.


class LatentODE(nn.Module):
    """A recognition network, latent states that turn, and a decoder."""

    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rec, self.dec = nn.Linear(2 * 9, 4), nn.Linear(2, 2)
        self.func = nn.Linear(2, 2, bias=False)
        self.func.weight.data.copy_(4 * ROTATION)
        self.how = how

    def start(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.rec(x.flatten(1)).chunk(2, 1)
        return torch.randn(mean.size()).to(x) * (0.5 * logvar).exp() + mean, mean, logvar

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z0, mean, logvar = self.start(x)
        z = odeint(lambda t, z: self.func(z), z0, t, **self.how).permute(1, 0, 2)
        return self.dec(z), mean, logvar


@pytest.mark.parametrize(("how", "verdict"), [
    ({"rtol": 1e-5, "atol": 1e-6}, "ode"),
    ({"method": "euler"}, "solver-dependent"),
])  # fmt: skip
def test_a_latent_ode(how: dict[str, Any], verdict: str) -> None:
    times, x = torch.linspace(0.0, 1.0, 9), normal(320, 9, 2)
    model = LatentODE(how)
    found = recipe("A latent ODE", model=model, x=x, times=times)
    torch.manual_seed(0)
    z0 = model.start(x)[0].double()
    turns = torch.linalg.matrix_exp(4 * times.double()[:, None, None] * ROTATION.double())
    exact = torch.einsum("tij,nj->nti", turns, z0)
    exact = exact @ model.dec.weight.double().T + model.dec.bias.double()
    assert found.exact is not None
    assert (found.n, found.verdict) == (320, verdict)
    torch.testing.assert_close(found.exact.outputs, exact.detach(), rtol=1e-3, atol=1e-3)
    scale = (exact - exact.mean((0, 1))).square().mean((0, 1)).sqrt()
    torch.manual_seed(0)
    own, residual = model(x, times)[0].double(), None
    residual = (own - x).square().mean((0, 1)).sqrt()
    gap = ((own - exact) / torch.maximum(0.01 * scale, 0.1 * residual)).square().mean((1, 2)).sqrt()
    assert found.flips == int((gap > 1).sum())


# A U-Net whose levels are ODE blocks.


class Block(nn.Module):
    def __init__(self, channels: int, how: dict[str, Any]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(channels, channels, 3, padding=1), how
        self.conv.weight.data.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.tensor([0.0, 1.0]).to(x)
        return odeint(lambda t, z: torch.tanh(self.conv(z)), x, t, **self.how)[-1]


class UNet(nn.Module):
    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(1, 4, 1), nn.Conv2d(8, 1, 1)
        self.down, self.bottom, self.up = Block(4, how), Block(4, how), Block(8, how)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(self.enter(x))
        low = self.bottom(nn.functional.avg_pool2d(first, 2))
        low = nn.functional.interpolate(low, scale_factor=2)
        return self.leave(self.up(torch.cat([first, low], 1)))


def test_segmentation() -> None:
    images = normal(310, 1, 6, 6)
    masks = (images + 0.3 * normal(310, 1, 6, 6, seed=1) > 0).float()
    with pytest.raises(UsageError, match="classification"):
        audit(UNet({"method": "euler"}), (images, masks), methods=())
    fine = UNet({"method": "rk4", "options": {"step_size": 1 / 64}}).double()
    exact = fine(images.double()) > 0
    for how, verdict in (
        ({"method": "euler", "options": {"step_size": 0.5}}, "solver-dependent"),
        ({"rtol": 1e-6, "atol": 1e-6}, "ode"),
    ):
        model = UNet(how)
        found = recipe("Segmentation", model=model, images=images, masks=masks)
        flips = (model(images) > 0) != exact
        assert (found.n, found.verdict) == (310, verdict)
        assert found.decision.counts.share == pytest.approx(float(flips.double().mean()), abs=2e-4)
        assert found.metric == pytest.approx(float(((model(images) > 0) == masks).double().mean()))


def test_logits_of_the_shape_of_the_targets_are_one_for_each() -> None:
    """Pixels without a dimension of channels, and several labels of a sample."""
    images = normal(310, 1, 6, 6)
    masks, how = (images > 0).float(), {"method": "euler", "options": {"step_size": 0.5}}
    by_channel = audit(UNet(how), (images, masks), task="classification", methods=())
    flat = audit(
        UNet(how), (images, masks[:, 0]), task="classification", methods=(),
        call=lambda model, batch: model(batch[0])[:, 0],
    )  # fmt: skip
    assert flat.decision == by_channel.decision
    labels = audit(
        UNet(how), (images, masks.flatten(1)), task="classification", methods=(),
        call=lambda model, batch: model(batch[0]).flatten(1),
    )  # fmt: skip
    assert labels.decision == by_channel.decision


# Signs.


class Sign(nn.Module):
    """Turns the plane; its output is a coordinate."""

    def __init__(self, steps: int, method: str) -> None:
        super().__init__()
        self.turn = nn.Parameter(2 * ROTATION)
        self.how = {"method": method, "options": {"step_size": 1 / steps}}

    def forward(self, x: Tensor) -> Tensor:
        t = torch.tensor([0.0, 1.0]).to(x)
        return odeint(lambda t, z: z @ self.turn.T, x, t, **self.how)[-1][:, 0]


@pytest.mark.parametrize(("steps", "method", "verdict"), [
    (4, "rk4", "ode"), (2, "euler", "solver-dependent"),
])  # fmt: skip
def test_labels_minus_one_and_one(steps: int, method: str, verdict: str) -> None:
    x, model = normal(400, 2), Sign(steps, method)
    exact = x.double() @ torch.linalg.matrix_exp(2 * ROTATION.double()).T[:, 0]
    y = exact.sign().float()
    found = recipe("Labels −1 and 1", model=model, x=x, y=y)
    flips = int((model(x).sign() != y).sum())
    assert (found.n, found.flips, found.verdict) == (400, flips, verdict)
    assert (found.metric, found.metric_exact) == (pytest.approx(1 - flips / 400), 1.0)
    with pytest.raises(Exception, match=r"torch\.sign"):
        audit(model, (x, y.long()), methods=())


# One trajectory, as in the demo of torchdiffeq.


class Spiral(nn.Module):
    """``y' = a R y``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.a * y @ ROTATION.to(y).T


@pytest.mark.parametrize(("points", "end", "verdict"), [
    (401, 1.0, "ode"), (101, 10.0, "solver-dependent"),
])  # fmt: skip
def test_one_trajectory(points: int, end: float, verdict: str) -> None:
    """Euler multiplies by 1 + i a h in each step."""
    t, y0 = torch.linspace(0.0, end, points), torch.tensor([[1.0, 0.0]])
    angle = 1.1 * t
    y, func = torch.stack([angle.cos(), angle.sin()], 1)[None], Spiral()
    found = recipe("One trajectory", func=func, y0=y0, y=y, t=t)
    path, gradient = found.decision.counts.trajectory, found.gradient
    assert found.verdict == verdict
    assert path is not None
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    h = end / (points - 1)
    number = torch.arange(points, dtype=torch.float64)
    radius, phase = (1 + (a * h) ** 2) ** (number / 2), number * torch.atan(a * h)
    own = torch.stack([radius * phase.cos(), radius * phase.sin()], 1)
    exact = torch.stack([(a * t.double()).cos(), (a * t.double()).sin()], 1)
    gap = (own - exact).square().mean(1).sqrt() / 0.05
    torch.testing.assert_close(path.error, gap.detach(), rtol=0.01, atol=1e-3)
    assert path.horizon == float(t[gap <= 1][-1])
    one, other = (
        torch.autograd.grad((each - y[0].double()).square().mean(), a)[0] for each in (own, exact)
    )
    assert gradient is not None
    assert gradient.own == pytest.approx(abs(float(one)), rel=1e-4)
    assert gradient.exact == pytest.approx(abs(float(other)), rel=1e-4)
    assert gradient.relative == pytest.approx(abs(float(one / other) - 1), rel=1e-3)
    assert gradient.angle == pytest.approx(0.0 if one * other > 0 else 180.0, abs=1e-6)
    assert gradient.error < 1e-3
    assert any("gradient" in note for note in found.notes)
    assert func.a.grad is None


# Known jumps: doses.


class Doses(nn.Module):
    """A drug that decays, and is given again at known times."""

    def __init__(self, library: str, how: Any) -> None:
        super().__init__()
        self.rate, self.library, self.how = nn.Parameter(torch.tensor(2.0)), library, how

    def solve(self, z: Tensor, t: Tensor) -> Tensor:
        if self.library == "torchdiffeq":
            return odeint(lambda t, z: -self.rate * z, z, t, **self.how)
        numerics = pytest.importorskip("torchdyn.numerics")
        return numerics.odeint(lambda t, z: -self.rate * z, z, t, self.how)[1]

    def forward(self, dose: Tensor, t: Tensor) -> Tensor:
        z, states = torch.zeros_like(dose), [torch.zeros_like(dose)]
        for start, end in pairwise(t):
            z = self.solve(z + dose, torch.stack([start, end]))[-1]
            states.append(z)
        return torch.stack(states, 1)


@pytest.mark.parametrize(("library", "how", "verdict"), [
    ("torchdiffeq", {"method": "rk4"}, "ode"),
    ("torchdiffeq", {"method": "euler"}, "solver-dependent"),
    ("torchdyn", "rk4", "ode"),
    ("torchdyn", "euler", "solver-dependent"),
])  # fmt: skip
def test_known_jumps(library: str, how: Any, verdict: str) -> None:
    pytest.importorskip("torchdyn.numerics")
    t = torch.tensor([0.0, 0.1, 0.3, 0.35, 0.6])
    dose, model = normal(320, 1).abs(), Doses(library, how)
    z = torch.zeros_like(dose).double()
    exact = [z]
    for start, end in pairwise(t.double()):
        z = (z + dose) * (-2.0 * (end - start)).exp()
        exact.append(z)
    y = torch.stack(exact, 1)
    found = recipe("Known jumps", model=model, dose=dose, y=y.float(), t=t)
    assert (found.n, found.verdict) == (320, verdict)
    assert found.exact is not None
    torch.testing.assert_close(found.exact.outputs, y, rtol=1e-4, atol=1e-6)


# Events: a ball that bounces, as in the example of torchdiffeq.


class Ball(nn.Module):
    """Falls from rest, and loses a tenth of its speed at each of three bounces."""

    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__()
        self.gravity, self.how = nn.Parameter(torch.tensor(9.8)), how

    def field(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state[1], -self.gravity.expand_as(state[1])

    def forward(self, height: Tensor) -> tuple[Tensor, Tensor]:
        t, state = torch.zeros(1).to(height), (height, torch.zeros_like(height))
        for _ in range(3):
            t, states = odeint_event(
                self.field, state, t, event_fn=lambda t, state: state[0], **self.how
            )
            position, speed = (each[-1] for each in states)
            state = position + 1e-7, -0.9 * speed
        return t, torch.cat(state)


@pytest.mark.parametrize(("how", "verdict"), [
    ({"rtol": 1e-6, "atol": 1e-8}, "ode"),
    ({"method": "rk4", "options": {"step_size": 0.05}}, "ode"),
    ({"method": "euler", "options": {"step_size": 0.05}}, "solver-dependent"),
])  # fmt: skip
def test_events(how: dict[str, Any], verdict: str) -> None:
    height, model = 1 + normal(3, 1).double().abs(), Ball(how).double()
    found = recipe("Events", model=model, height=height)
    gravity = float(model.gravity.detach())
    speed = (2 * gravity * height).sqrt()
    time = speed / gravity * (1 + 2 * 0.9 + 2 * 0.81)
    exact = torch.cat([time, torch.zeros_like(time), 0.9**3 * speed], 1)
    assert found.exact is not None
    torch.testing.assert_close(found.exact.outputs, exact, rtol=1e-5, atol=1e-5)
    own = torch.stack([torch.cat([t.reshape(1), state]) for t, state in map(model, height)])
    gap = ((own - exact) / 0.01).square().mean(1).sqrt()
    assert (found.n, found.flips, found.verdict) == (3, int((gap > 1).sum()), verdict)


# Times, shared steps, and solvers written by hand.


class Series(nn.Module):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.turn, self.method = nn.Parameter(3 * ROTATION), method

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return odeint(lambda t, z: z @ self.turn.T, x, t, method=self.method).transpose(0, 1)


@pytest.mark.parametrize(("method", "verdict"), [("rk4", "ode"), ("euler", "solver-dependent")])
@pytest.mark.parametrize("last", [30, 11], ids=["as many rows as times in none", "in one batch"])
def test_times_that_all_samples_share(method: str, verdict: str, last: int) -> None:
    t, model = torch.linspace(0.0, 1.0, 11), Series(method)
    turns = torch.linalg.matrix_exp(3 * t.double()[:, None, None] * ROTATION.double())
    batches = []
    for k, n in enumerate((300, last)):
        x = normal(n, 2, seed=k)
        batches.append((x, torch.einsum("tij,nj->nti", turns, x.double())))
    found = recipe("Times that all samples share", model=model, loader=batches, t=t)
    assert (found.n, found.verdict) == (300 + last, verdict)
    assert next(x for x in found.preconditions if x.name == "independent samples").holds
    exact = torch.cat([y for _, y in batches])
    scale = (exact - exact.mean((0, 1))).square().mean((0, 1)).sqrt()
    own = torch.cat([model(x, t) for x, _ in batches]).double()
    residual = (own - exact).square().mean((0, 1)).sqrt()
    gap = ((own - exact) / torch.maximum(0.01 * scale, 0.1 * residual)).square().mean((1, 2)).sqrt()
    assert found.flips == int((gap > 1).sum())


class Switched(nn.Module):
    """A stiffness of each sample, and an adaptive solver with a loose tolerance."""

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.turn, self.tolerance = nn.Parameter(3 * ROTATION), tolerance

    def forward(self, x: Tensor) -> Tensor:
        t = torch.tensor([0.0, 1.0]).to(x)
        rate = 1 + x.square().sum(1, keepdim=True)
        how = {"rtol": self.tolerance, "atol": self.tolerance}
        return odeint(lambda t, z: rate * (z @ self.turn.T), x, t, **how)[-1]


@pytest.mark.parametrize(("tolerance", "verdict"), [(1e-5, "ode"), (0.3, "solver-dependent")])
def test_batches_that_share_their_steps(tolerance: float, verdict: str) -> None:
    x, model = 0.5 * normal(320, 2), Switched(tolerance)
    angle = (3 * (1 + x.double().square().sum(1)))[:, None, None]
    y = (torch.linalg.matrix_exp(angle * ROTATION.double()) @ x.double()[..., None])[..., 0]
    found = recipe("Batches that share their steps", model=model, x=x, y=y.argmax(1))
    assert (found.n, found.verdict) == (320, verdict)
    own = torch.cat([model(part) for part in x.split(32)]).argmax(1)
    halves = [model(half) for part in x.split(32) for half in part.chunk(2)]
    assert found.flips == int((own != y.argmax(1)).sum())
    assert found.reasons is not None
    assert found.reasons.halved == int((own != torch.cat(halves).argmax(1)).sum())
    assert bool(found.reasons.halved) == (verdict == "solver-dependent")


def test_a_solver_written_by_hand() -> None:
    x, turn = normal(400, 2), 3 * ROTATION

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z @ turn.to(z).T

    def by_hand(z: Tensor) -> Tensor:
        h = 0.1
        for k in range(10):
            z = z + h * field(torch.tensor(k * h), z)
        return z

    def replaced(z: Tensor) -> Tensor:
        scope: dict[str, Any] = {"field": field, "z": z}
        exec(compile(code("A solver written by hand"), "recipe", "exec"), scope)
        found: Tensor = scope["z"]
        return found

    y = (x.double() @ torch.linalg.matrix_exp(turn.double()).T).argmax(1)
    with pytest.raises(UsageError) as raised:
        audit(by_hand, (x, y))
    assert str(raised.value) == NO_SOLVER
    torch.testing.assert_close(replaced(x), by_hand(x))
    found = audit(replaced, (x, y), methods=())
    flips = int((by_hand(x).argmax(1) != y).sum())
    assert (found.flips, found.verdict) == (flips, "solver-dependent")
    fine = solve(field, x, solver=FixedStep("rk4", n_steps=20)).z
    assert torch.equal(fine.argmax(1), y)
