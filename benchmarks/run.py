"""Speed and memory against torchdiffeq, torchode and diffrax, in one run, as ratios: ``make bench`` prints Markdown.

A training step is forward, loss, backward and Adam. Times are medians; each side runs at its best of 1 and 2 threads.
Sides take turns, so that a slow moment of the machine meets all; diffrax has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchdiffeq import odeint

from trueode.auditing import audit
from trueode.data.spheres import concentric_spheres
from trueode.fields import Autocast, build_field
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Checkpoint, FixedStep, Solver, solve

ROOT = Path(__file__).resolve().parents[1]
Step = Callable[[], object]


class PlainField(nn.Module):
    """The same network written with torch's layers only: what a user of torchdiffeq writes."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


class PlainModel(nn.Module):
    """A classifier written as for torchdiffeq, with Euler steps of 1/64."""

    def __init__(self, field: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.field, self.head = field, head

    def forward(self, x: Tensor) -> Tensor:
        states = odeint(self.field, x, torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 1 / 64})
        return self.head(states[-1].flatten(1))


def conv_field(dims: int, channels: int, hidden: int) -> PlainField:
    conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d if dims == 1 else nn.Conv2d
    middle = conv(hidden, hidden, 3, padding=1)
    return PlainField(conv(channels, hidden, 1), nn.ReLU(), middle, nn.ReLU(), conv(hidden, channels, 1))


