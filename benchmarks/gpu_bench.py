"""Shared by the sections of `gpu.py`: their rows, processes, devices and times."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

# Sections are forked from a server that has imported the large libraries, but not trueode, which
# may read its environment when it is imported. A section either works on the device or forks
# processes that do, because CUDA does not survive a fork.
SERVER = multiprocessing.get_context("forkserver")
FORK = multiprocessing.get_context("fork")
PRELOADED = ("torch", "numpy", "scipy.stats", "matplotlib.figure", "pydantic", "rich.console")
SLOW = ("torch._dynamo",)  # preloaded where nobody cares whether it asks for a GPU
OPTIONAL = {
    *("pydantic", "pydantic_core", "yaml", "rich", "rich_argparse", "scipy", "matplotlib", "PIL"),
    *("torchvision", "torchdiffeq", "triton", "diffrax", "equinox", "jax", "optax"),
}
COMMANDS_NEED = ("pydantic", "yaml", "rich", "scipy", "matplotlib")
BLOCK = 0.05  # seconds between two looks at the clock


class MissingError(Exception):
    """Something that a row needs is not there."""


def need(*modules: str) -> None:
    """Raise `MissingError` if a module is not installed."""
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        raise MissingError(f"not installed: {', '.join(absent)}")


@dataclass(frozen=True)
class Bench:
    """A section and the circumstances under which it runs.

    Attributes:
        section: its name.
        device: ``"cuda"``, ``"pretend"`` or ``"cpu"``.
        tiny: whether sizes are the smallest that show anything.
        out: the folder of results.
        images: folder of images, one folder per class.
        end: the time (`time.time`) at which the section is killed.
    """

    section: str
    device: str
    tiny: bool
    out: Path
    images: Path | None = None
    end: float = 0.0

    # --- rows

    @property
    def path(self) -> Path:
        """The file of the section's results."""
        return self.out / "sections" / f"{self.section}.json"

    def read(self) -> dict[str, Any]:
        """The results so far."""
        if not self.path.exists():
            return {"status": "not begun", "why": "", "seconds": 0.0, "rows": []}
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def write(self, **changed: Any) -> None:
        """Change the results, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({**self.read(), **changed}, indent=1), encoding="utf-8")
        new.replace(self.path)

    def find(self, name: str) -> Row:
        """A row that was written; empty if there is none."""
        return next((dict(row) for row in self.read()["rows"] if row["name"] == name), {})

    def row(self, name: str, measure: Callable[[], Row], again: bool = False) -> Row:
        """Measure a row, unless an earlier call did, and write it down.

        A row that raises holds its ``error``, or what is ``missing``; the section goes on. A row
        that holds ``wrong`` has failed.

        Args:
            name: its name, unique in the section.
            measure: returns its columns.
            again: whether to replace the result of an earlier call.
        """
        known = self.find(name)
        if known and not again and not known.keys() & {"missing", "error", "wrong"}:
            return known
        begin = time.perf_counter()
        try:
            found = measure()
        except Exception as failure:
            found = trouble(failure)
        found = {"name": name, **found}
        print(f"{time.perf_counter() - begin:.1f} s: {found}", flush=True)
        rows = self.read()["rows"]  # other processes of the section write as well
        place = [known["name"] for known in rows]
        if name in place:
            rows[place.index(name)] = found
        else:
            rows.append(found)
        self.write(rows=rows)
        return found

    # --- processes

    def start(self, work: Callable[..., Any], *words: Any, **environment: str) -> BaseProcess:
        """Start ``work(bench, *words)`` in a process with this environment."""
        child = FORK.Process(target=_begin, args=(self, work, words, environment))
        child.start()
        return child

    def apart(self, work: Callable[..., Any], *words: Any, **environment: str) -> Any:
        """The result of ``work(bench, *words)`` in a process with this environment."""
        here, there = FORK.Pipe(duplex=False)
        child = self.start(_answer, there, work, words, **environment)
        there.close()
        try:
            kind, value = here.recv()
        except EOFError:
            child.join()
            raise RuntimeError(f"{work.__name__} ended with code {child.exitcode}") from None
        child.join()
        if kind == "missing":
            raise MissingError(value)
        if kind == "error":
            raise RuntimeError(value)
        return value

    def command(self, *words: str, **environment: str) -> BaseProcess:
        """Start ``trueode WORDS``; its output goes to the log of the section."""
        print("$ trueode", *words, flush=True)
        return self.start(_command, words, **environment)

    # --- devices

    @property
    def where(self) -> Any:
        """The `torch.device`."""
        import torch

        return torch.device("cpu") if self.device == "cpu" else torch.device("cuda", 0)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def flags(self) -> list[str]:
        """Flags of `trueode train` for the device."""
        return ["--use_gpu", "false" if self.device == "cpu" else "true"]

    def size(self, full: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else full

    @property
    def left(self) -> float:
        """Seconds until the section is killed."""
        return self.end - time.time()

    def synchronize(self, result: Any = None) -> None:
        """Wait for the device."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def milliseconds(
        self,
        step: Callable[[], Any],
        seconds: float,
        synchronize: Callable[[Any], None] | None = None,
    ) -> float:
        """The median time of a step, without waiting for the device after each."""
        wait = synchronize or self.synchronize

        def block(n: int) -> float:
            begin = time.perf_counter()
            for _ in range(n):
                result = step()
            wait(result)
            return time.perf_counter() - begin

        n, seconds = 1, self.size(seconds, 0.0)
        block(self.size(12, 1))  # compiles, allocates and captures; does not count
        while block(n) < self.size(BLOCK, 0.0):
            n *= 2
        begin, times = time.perf_counter(), [block(n)]
        while time.perf_counter() - begin < seconds:
            times.append(block(n))
        return 1e3 * statistics.median(times) / n


