"""Fields as people write them: which are layers, and which only look like it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.5
CALLS: list[float] = []


def net(width: int = 2, more: int = 0, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width + more, 8), act(), nn.Linear(8, 6), act(), nn.Linear(6, width)
    )


class Net(nn.Module):
    def __init__(self, more: int = 0, act: type[nn.Module] = nn.Tanh, **attributes: Any) -> None:
        super().__init__()
        self.net = net(more=more, act=act)
        for name, value in attributes.items():
            setattr(self, name, value)


class Autonomous(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)  # type: ignore[no-any-return]


class LayerByLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.act = nn.ELU()  # not used

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x = F.softplus(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class Methods(LayerByLayer):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x).sigmoid()).relu())  # type: ignore[no-any-return]


class Helper(LayerByLayer):
    def hidden(self, x: Tensor, depth: int = 1) -> Tensor:
        for layer in (self.fc2,) * depth:
            x = self.squash(layer(x))
        return x

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        return F.silu(x)

    @property
    def last(self) -> nn.Linear:
        return self.fc3

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.last(self.hidden(torch.relu(self.fc1(x)), depth=2))  # type: ignore[no-any-return]


class Swish(LayerByLayer):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(x)
        return self.fc3(F.leaky_relu(self.fc2(x)))  # type: ignore[no-any-return]


class TimeLast(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.expand(y.shape[0], 1)], dim=-1))  # type: ignore[no-any-return]


class TimeFirst(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        clock = torch.ones_like(y[:, :1]) * t
        return self.net(torch.cat((clock, y), 1))  # type: ignore[no-any-return]


class TimeOnes(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        clock = t * torch.ones(y.size(0), 1, dtype=y.dtype, device=y.device)
        return self.net(torch.cat([y, 2 * clock - 1], -1))  # type: ignore[no-any-return]


class TimeFull(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.full_like(y[..., 0:1], 1.0) * t], -1))  # type: ignore[no-any-return]


class TimeRepeated(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.view(1, 1).repeat(len(y), 1)], -1))  # type: ignore[no-any-return]


class ConcatEverywhere(nn.Module):
    """The time beside the input of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a + 1, b) for a, b in ((2, 8), (8, 8), (8, 2)))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = (
                layer(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))
                if i == 0
                else layer(torch.cat([t * torch.ones(x.shape[0], 1).to(x), x], 1))
            )
            if i < len(self.layers) - 1:
                x = torch.tanh(x)
        return x


class TimeAdded(LayerByLayer):
    def __init__(self) -> None:
        super().__init__()
        self.clock = nn.Linear(1, 8)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x) + self.clock(t.reshape(1, 1)))
        x = torch.tanh(self.fc2(x) + t)
        return self.fc3(x) - 0.5 * t  # type: ignore[no-any-return]