def dense_field(width: int, hidden: int) -> PlainField:
    return PlainField(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


def training_step(forward: Callable[[Tensor], Tensor], modules: list[nn.Module], x: Tensor, classes: int) -> Step:
    head = nn.Linear(x[0].numel(), classes)
    optimizer = torch.optim.Adam([p for m in (*modules, head) for p in m.parameters()], lr=1e-4, fused=True)
    labels = torch.arange(len(x)) % classes

    def step() -> None:
        loss = F.cross_entropy(head(forward(x).flatten(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(field: nn.Module, x: Tensor, classes: int, solver: Solver) -> Step:
    return training_step(NeuralODE(field, solver=solver), [field], x, classes)


def theirs(field: nn.Module, x: Tensor, classes: int, **options: object) -> Step:
    times = torch.tensor([0.0, 1.0])
    return training_step(lambda z: odeint(field, z, times, **options)[-1], [field], x, classes)


def medians(steps: list[Step], seconds: float) -> list[float]:
    """Median time of each step in milliseconds, at the best of 1 and 2 threads.

    The steps take turns of a quarter of a second; the first of a turn, when threads of another one may still be awake,
    does not count.
    """
    best = [float("inf")] * len(steps)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times: list[list[float]] = [[] for _ in steps]
        for step in steps:
            step()
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds * len(steps) / 2 or len(times[-1]) < 5:
            for step, taken in zip(steps, times, strict=True):
                step()
                turn = start = time.perf_counter()
                while start - turn < 0.25:
                    step()
                    end = time.perf_counter()
                    taken.append(1e3 * (end - start))
                    start = end
        best = [min(a, statistics.median(b)) for a, b in zip(best, times, strict=True)]
    return best


def through_torchode(field: nn.Module, x: Tensor, classes: int) -> Step:
    """dopri5 with tolerances of 1e-5 under torchode, each sample by itself, as it does."""
    term = torchode.ODETerm(field)
    controller = torchode.IntegralController(atol=1e-5, rtol=1e-5, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    ends = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    def flow(z: Tensor) -> Tensor:
        problem = torchode.InitialValueProblem(y0=z, t_eval=ends)
        return solver.solve(problem).ys[:, -1]

    return training_step(flow, [field], x, classes)


def swap_step(solve_it: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """What an audit does: a solve without gradients."""

    def step() -> None:
        with torch.no_grad():
            solve_it(x)

    return step


def time_rows(seconds: float) -> Iterator[tuple[str, str, float, float, float]]:
    """Rows (work, peer, its ms, those of trueode, least ratio wanted)."""
    sphere, many, image = torch.randn(128, 1, 2), torch.randn(1000, 1, 2), torch.rand(32, 3, 32, 32)
    times = torch.tensor([0.0, 1.0])
    tight = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    build = build_field

    def steps(method: str, n: int) -> dict[str, object]:
        return {"method": method, "options": {"step_size": 1 / n}}

    def sphere2(solver: Solver) -> Step:
        return ours(build("simple_odenet", (1, 2), 32, "relu"), sphere, 2, solver)

    jax = diffrax(seconds)
    name = "Sphere2 simple_odenet (Conv1d, C = 32), batch 128, Euler h = 1/64"
    peer, own = medians(
        [theirs(conv_field(1, 1, 32), sphere, 2, **steps("euler", 64)), sphere2(FixedStep("euler", n_steps=64))],
        seconds,
    )
    yield name, "torchdiffeq", peer, own, 30.0
    if jax:
        yield "the same", "diffrax, jitted", jax["euler"], own, 5.0
    # torchdiffeq's rk4 is the 3/8 rule: as many evaluations
    peer, own = medians(
        [theirs(conv_field(1, 1, 32), sphere, 2, **steps("rk4", 16)), sphere2(FixedStep("rk4", n_steps=16))], seconds
    )
    yield "the same, rk4 h = 1/16", "torchdiffeq", peer, own, 30.0
    flat = sphere.flatten(1)
    sides = [
        theirs(dense_field(2, 64), flat, 2, **tight),
        through_torchode(dense_field(2, 64), flat, 2),
        ours(build("linear_odenet", (1, 2), 64, "relu"), sphere, 2, Adaptive("dopri5", 1e-5, 1e-5)),
    ]
    peer, other, own = medians(sides, seconds)
    name = "dense field 2-64-64-2, batch 128, dopri5, tol 1e-5"
    yield name, "torchdiffeq", peer, own, 8.0
    yield "the same", "torchode", other, own, 10.0
    if jax:
        yield "the same", "diffrax, jitted", jax["dopri5"], own, 4.0
    theirs_field, own_model = (
        conv_field(1, 1, 32),
        NeuralODE(build("simple_odenet", (1, 2), 32, "relu"), solver=FixedStep("rk4", n_steps=256)),
    )
    sides = [
        swap_step(lambda z: odeint(theirs_field, z, times, **steps("rk4", 256))[-1], many),
        swap_step(own_model, many),
    ]
    peer, own = medians(sides, seconds)
    yield "forward of an audit: 1000 points, rk4 h = 1/256", "torchdiffeq", peer, own, 12.0
    low = Autocast(build("odenet", (3, 32, 32), 64, "relu"), torch.bfloat16)
    sides = [
        theirs(conv_field(2, 3, 64), image, 10, **steps("euler", 16)),
        ours(build("odenet", (3, 32, 32), 64, "relu"), image, 10, FixedStep("euler", n_steps=16)),
        ours(low, image, 10, FixedStep("euler", n_steps=16)),
    ]
    peer, own, rounded = medians(sides, seconds)
    yield "CIFAR-shaped odenet (Conv2d, C = 64), batch 32, Euler h = 1/16", "torchdiffeq", peer, own, 1.4
    yield "the same in bfloat16", "torchdiffeq, float32", peer, rounded, 2.7


def diffrax(seconds: float) -> dict[str, float]:
    """Milliseconds of the training steps through diffrax, in a process of its own; none where it is not installed."""
    if find_spec("diffrax") is None:
        print("(diffrax is not installed: its rows are left out)", file=sys.stderr)
        return {}
    command = [sys.executable, str(ROOT / "benchmarks" / "peer_diffrax.py"), str(seconds)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def process_row(repeats: int) -> tuple[float, float]:
    """Median seconds of ``import torch`` and of the default job, as whole processes."""
    imports, jobs = [], []
    with tempfile.TemporaryDirectory() as folder:
        job = [sys.executable, str(ROOT / "train.py"), "--output_dir", folder, "--data_dir", folder]
        for _ in range(repeats + 1):  # the first round warms the disk and makes the data
            for command, times in (([sys.executable, "-c", "import torch"], imports), (job, jobs)):
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                times.append(time.perf_counter() - start)
    return statistics.median(imports[1:]), statistics.median(jobs[1:])


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most that ever were.

    The memory of the process says less: what an allocator keeps of freed tensors varies from run to run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and (address := x.untyped_storage().data_ptr()) not in self._known:
                size = x.untyped_storage().nbytes()
                self._known.add(address)
                self.alive += size
                self.peak = max(self.peak, self.alive)
                weakref.finalize(x.untyped_storage(), self._freed, address, size)
        return result

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.alive -= size


def memory_row() -> tuple[float, float]:
    """Peak MiB of a CIFAR-shaped step with h = 1/64, beyond what is there before: through torchdiffeq, under `Checkpoint`."""
    image, times, step = torch.rand(32, 3, 32, 32), torch.tensor([0.0, 1.0]), {"step_size": 1 / 64}
    plain, field = conv_field(2, 3, 64), build_field("odenet", (3, 32, 32), 64, "relu")
    with PeakMemory() as theirs:
        odeint(plain, image, times, method="euler", options=step)[-1].sum().backward()
    with PeakMemory() as ours:
        solve(field, image, solver=FixedStep("euler", n_steps=64), gradient=Checkpoint()).z.sum().backward()
    return theirs.peak / 2**20, ours.peak / 2**20


def audit_row(iterations: int) -> tuple[float, float]:
    """Seconds of training iterations through torchdiffeq (Euler, h = 1/64), and of the audit of that model, on one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    points, labels = map(torch.from_numpy, concentric_spheres(4000, 2, np.random.default_rng(0)))
    x, model = points.float(), PlainModel(conv_field(1, 1, 32), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = iter(torch.randint(0, 3000, (10_000, 128)))

    def step() -> None:
        chosen = next(steps)
        loss = F.cross_entropy(model(x[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def seconds(work: Step) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    peer = sum(seconds(step) for _ in range(iterations))
    own = min(seconds(lambda: audit(model, (x[-1000:], labels[-1000:]))) for _ in range(2))
    return peer, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="time spent on each row and number of threads")
    arguments = parser.parse_args()
    print("| training step | against | theirs | trueode | ratio | wanted |\n|---|---|---|---|---|---|", flush=True)
    for name, against, peer, own, wanted in time_rows(arguments.seconds):
        print(
            f"| {name} | {against} | {peer:.1f} ms | {own:.2f} ms | {peer / own:.1f} x | ≥ {wanted:g} x |", flush=True
        )
    bare, job = process_row(3)
    print("\n| whole process | import torch | default job | ratio | wanted |\n|---|---|---|---|---|")
    print(f"| `python train.py` | {bare:.2f} s | {job:.2f} s | {job / bare:.1f} x | ≤ 2.5 x |", flush=True)
    peer, own = audit_row(200)
    print(
        "\n| audit | 200 training iterations, torchdiffeq | audit of 1000 samples | ratio | wanted |\n|---|---|---|---|---|"
    )
    print(f"| Sphere2, Euler h = 1/64 | {peer:.1f} s | {own:.1f} s | {own / peer:.2f} x | ≤ 1 x |", flush=True)
    peer, own = memory_row()
    print(
        "\n| memory of tensors | back-propagation, torchdiffeq | `Checkpoint` | ratio | wanted |\n|---|---|---|---|---|"
    )
    print(f"| CIFAR-shaped step, Euler h = 1/64 | {peer:.1f} MiB | {own:.1f} MiB | {own / peer:.2f} x | ≤ 0.1 x |")


if __name__ == "__main__":
    main()
