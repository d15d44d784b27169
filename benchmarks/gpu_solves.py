"""Sections of `gpu.py` that ask whether solves are right, and how often the host waits for them."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_bench import Bench, MissingError, Row, away, drawn, float32_is, need, trouble
from gpu_runs import trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

FIELDS = {
    "dense": ("linear_odenet", (2,)),
    "signal": ("simple_odenet", (1, 2)),
    "image": ("odenet", (3, 8, 8)),
}
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-12}  # TF32 is about 3e-4 away, bfloat16 3e-3
KINDS = (*FIELDS, "a run with the paper's rule")
REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


# --- parity


def parity(bench: Bench) -> None:
    """Solves and gradients against float64 on the CPU, with the same steps; precisions."""
    from trueode.catalog import METHODS

    methods = bench.size(list(METHODS), ["rk4", "dopri5"])
    for method, dtype in product(methods, LIMITS):
        name = f"{method}, {str(dtype).removeprefix('torch.')}"
        bench.row(name, partial(compared, bench, method, dtype))
    for precision in ("float32", "tf32", "bf16"):
        bench.row(
            f"a training step with --precision {precision}",
            partial(precision_of_training, bench, precision),
        )


def compared(bench: Bench, method: str, dtype: torch.dtype) -> Row:
    """The largest distance over fields and gradients."""
    from trueode.catalog import METHODS
    from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep

    adaptive = METHODS[method].kind == "adaptive"
    kinds = [False, True] if adaptive else [False]
    found: dict[str, float] = {}
    gradients = (Backprop(), Checkpoint(), Adjoint())
    cases = list(product(FIELDS.items(), (False, True), gradients, kinds))
    for (name, (network, shape)), timed, gradient, per_sample in cases[:: bench.size(1, 5)]:
        continuous = isinstance(gradient, Adjoint)
        if adaptive and continuous and (dtype == torch.float32 or per_sample):
            continue  # its backward steps follow the rounding of the forward ones
        solver: Any = FixedStep(method, n_steps=bench.size(8, 3))
        if adaptive:
            solver = Adaptive(method, 1e-3, 1e-3, per_sample=per_sample)
        what = f"{name}{', timed' if timed else ''}, {type(gradient).__name__}"
        what += ", per sample" if per_sample else ""
        own, steps = solved(bench.where, dtype, network, shape, timed, solver, gradient)
        same = solver if continuous else steps
        cpu = torch.device("cpu")
        reference, _ = solved(cpu, torch.float64, network, shape, timed, same, gradient)
        found[what] = max(away(*pair) for pair in zip(own, reference, strict=True))
    worst = max(found, key=lambda what: found[what])
    row: Row = {"solves": len(found), "largest distance": found[worst], "of": worst}
    limit = LIMITS[dtype] * (1e4 if dtype == torch.float64 and adaptive else 1)
    return row if found[worst] <= limit else {**row, "wrong": f"above {limit:.0e}"}


def solved(
    device: torch.device,
    dtype: torch.dtype,
    network: str,
    shape: tuple[int, ...],
    timed: bool,
    solver: Any,
    gradient: Any,
) -> tuple[list[Tensor], Any]:
    """The final state, and the gradients of its squares; a solver that repeats the steps."""
    from trueode.fields import build_field
    from trueode.solvers import solve

    field = build_field(network, shape, 8, "tanh", timed)
    with torch.no_grad():
        for i, parameter in enumerate(field.parameters()):
            weights = drawn(*parameter.shape, seed=i) / max(parameter[0].numel(), 1) ** 0.5
            parameter.copy_(weights)
    field = field.to(device, dtype)
    z0 = drawn(5, *shape, seed=99).to(device, dtype).requires_grad_()
    with float32_is("IEEE"):
        solution = solve(field, z0, solver=solver, gradient=gradient)
        gradients = torch.autograd.grad(solution.z.square().sum(), [z0, *field.parameters()])
    return [solution.z, *gradients], solution.replay()


def precision_of_training(bench: Bench, precision: str) -> Row:
    """How far gradients of a training step are from those in float64."""
    need("pydantic", "yaml")

    if precision == "tf32" and bench.where.type == "cpu":
        raise MissingError("TF32 is a mode of GPUs")
    own, reference = (
        gradients_of_training(bench, each, device)
        for each, device in ((precision, bench.where), ("float64", torch.device("cpu")))
    )
    distance = away(own, reference)
    row: Row = {"largest distance": distance}
    limit = {"float32": LIMITS[torch.float32], "tf32": 1e-2, "bf16": 5e-2}[precision]
    return row if distance <= limit else {**row, "wrong": f"above {limit:.0e}"}


def gradients_of_training(bench: Bench, precision: str, device: torch.device) -> Tensor:
    """All gradients of the first training step of a network of images."""
    trainer = trainer_of(
        bench, device, precision=precision, solver="rk4", n_steps=4, niter=10, images=True
    )
    trainer.run(at_most=1)
    return torch.cat([p.grad.flatten().cpu() for p in trainer.state.model.parameters()])


# --- waits


@contextmanager
def counting(bench: Bench) -> Iterator[Row]:
    """A block in which waits of the host for the device are counted; its end fills the row."""
    row: Row = {}
    places: Counter[str] = Counter()
    if bench.device == "cpu":
        raise MissingError("a CPU waits for no device")
    if bench.device == "pretend":
        from tests.pretend import _device as device

        device.reset()
        yield row
        row["launches"] = device.launches.total()
        for (why, where), n in device.waits.items():
            places[f"{why}: {where}"] += n
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield row
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for each in caught:
            if "synchroniz" in str(each.message):
                places[f"{Path(each.filename).name}:{each.lineno}"] += 1
    row["waits"] = places.total()
    row["most at"] = "; ".join(f"{n} x {where}" for where, n in places.most_common(2))


def waits(bench: Bench) -> None:
    """Waits of solves with their gradients, and of training steps."""
    for method, gradient in product(
        bench.size(("euler", "rk4"), ("euler",)), ("Backprop", "Checkpoint", "Adjoint")
    ):
        bench.row(
            f"{method}, 8 steps, {gradient}",
            partial(waits_of_solve, bench, method, gradient, ""),
        )
    for kind in ("adaptive", "per sample"):
        bench.row(
            f"dopri5, {kind}, Backprop",
            partial(waits_of_solve, bench, "dopri5", "Backprop", kind),
        )
    for images in (False, True):
        bench.row(
            f"training steps, {'images' if images else 'signals'}, Euler",
            partial(waits_of_training, bench, images),
        )


def waits_of_solve(bench: Bench, method: str, gradient: str, kind: str) -> Row:
    from trueode import solvers
    from trueode.fields import build_field

    solver: Any = solvers.FixedStep(method, n_steps=8)
    if kind:
        solver = solvers.Adaptive(method, 1e-3, 1e-3, per_sample=kind == "per sample")
    field = build_field("simple_odenet", (1, 2), 8).to(bench.where)
    z0 = drawn(16, 1, 2).float().to(bench.where)

    def work() -> Any:
        solution = solvers.solve(field, z0, solver=solver, gradient=getattr(solvers, gradient)())
        solution.z.square().mean().backward()
        return solution

    work()  # the first one fills caches
    with counting(bench) as row:
        solution = work()
    steps, rejected = (
        int(x.max()) if isinstance(x, Tensor) else int(x)
        for x in (solution.n_steps, solution.n_rejected)
    )
    return {"attempts": steps + rejected, **row}


def waits_of_training(bench: Bench, images: bool) -> Row:
    """Waits per iteration, of iterations that are not logged."""
    n = bench.size(20, 3)
    trainer = trainer_of(
        bench, bench.where, images=images, niter=10**6, log_interval=10**6, num_threads=0
    )
    trainer.run(at_most=4)
    with counting(bench) as row:
        trainer.run(at_most=n)
    return {"iterations": n, **row}


# --- graphs


def graphs(bench: Bench) -> None:
    """Training with CUDA graphs is training without them, bit for bit."""
    switches = bench.size(("off", "off", "on"), ("off", "on"))
    runs = [bench.apart(all_trained, TRUEODE_GRAPHS=switch, **REPEATABLE) for switch in switches]
    for kind in KINDS:
        bench.row(
            kind,
            partial(equal_in_bits, bench, runs[0][kind], runs[-2][kind], runs[-1][kind]),
        )


def equal_in_bits(bench: Bench, eager: Row, again: Row, graphed: Row) -> Row:
    for run in (eager, again, graphed):
        if "missing" in run:
            raise MissingError(run["missing"])
        if "error" in run:
            raise RuntimeError(run["error"])
    row: Row = {"equal": graphed["weights"] == eager["weights"], "replays": graphed["replays"]}
    if bench.on_gpu and not row["replays"]:
        raise MissingError("no graph was replayed")
    if eager["weights"] != again["weights"]:
        raise MissingError("steps without graphs do not repeat their bits either")
    return row if row["equal"] else {**row, "wrong": "other weights than without graphs"}


def all_trained(bench: Bench) -> dict[str, Row]:
    """Train each kind."""
    torch.use_deterministic_algorithms(True, warn_only=True)

    def row(kind: str) -> Row:
        try:
            return trained(bench, kind)
        except Exception as failure:
            return trouble(failure)

    return {kind: row(kind) for kind in KINDS}


def trained(bench: Bench, kind: str) -> Row:
    """A hash of the weights after some training, and how often graphs were replayed.

    The last batch of an epoch is smaller, and the number of steps changes and returns.
    """
    with graphs_counted() as replays:
        if kind in FIELDS:
            parameters = train_by_hand(bench, kind)
        else:
            n = bench.size(60, 8)
            rule = {"use_step_adaption_algo": True, "adaption_interval": bench.size(10, 3)}
            trainer = trainer_of(bench, bench.where, niter=n, **rule)
            trainer.run()
            parameters = list(trainer.state.model.parameters())
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().flatten().clone().numpy().tobytes())
    return {"weights": digest.hexdigest(), "replays": replays[0]}


def train_by_hand(bench: Bench, kind: str) -> list[nn.Parameter]:
    """A training loop as users write it."""
    from trueode import FixedStep, NeuralODE
    from trueode.fields import build_field

    torch.manual_seed(0)
    network, shape = FIELDS[kind]
    field = build_field(network, shape, 16)
    head = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2))
    model = NeuralODE(field, downstream=head).to(bench.where)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = drawn(80, *shape).float().to(bench.where)
    y = (x.flatten(1).sum(1) > 0).long()
    for n_steps in bench.size((8,) * 4 + (12,) * 4 + (8,) * 2, (2, 2, 3, 2)):
        for rows in pairwise((0, 32, 64, 80)):
            part = slice(*rows)
            output = model(x[part], FixedStep("euler", n_steps=n_steps))
            optimizer.zero_grad()
            F.cross_entropy(output, y[part]).backward()
            optimizer.step()
    return list(model.parameters())


# --- the kernel in Triton


def kernel(bench: Bench) -> None:
    """Solves by the Triton kernel against float64 on the CPU."""
    need("triton")
    how = {"TRUEODE_TRITON": "on"}
    if not bench.on_gpu:
        how |= {"TRITON_INTERPRET": "1", "TRUEODE_NATIVE": "off"}
    bench.apart(kernel_rows, **how)


def kernel_rows(bench: Bench) -> None:
    methods = bench.size(("euler", "midpoint", "heun3", "rk4"), ("euler",))
    for (kind, method), dtype in product(
        product(("dense", "signal"), methods), bench.size(list(LIMITS), [torch.float32])
    ):
        bench.row(
            f"{kind}, {method}, {str(dtype).removeprefix('torch.')}",
            partial(kernel_row, bench, kind, method, dtype),
        )


def kernel_row(bench: Bench, kind: str, method: str, dtype: torch.dtype) -> Row:
    from trueode.solvers import Backprop, FixedStep

    network, shape = FIELDS[kind]
    solver = FixedStep(method, n_steps=bench.size(16, 2))
    with kernels_counted() as launches:
        own, _ = solved(bench.where, dtype, network, shape, False, solver, Backprop())
    if not launches[0]:
        raise MissingError("no Triton kernel was launched")
    cpu = torch.device("cpu")
    reference, _ = solved(cpu, torch.float64, network, shape, False, solver, Backprop())
    distance = max(away(*pair) for pair in zip(own, reference, strict=True))
    row: Row = {"largest distance": distance, "launches": launches[0]}
    return row if distance <= LIMITS[dtype] else {**row, "wrong": f"above {LIMITS[dtype]:.0e}"}


@contextmanager
def graphs_counted() -> Iterator[list[int]]:
    """A block in which replays of CUDA graphs are counted."""
    with counted_calls((torch.cuda.CUDAGraph, "replay")) as found:
        yield found


@contextmanager
def kernels_counted() -> Iterator[list[int]]:
    """A block in which launches of Triton kernels, also interpreted ones, are counted."""
    need("triton")
    from triton.runtime import interpreter, jit

    with counted_calls((jit.JITFunction, "run"), (interpreter.GridExecutor, "__call__")) as found:
        yield found


@contextmanager
def counted_calls(*methods: tuple[Any, str]) -> Iterator[list[int]]:
    """A block in which calls of methods are counted; the list holds their number."""
    found, before = [0], [getattr(*method) for method in methods]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **how: Any) -> Any:
            found[0] += 1
            return original(*arguments, **how)

        return call

    try:
        for method, original in zip(methods, before, strict=True):
            setattr(*method, counted(original))
        yield found
    finally:
        for method, original in zip(methods, before, strict=True):
            setattr(*method, original)
