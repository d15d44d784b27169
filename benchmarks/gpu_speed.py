"""Sections of `gpu.py` that measure times: of the machine, of training steps, of float64."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import weights
from gpu_bench import Bench, MissingError, Row, away, drawn, float32_is, need
from gpu_solves import graphs_counted, kernels_counted
from machine import commit, processor, source, version
from steps import Flow, conv_field, own_field, through_odeint, through_trueode, training_step
from torch import Tensor, nn

SECONDS = 1.0  # for each row
LIBRARIES = ("torch", "numpy", "triton", "torchdiffeq", "diffrax", "jax", "pydantic", "scipy")

# --- the machine


def machine(bench: Bench) -> None:
    """What the figures were measured on, and the most that it can do."""
    bench.row("machine", lambda: facts(bench), again=True)
    for name, dtype, kind in (
        ("float32, IEEE", torch.float32, "IEEE"),
        ("float32, TF32", torch.float32, "TF32"),
        ("bf16", torch.bfloat16, "IEEE"),
        ("float64", torch.float64, "IEEE"),
    ):
        bench.row(f"product, {name}", partial(product, bench, dtype, kind))
    bench.row("copy on the device", lambda: copy(bench))
    bench.row("launches", lambda: launches(bench))


def facts(bench: Bench) -> Row:
    found: Row = {
        "processor": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in LIBRARIES)]
        ),
        "sources": f"commit {commit()}, hash {source()}",
        "device": bench.device,
    }
    if bench.on_gpu:
        about = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            driver = "unknown"
        found["device"] = (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}."
            f"{about.minor}, {about.multi_processor_count} multiprocessors, driver "
            f"{driver.split()[0]}, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}"
        )
    return found


def product(bench: Bench, dtype: torch.dtype, kind: str) -> Row:
    """The rate of products of square matrices of random numbers."""
    n = bench.size(8192, 32)
    a, b = ((torch.rand(n, n, device=bench.where) - 0.5).to(dtype) for _ in range(2))
    with float32_is(kind):
        taken = bench.milliseconds(lambda: a @ b, SECONDS / 2)
    return {"TFLOP/s": 2e-9 * n**3 / taken, "size": n}


def copy(bench: Bench) -> Row:
    """Bytes read and written by a copy that is much larger than caches."""
    a = torch.rand(bench.size(2**29, 2**10), device=bench.where)
    b = torch.empty_like(a)
    taken = bench.milliseconds(lambda: b.copy_(a), SECONDS / 2)
    return {"TB/s": 2e-9 * 4 * a.numel() / taken, "bytes": 4 * a.numel()}


def launches(bench: Bench) -> Row:
    """The time of an operation that does next to nothing, alone and in a graph, and of a wait."""
    x = torch.zeros(64).to(bench.where)
    many = bench.size(1000, 10)

    def work() -> None:
        for _ in range(many):
            x.add_(1.0)

    row: Row = {"microseconds": 1e3 * bench.milliseconds(work, SECONDS / 2) / many}
    row["with a wait"] = 1e3 * bench.milliseconds(x.sum().item, SECONDS / 2)
    if bench.on_gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        row["in a graph"] = 1e3 * bench.milliseconds(graph.replay, SECONDS / 2) / many
    return row


# --- training steps


class Work(NamedTuple):
    """A training step: its network, sizes, and the sides and precisions that compute it."""

    network: str
    shape: tuple[int, ...]
    hidden: int
    batch: int
    n_steps: int
    classes: int
    precisions: tuple[str, ...]


def works(bench: Bench) -> dict[str, Work]:
    """The training steps that are compared."""
    image = bench.size((3, 32, 32), (3, 6, 6))
    return {
        "sphere2": Work(
            "simple_odenet", (1, 2), 32, *bench.size((128, 64), (4, 2)), 2, ("IEEE", "TF32")
        ),
        "odenet": Work(
            "odenet",
            image,
            *bench.size((128, 256, 16), (4, 2, 2)),
            10,
            ("IEEE", "TF32", "bf16"),
        ),
    }


def speed(bench: Bench) -> None:
    """Training steps of torchdiffeq and of trueode, each way in a process of its own."""
    bench.apart(steps_of, "torchdiffeq")
    bench.apart(steps_of, "trueode")
    bench.apart(steps_of, "trueode, graphs", TRUEODE_GRAPHS="on")
    how = {"TRUEODE_TRITON": "on"} | ({} if bench.on_gpu else {"TRITON_INTERPRET": "1"})
    bench.apart(steps_of, "trueode, kernel", **how)


def steps_of(bench: Bench, side: str) -> None:
    """Measure all works and precisions of a side."""
    for name, work in works(bench).items():
        if side == "trueode, kernel" and name != "sphere2":
            continue  # fields of images are none of its own
        for precision in work.precisions:
            bench.row(
                f"{name}, {side}, {precision}", partial(step_of, bench, work, side, precision)
            )


def step_of(bench: Bench, work: Work, side: str, precision: str) -> Row:
    """The time of a training step, and how far its flow is from that in float64."""
    torch.manual_seed(0)
    plain = conv_field(len(work.shape) - 1, work.shape[0], work.hidden)
    field = plain if side == "torchdiffeq" else own_field(
        plain, work.network, work.shape, work.hidden
    )  # fmt: skip
    flow, trained = flow_of(bench, work, side, precision, field.to(bench.where))
    x = weights.points(work.batch) if work.network == "simple_odenet" else None
    z = drawn(work.batch, *work.shape).float() if x is None else torch.from_numpy(x).view(-1, 1, 2)
    with float32_is("TF32" if precision == "TF32" else "IEEE"), launches_of(side) as launched:
        # the optimisers of PyTorch ask the driver, which a pretended device has not
        own = side != "torchdiffeq" or bench.device == "pretend"
        step = training_step(flow, trained, z.to(bench.where), work.classes, own)
        few = z[: bench.size(8, 2)]
        distance = away(flow(few.to(bench.where)), exactly(work, plain, few))
        row: Row = {"ms": bench.milliseconds(step, SECONDS)}
    if launched is not None and not launched[0]:
        raise MissingError(f"no {'graph' if 'graphs' in side else 'Triton kernel'} was launched")
    return {**row, "distance from float64": distance}


def flow_of(
    bench: Bench, work: Work, side: str, precision: str, field: nn.Module
) -> tuple[Flow, nn.Module]:
    """The flow of a side from 0 to 1 by Euler, and the module whose parameters are trained."""
    if side == "torchdiffeq":
        need("torchdiffeq")
        plain = through_odeint(field, "euler", work.n_steps, device=bench.where)
        if precision != "bf16":
            return plain, field

        def flow(z: Tensor) -> Tensor:
            with torch.autocast(bench.where.type, torch.bfloat16):
                return plain(z)

        return flow, field
    if precision == "bf16":
        from trueode.fields import Autocast

        field = Autocast(field, torch.bfloat16)
    return through_trueode(field, "euler", work.n_steps), field


def exactly(work: Work, plain: nn.Module, z: Tensor) -> Tensor:
    """The same steps of Euler in float64 on the CPU."""
    field, z = deepcopy(plain).cpu().double(), z.double()
    with torch.no_grad():
        for _ in range(work.n_steps):
            z = z + field(torch.zeros(()), z) / work.n_steps
    return z


@contextmanager
def launches_of(side: str) -> Iterator[list[int] | None]:
    """A block in which launches of what the side is named for are counted; None: of nothing."""
    if side.endswith("graphs"):
        with graphs_counted() as found:
            yield found
    elif side.endswith("kernel"):
        with kernels_counted() as found:
            yield found
    else:
        yield None


def diffrax(bench: Bench) -> None:
    """Training steps of diffrax, jitted, by the faster of its two gradients."""
    need("diffrax", "jax", "optax")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax
    import peer_diffrax

    if bench.on_gpu and jax.default_backend() != "gpu":
        raise MissingError("jax sees no GPU")
    for precision, word in (("IEEE", "highest"), ("TF32", "tensorfloat32")):
        for side in ("diffrax", "diffrax, direct"):

            def measure(word: str = word, side: str = side) -> Row:
                with jax.default_matmul_precision(word):
                    step = peer_diffrax.step_of("euler", side)
                    return {"ms": bench.milliseconds(step, SECONDS, jax.block_until_ready)}

            bench.row(f"sphere2, {side}, {precision}", measure)


# --- double precision


def double(bench: Bench) -> None:
    """Solves in float64, of which exact flows consist, beside products of float64."""
    for channels in bench.size((32, 128), (2,)):
        bench.row(f"rk4, 16 steps, {channels} channels", partial(exact, bench, channels))


def exact(bench: Bench, channels: int) -> Row:
    from trueode import FixedStep
    from trueode.fields import build_field
    from trueode.solvers import solve

    length, batch = bench.size((32, 64), (4, 2))
    field = build_field("odenet", (3, length, length), channels).to(bench.where, torch.float64)
    z = drawn(batch, 3, length, length).to(bench.where)
    solver = FixedStep("rk4", n_steps=bench.size(16, 2))
    with torch.no_grad():
        taken = bench.milliseconds(lambda: solve(field, z, solver=solver), SECONDS)
    pairs = 6 * channels + 9 * channels**2
    operations = 2 * pairs * length**2 * batch * 4 * solver.n_steps
    row: Row = {"ms": taken, "TFLOP/s": 1e-9 * operations / taken}
    most = replace(bench, section="machine").find("product, float64").get("TFLOP/s")
    return {**row, "of the product's": row["TFLOP/s"] / most if most else "unknown"}
