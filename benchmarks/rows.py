"""The rows of the table of `run.py`: each measures a ratio and compares it with its target."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import NamedTuple

from command import short, tell
from machine import ROOT
from peak import COMPILER, operations
from scaling import SERIES, conv_flops, gradient_flops
from steps import IMAGES
from turns import FEWEST, Side, side_by_side, take_turns, told, whole

THREADS = (1, 2)[: os.cpu_count()]


VARIANTS = {"diffrax": ("diffrax", "diffrax, direct")}
GRADIENTS = {"torchdiffeq": ("torchdiffeq", "torchdiffeq, adjoint")}


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        work: the work that is measured.
        against: the peer.
        theirs: the peer's value, as text.
        own: trueode's value, as text.
        ratio: the ratio of the values.
        limit: the target of the ratio.
        at_least: whether the ratio must be at least ``limit``, or at most.
    """

    work: str
    against: str
    theirs: str
    own: str
    ratio: float
    limit: float
    at_least: bool = True

    def __str__(self) -> str:
        met = self.ratio >= self.limit if self.at_least else self.ratio <= self.limit
        sign, word = "≥" if self.at_least else "≤", "yes" if met else "**no**"
        cells = (
            self.work,
            self.against,
            self.theirs,
            self.own,
            f"{short(self.ratio)} x",
            f"{sign} {self.limit:g} x",
            word,
        )
        return f"| {' | '.join(cells)} |"


class Found(NamedTuple):
    """Rows of the table, and remarks for the text below it."""

    rows: list[Row]
    remarks: list[str] = []  # noqa: RUF012 - never changed


class Best(NamedTuple):
    """The best median of a side, in seconds, and its number of threads."""

    seconds: float
    threads: int

    def __str__(self) -> str:
        return f"{short(1e3 * self.seconds)} ms ({self.threads})"


class Comparison(NamedTuple):
    """A workload of `steps.py`.

    Attributes:
        title: the workload in words.
        wanted: sides of trueode, peers, and how many times as fast the side should be.
        flops: floating point operations of one step, if they are known.
        share: the share of the processor's most operations that trueode should reach.
        variants: the sides of a peer of which the fastest counts.
    """

    title: str
    wanted: tuple[tuple[str, str, float], ...]
    flops: float | None = None
    share: float | None = None
    variants: Mapping[str, tuple[str, ...]] = MappingProxyType(VARIANTS)


SPHERE2 = conv_flops(1, 32, length=2, dim=1)
COMPARISONS = {
    "euler": Comparison(
        "training step, Sphere2 simple_odenet (Conv1d, C = 32), batch 128, Euler h = 1/64",
        (("trueode", "torchdiffeq", 30), ("trueode", "diffrax", 5)),
        gradient_flops(128 * 64 * SPHERE2),
    ),
    "rk4": Comparison(
        "the same with rk4, h = 1/16",
        (("trueode", "torchdiffeq", 30),),
        gradient_flops(128 * 4 * 16 * SPHERE2),
    ),
    "dopri5": Comparison(
        "training step, dense field 2-64-64-2, batch 128, dopri5, tol 1e-5",
        (("trueode", "torchdiffeq", 8), ("trueode", "torchode", 10), ("trueode", "diffrax", 4)),
    ),
    "forward": Comparison(
        "forward of an audit: Sphere2, 1000 points, rk4 h = 1/256",
        (("trueode", "torchdiffeq", 12),),
        1000 * 4 * 256 * SPHERE2,
    ),
}
FURTHER = {
    "images32": (("trueode", "diffrax", 2.5),),
    "cifar": (("trueode, bf16", "torchdiffeq", 2.7),),
}
COMPARISONS |= {
    name: Comparison(
        f"training step, odenet of {work.channels} x {work.length} x {work.length} images (Conv2d, "
        f"C = {work.hidden}), batch {work.batch}, Euler h = 1/16",
        (("trueode", "torchdiffeq", wanted), *FURTHER.get(name, ())),
        gradient_flops(
            work.batch * 16 * conv_flops(work.channels, work.hidden, length=work.length, dim=2)
        ),
        share,
    )
    for (name, work), wanted, share in zip(
        IMAGES.items(), (2.3, 2.7, 3.5, 2.8, 2.6), (0.7, 0.7, 1, 1.5, 1.7), strict=True
    )
}
COMPARISONS |= {
    f"odeint_{name}": Comparison(
        f"{title} of a plain module 2-64-64-2 through odeint, batch 128, {how}",
        (("trueode", "torchdiffeq", 9),),
    )
    for method, how in (
        ("euler", "Euler x 64"),
        ("rk4", "rk4 x 16"),
        ("dopri5", "dopri5, tol 1e-5"),
        ("times", "dopri5 at 21 times"),
    )
    for name, title in ((method, "forward and backward"), (f"{method}_forward", "forward"))
}
COMPARISONS |= {
    name: Comparison(
        f"likelihood of 512 points of a plane and its gradient, exact trace, tanh field {layers} "
        "with time, rk4 x 16",
        (("trueode", "torchdiffeq", wanted),),
        variants=GRADIENTS,
    )
    for name, layers, wanted in (("density", "2-64-2", 8), ("density2", "2-64-64-2", 4))
}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # glibc then returns freed large tensors
GIVES_BACK_AS_SET = " ".join(f"{name}={value}" for name, value in GIVES_BACK.items())
PRODUCT, PEAK = "torch.mm", "the most multiply-adds"