def float32_is(name: str) -> AbstractContextManager[None]:
    """A block in which products and convolutions of float32 are ``"IEEE"`` or ``"TF32"``."""
    from trueode import precision

    return precision.tf32() if name == "TF32" else precision.ieee()


def drawn(*shape: int, seed: int = 0) -> Any:
    """Normal numbers, a tensor of float64 on the CPU."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def away(own: Any, reference: Any) -> float:
    """The relative distance between two tensors; infinite for NaN."""
    difference = (own.detach().cpu().double() - reference.detach().cpu()).norm()
    found = float(difference / reference.detach().norm())
    return found if found == found else float("inf")


def trouble(failure: Exception) -> Row:
    """A failure as columns of a row."""
    if isinstance(failure, MissingError):
        return {"missing": str(failure)}
    if isinstance(failure, ModuleNotFoundError) and str(failure.name).split(".")[0] in OPTIONAL:
        return {"missing": f"not installed: {failure.name}"}
    traceback.print_exc()
    last = traceback.extract_tb(failure.__traceback__)[-1]
    text = " ".join(str(failure).split())[:300]
    return {"error": f"{type(failure).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"}


def conduct(bench: Bench, work: str, log: str) -> None:
    """Run a section, ``MODULE:FUNCTION``, in this process, and write how it ended."""
    os.setpgrp()  # so that it is killed with its children
    _end_late(bench)
    _write_to(Path(log))
    module, function = work.split(":")
    bench.write(status="running", why="")
    try:
        with _device(bench):
            status = getattr(__import__(module, fromlist=[function]), function)(bench) or "done"
        why = ""
    except Exception as failure:
        status, why = next(iter(trouble(failure).items()))
        status = "failed" if status == "error" else status
    rows = bench.read()["rows"]
    failed = [row["name"] for row in rows if row.keys() & {"error", "wrong"}]
    if status == "done" and failed:
        status, why = "failed", ", ".join(failed)
    elif status == "done" and rows and all("missing" in row for row in rows):
        status, why = "missing", rows[0]["missing"]
    bench.write(status=status, why=why)


@contextmanager
def _device(bench: Bench) -> Iterator[None]:
    """A block in which the device exists."""
    with ExitStack() as stack:
        if bench.device == "pretend":
            from tests.pretend import pretend

            stack.enter_context(pretend())
        yield


def _write_to(log: Path) -> None:
    """Append what this process prints to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _end_late(bench: Bench) -> None:
    """Let this process be killed when its time is long over, also without anyone who does it."""
    signal.alarm(max(1, int(bench.left) + 10))


def _begin(bench: Bench, work: Callable[..., Any], words: Any, environment: dict[str, str]) -> None:
    """The begin of a child of a section."""
    _end_late(bench)
    os.environ.update(environment)
    work(bench, *words)


def _answer(bench: Bench, to: Connection, work: Callable[..., Any], words: Any) -> None:
    try:
        answer = "done", work(bench, *words)
    except Exception as failure:
        answer = next(iter(trouble(failure).items()))
    to.send(answer)
    to.close()


def _command(bench: Bench, words: Sequence[str]) -> NoReturn:
    if bench.tiny:  # drawing takes longer than such a run
        from matplotlib.figure import Figure

        Figure.savefig = lambda figure, file, **how: file.write(b"")  # type: ignore[method-assign]
    from trueode.cli.main import main

    sys.exit(main(list(words)))