class Scaled(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.net(2 * y) / 3 * SCALE * self.factor  # type: ignore[no-any-return]


class ScaledByParameter(Net):
    def __init__(self) -> None:
        super().__init__(factor=nn.Parameter(torch.tensor(0.7)))
        self.register_buffer("unit", torch.tensor([1.5]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.factor * self.net(y * self.unit)  # type: ignore[no-any-return]


class Bounded(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * torch.tanh(self.net(torch.sigmoid(y)))


class Cubed(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)  # type: ignore[no-any-return]


class Matrices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8))
        self.c = nn.Parameter(torch.randn(2, 8))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return F.linear(torch.relu(y @ self.a + self.b), self.c)


class Addmm(Matrices):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.mm(torch.addmm(self.b, y, self.a).tanh(), self.c.t())


class NotRegistered(nn.Module):
    """A linear system with a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(y, self.matrix)


class Convolutions(nn.Module):
    def __init__(
        self, width: int = 3, conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d, hidden: int = 6
    ) -> None:
        super().__init__()
        self.conv1 = conv(2, hidden, 1)
        self.conv2 = conv(hidden, hidden, width, padding=width // 2)
        self.conv3 = conv(hidden, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.conv3(x)  # type: ignore[no-any-return]


class ConvolvedTime(nn.Module):
    def __init__(self, conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6, 1), conv(6, 2, 3, padding="same")

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1]) * t], 1)
        return self.conv2(torch.tanh(self.conv1(x)))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(width=10)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x.view(x.size(0), -1)).view_as(x)  # type: ignore[no-any-return]


class Rows(Net):
    """The same layers for each position of a signal."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x).contiguous()  # type: ignore[no-any-return]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Autonomous()
        self.drop = nn.Dropout(0.5).eval()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drop(self.inner(t, y))  # type: ignore[no-any-return]


class Inherited(Autonomous):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return 2 * super().forward(t, y)


class Flag(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.with_time:
            y = torch.cat([y, t.expand(len(y), 1)], 1)
        out = self.net(y)
        if self.training and self.bounded:
            out = torch.tanh(out)
        return out  # type: ignore[no-any-return]


class Closing(nn.Module):
    """A whole model: its field is a function that closes over it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 2)
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(float(x.sum()))
        return self.encoder(x)[0]  # type: ignore[no-any-return]

    def field(self) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: self.net(y)

    def dynamics(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)  # type: ignore[no-any-return]


class Given(NamedTuple):
    """A field, with the shape of a sample of its state."""

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...] = (2,)


def _function() -> Callable[[Tensor, Tensor], Tensor]:
    layers = net()

    def field(t: Tensor, y: Tensor, layers: nn.Module = layers) -> Tensor:
        return layers(y)  # type: ignore[no-any-return]

    return field


def _nested_function() -> Callable[[Tensor, Tensor], Tensor]:
    layers = net(more=1)

    def join(t: Tensor, y: Tensor) -> Tensor:
        parts = [y]
        parts.append(t.expand(y.shape[0], 1))
        return torch.cat(parts, 1)

    return lambda t, y: layers(join(t, y))


LAYERS = [
    Given("sequential in a module", Autonomous),
    *(
        Given(f"module {act.__name__}", lambda act=act: Autonomous(act=act))
        for act in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.GELU)
    ),
    Given("layer by layer", LayerByLayer),
    Given("activations as methods", Methods),
    Given("helpers and properties", Helper),
    Given("x times sigmoid(x)", Swish),
    Given("time last", lambda: TimeLast(more=1)),
    Given("time first", lambda: TimeFirst(more=1)),
    Given("time scaled", lambda: TimeOnes(more=1)),
    Given("time by full_like", lambda: TimeFull(more=1)),
    Given("time repeated", lambda: TimeRepeated(more=1)),
    Given("time at every layer", ConcatEverywhere),
    Given("time added", TimeAdded),
    Given("scaled", lambda: Scaled(factor=-1)),
    Given("scaled by a parameter", ScaledByParameter),
    Given("activation first and last", Bounded),
    Given("cubed", Cubed),
    Given("matrices", Matrices),
    Given("addmm", Addmm),
    Given("a tensor that is no buffer", NotRegistered),
    Given("convolutions", Convolutions, (2, 5)),
    Given("convolutions, five taps", lambda: Convolutions(5), (2, 3)),
    Given("convolutions with time", ConvolvedTime, (2, 4)),
    Given("convolutions of images", lambda: Convolutions(conv=nn.Conv2d), (2, 5, 4)),
    Given("convolutions of pixels", lambda: Convolutions(1, nn.Conv2d), (2, 3, 2)),
    Given("convolutions of images with time", lambda: ConvolvedTime(nn.Conv2d), (2, 3, 6)),
    Given("flattened signals", Flattened, (5, 2)),
    Given("rows of a signal", Rows, (3, 2)),
    Given("nested modules, dropout off", Nested),
    Given("inherited", Inherited),
    Given("flag off", lambda: Flag(with_time=False, bounded=False)),
    Given("flags on", lambda: Flag(more=1, with_time=True, bounded=True)),
    Given("closing over a model", lambda: Closing().field()),
    Given("method of a model", lambda: Closing().dynamics),
    Given("function with default", _function),
    Given("nested functions", _nested_function),
]


class Counting(Autonomous):
    nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(y)  # type: ignore[no-any-return]


class CountingBuffer(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y)  # type: ignore[no-any-return]


class Logging(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.log.append(0)
        return self.net(y)  # type: ignore[no-any-return]


class GlobalList(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        CALLS.append(1.0)
        return self.net(y)  # type: ignore[no-any-return]


class Printing(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        print("called")
        return self.net(y)  # type: ignore[no-any-return]


class Branching(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) if t < 0.5 else -self.net(y)


class BranchingOnData(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) if bool(y.sum() > 0) else -self.net(y)


class Random(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * random.random()  # type: ignore[no-any-return]


class RandomTensor(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y + 0 * torch.randn_like(y))  # type: ignore[no-any-return]


class Frequencies(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.sin(2 * math.pi * t).expand(len(y), 1)], 1))  # type: ignore[no-any-return]


class Gated(TimeAdded):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.fc3(self.fc1(x) * torch.sigmoid(self.clock(t.view(1, 1))))  # type: ignore[no-any-return]


class Damped(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) - 0.1 * y  # type: ignore[no-any-return]


class Constant(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        CALLS.clear()
        return torch.zeros_like(y)


class Detached(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y.detach())  # type: ignore[no-any-return]


class InPlace(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h = self.net[0](y)
        g = h.view(-1, 8)
        torch.relu_(g)
        return self.net[4](self.net[2](h))  # type: ignore[no-any-return]


class AcrossSamples(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y - y.mean(0))  # type: ignore[no-any-return]


class BatchNorm(Net):
    def __init__(self) -> None:
        super().__init__(norm=nn.BatchNorm1d(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(self.norm(y))  # type: ignore[no-any-return]


class Dropped(Net):
    def __init__(self) -> None:
        super().__init__(drop=nn.Dropout(0.5))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(self.drop(y))  # type: ignore[no-any-return]


class Caught(Net):
    """Catches every error of its calls."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        try:
            return self.net(y * torch.exp(t))  # type: ignore[no-any-return]
        except Exception:
            return self.net(y)  # type: ignore[no-any-return]


class Indexed(Net):
    def __getitem__(self, item: int) -> Tensor:
        CALLS.append(1.0)
        return torch.zeros(())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self[0]
        return self.net(y)  # type: ignore[no-any-return]


class Dilated(nn.Module):
    def __init__(
        self,
        conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d,
        width: int | tuple[int, int] = 3,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.conv = conv(2, 2, width, **settings)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class SumOfTwo(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) + self.net[4](self.net[2](self.net[0](y)))  # type: ignore[no-any-return]


class Written(Net):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.net(y)
        out[:, 0] = 0.0
        return out  # type: ignore[no-any-return]


class WrittenOut(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.mul(y, 1.0, out=self.seen))  # type: ignore[no-any-return]


class CallableObject:
    def __init__(self) -> None:
        self.net, self.calls = net(), 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y)  # type: ignore[no-any-return]


def _hooked() -> nn.Module:
    field = Autonomous()
    field.net[1].register_forward_hook(lambda module, args, result: 2 * result)
    return field


def _normed() -> nn.Module:
    field = Autonomous()
    nn.utils.parametrizations.weight_norm(field.net[0])
    return field


def _counting_function() -> Callable[[Tensor, Tensor], Tensor]:
    layers, calls = net(), 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return layers(y)  # type: ignore[no-any-return]

    return field


OTHERS = [
    Given("counter", Counting),
    Given("counter in a buffer", lambda: CountingBuffer(calls=torch.zeros(()))),
    Given("log", lambda: Logging(log=[])),
    Given("log in a global list", GlobalList),
    Given("counter in a closure", _counting_function),
    Given("print", Printing),
    Given("branch on the time", Branching),
    Given("branch on the state", BranchingOnData),
    Given("random number", Random),
    Given("random tensor", RandomTensor),
    Given("sine of the time", lambda: Frequencies(more=1)),
    Given("gate of the time", Gated),
    Given("damped", Damped),
    Given("constant", Constant),
    Given("detached", Detached),
    Given("overwritten", InPlace),
    Given("across samples", AcrossSamples),
    Given("batch norm", BatchNorm),
    Given("dropout", Dropped),
    Given("errors caught", Caught),
    Given("special method", Indexed),
    Given("dilation", lambda: Dilated(padding=2, dilation=2), (2, 5)),
    Given("circular padding", lambda: Dilated(padding=1, padding_mode="circular"), (2, 5)),
    Given("groups", lambda: Dilated(padding=1, groups=2), (2, 5)),
    Given("images, dilation", lambda: Dilated(nn.Conv2d, padding=2, dilation=2), (2, 5, 4)),
    Given("images, groups", lambda: Dilated(nn.Conv2d, padding=1, groups=2), (2, 5, 4)),
    Given("images, five taps", lambda: Dilated(nn.Conv2d, 5, padding=2), (2, 5, 4)),
    Given("images, rows", lambda: Dilated(nn.Conv2d, (1, 3), padding=(0, 1)), (2, 5, 4)),
    Given(
        "images, circular",
        lambda: Dilated(nn.Conv2d, padding=1, padding_mode="circular"),
        (2, 5, 4),
    ),
    Given("sum of two", SumOfTwo),
    Given("part written", Written),
    Given("written to a buffer", WrittenOut),
    Given("object with __call__", CallableObject),
    Given("hook", _hooked),
    Given("weight norm", _normed),
]