def compare(work: str, seconds: float) -> Found:
    """Compare training steps, or forward solves, of all sides.

    trueode is also compared with the rate of matrix products.
    """
    title, wanted, flops, limit, variants = COMPARISONS[work]
    installed = [each for each in wanted if find_spec(each[1]) is not None]
    for peer in {peer for _, peer, _ in wanted} - {peer for _, peer, _ in installed}:
        tell(f"{peer} is not installed: its rows are omitted")
    names = list(
        dict.fromkeys([*(peer for _, peer, _ in installed), *(own for own, _, _ in wanted)])
    )
    sides = [
        Side("peer_diffrax.py" if name == "diffrax" else "steps.py", (work, variant), threads)
        for name in names
        for variant in variants.get(name, (name,))
        for threads in THREADS
    ]
    if flops is not None:
        sides += [Side("steps.py", ("product", PRODUCT), threads) for threads in THREADS]
    if flops is not None and COMPILER:
        sides += [Side("peak.py", (PEAK,), threads) for threads in THREADS]
    medians = [statistics.median(taken) for taken in take_turns(sides, seconds)]

    def best(name: str, *threads: int) -> Best:
        found = zip(sides, medians, strict=True)
        fitting = variants.get(name, (name,))
        return min(
            Best(s, side.threads)
            for side, s in found
            if side.name in fitting and side.threads in threads
        )

    rows = []
    for own, peer, times in installed:
        theirs, ours = best(peer, *THREADS), best(own, *THREADS)
        text = "the same" if rows else title
        text += f"{own.removeprefix('trueode')} (`--precision`)" if own != "trueode" else ""
        rows.append(Row(text, peer, str(theirs), str(ours), theirs.seconds / ours.seconds, times))
    if flops is None:
        return Found(rows)
    ours = best("trueode", *THREADS)
    rate, of = flops / ours.seconds, 2 * 1024**3 / best(PRODUCT, ours.threads).seconds
    remark = (
        f"`{work}` is {short(flops / 1e9)} GFLOP, at {gigaflops(rate)} with {ours.threads} "
        f"thread(s): {100 * rate / of:.0f} % of {PRODUCT} of 1024 x 1024 ({gigaflops(of)})"
    )
    if COMPILER:
        peak = operations(ours.threads) / best(PEAK, ours.threads).seconds
        remark += f", {100 * rate / peak:.0f} % of {PEAK} of the processor ({gigaflops(peak)})"
        if limit is not None:
            rates = gigaflops(peak), gigaflops(rate)
            rows.append(
                Row("the same, counted as direct convolution", PEAK, *rates, rate / peak, limit)
            )
    return Found(rows, [remark])


def gigaflops(rate: float) -> str:
    return f"{short(1e-9 * rate)} GFLOP/s"


def exact_flow(seconds: float) -> Found:
    """The rate of the solve that an exact flow of images takes, on one core."""
    taken, *_ = take_turns([Side("steps.py", ("exact", "trueode"), 1)], seconds)
    work = IMAGES["images32"]
    flops = work.batch * 64 * conv_flops(work.channels, work.hidden, length=work.length, dim=2)
    rate, limit = flops / statistics.median(taken), 120e9
    title = "forward in float64, images as above, C = 32, rk4 h = 1/16, one thread"
    cells = gigaflops(limit), gigaflops(rate)
    return Found([Row(title, "as wanted", *cells, rate / limit, 1)])


def memory(seconds: float) -> Found:
    """Memory of a training step of 64 steps with `Checkpoint`, minus the memory before it.

    Here freed tensors are returned to the system at once. By default glibc keeps them in its heap
    and may use them again, which is faster, but varies from run to run by a factor of ten.
    """
    if find_spec("torchdiffeq") is None:
        tell("torchdiffeq is not installed: memory is not compared")
        return Found([])
    sides = "torchdiffeq", "trueode, checkpoint"
    theirs, own = (told("memory.py", side, settings=GIVES_BACK) for side in sides)
    by_default = " and ".join(f"{told('memory.py', side):.0f} MiB" for side in sides)
    title = (
        "memory of the CIFAR-shaped step at h = 1/64, `Checkpoint`, above what the process holds "
        "before it"
    )
    return Found(
        [
            Row(
                title,
                "torchdiffeq, back-propagation",
                f"{theirs:.0f} MiB",
                f"{own:.0f} MiB",
                own / theirs,
                0.03,
                False,
            )
        ],
        [
            f"`memory`: with `{GIVES_BACK_AS_SET}`; without it the process grows by {by_default}, "
            "what glibc keeps included"
        ],
    )


def default_job(seconds: float) -> Found:
    """Compare ``python train.py`` with ``import torch``, as whole processes, by turns."""
    imports: list[float] = []
    jobs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bare = [sys.executable, "-c", "import torch"]
        while len(jobs) <= FEWEST or sum(jobs) < seconds:
            imports.append(whole(bare))
            jobs.append(whole(job_in(folder)))
    # the first run makes the data and warms the disk cache
    theirs, own = (statistics.median(times[1:]) for times in (imports, jobs))
    title = "default job, `python train.py`, whole process"
    return Found(
        [Row(title, "`import torch`", f"{theirs:.2f} s", f"{own:.2f} s", own / theirs, 2.5, False)]
    )


def job_in(folder: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--output_dir", folder, "--data_dir", folder]


def neighbour(seconds: float) -> Found:
    """Time ``python train.py`` alone, and while another process keeps one processor busy."""
    alone: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        while len(beside) <= FEWEST or sum(beside) < seconds:
            alone.append(whole(job_in(folder)))
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside.append(whole(job_in(folder)))
            finally:
                busy.kill()
                busy.wait()
    theirs, own = (statistics.median(times[1:]) for times in (alone, beside))
    title = "default job beside one busy process"
    return Found([Row(title, "alone", f"{theirs:.2f} s", f"{own:.2f} s", own / theirs, 1.5, False)])


def growth(seconds: float) -> Found:
    """Compare the time per operation of a solve over numbers of steps, batch sizes and widths."""
    runs = [told("scaling.py", str(seconds / 4), threads=threads) for threads in THREADS]
    rows, remarks = [], []
    for name, points in SERIES.items():
        times = [min(run[name][i] for run in runs) for i in range(len(points))]
        each = [
            1e9 * t / point.flops for t, point in zip(times, points, strict=True)
        ]  # seconds per GFLOP
        sizes = [getattr(point, name) for point in points]
        title = f"time per operation of a solve and its gradient, {name} {sizes[0]} to {sizes[-1]}"
        cells = (f"{1e3 * x:.2f} ms/GFLOP" for x in (min(each), max(each)))
        rows.append(
            Row(
                f"{title}: the worst",
                "the best",
                *cells,
                max(each) / min(each),
                2 if name == "width" else 1.5,
                False,
            )
        )
        rates = ", ".join(f"{size}: {short(1 / x)}" for size, x in zip(sizes, each, strict=True))
        remarks.append(f"`growth`, GFLOP/s by {name}: {rates}")
    return Found(rows, remarks)


def two_processes(seconds: float) -> Found:
    """Compare the training steps of two simultaneous processes with those of one process."""
    one, other = (Side("steps.py", ("euler", "trueode"), 1) for _ in range(2))
    alone, together = map(statistics.median, side_by_side(one, other, seconds))
    title = "two processes side by side, a thread each: training steps as above"
    return Found(
        [Row(title, "one process", f"{alone:.0f} /s", f"{together:.0f} /s", together / alone, 1.9)]
    )


def audit_cost(seconds: float) -> Found:
    """Compare the time of an audit of 1000 samples with the training of the audited model."""
    if find_spec("torchdiffeq") is None:
        tell("torchdiffeq is not installed: the audit is not timed")
        return Found([])
    theirs, own = map(
        min, zip(*(told("audit_cost.py", threads=threads) for threads in THREADS), strict=True)
    )
    title = "audit of 1000 samples, Sphere2, Euler h = 1/64"
    against = "200 training iterations, torchdiffeq"
    return Found(
        [Row(title, against, f"{theirs:.1f} s", f"{own:.1f} s", own / theirs, 0.45, False)]
    )


ROWS: dict[str, Callable[[float], Found]] = {
    **{work: lambda seconds, work=work: compare(work, seconds) for work in COMPARISONS},
    "exact": exact_flow,
    "memory": memory,
    "job": default_job,
    "neighbour": neighbour,
    "growth": growth,
    "processes": two_processes,
    "audit": audit_cost,
}
