"""Run the sides of a comparison by turns, each in a separate process.

Each side of a row, with each number of threads, is a process that repeats its step during its turn
and sleeps otherwise. A slow moment of the machine therefore affects all sides alike, and no side
disturbs another: in a common process, the threads of one side would still wait actively (OpenMP's
do for some milliseconds) on the core that the next side needs, and both would share allocators and
caches. A pause between turns lets waiting threads fall asleep, and the first step of a turn does
not count. Only the number of threads differs from a user's defaults: OMP_NUM_THREADS (PyTorch),
NPROC (XLA).

The script of a side calls `serve`; `Side` starts it and asks for turns. A measurement without other
sides is a script that prints its result, see `told`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
TURN, PAUSE, FEWEST = 0.5, 0.2, 5  # seconds, seconds, fewest steps for a median


def serve(step: Callable[[], object]) -> None:
    """Serve turns: for each input line, run steps for as many seconds, and print their times."""
    for line in sys.stdin:
        step()
        print(json.dumps(timed(step, float(line), fewest=1)), flush=True)


def timed(step: Callable[[], object], seconds: float, fewest: int = FEWEST) -> list[float]:
    """Run steps for some seconds, and return the time of each."""
    times: list[float] = []
    begin = start = time.perf_counter()
    while start - begin < seconds or len(times) < fewest:
        step()
        end = time.perf_counter()
        times.append(end - start)
        start = end
    return times


class Side:
    """A process that runs steps on request, within a ``with`` block.

    Args:
        script: a script of this folder that calls `serve`.
        work: its arguments.
        threads: the number of threads that it may use.
    """

    def __init__(self, script: str, work: Sequence[str], threads: int) -> None:
        self.name, self.threads = work[-1], threads
        self._command = [sys.executable, str(HERE / script), *work]

    def __enter__(self) -> Side:
        """Start the process, which ends with the block."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=with_threads(self.threads),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends this process
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # it has nothing to lose
        self._process.communicate()

    def begin(self, seconds: float) -> None:
        """Start a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> list[float]:
        """Wait for the end of the turn, and return the times of its steps."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"the process of {self.name} ended with code {self._process.wait()}"
            )
        times: list[float] = json.loads(line)
        return times


def with_threads(threads: int) -> dict[str, str]:
    """The environment of a process that may use ``threads`` threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}


def told(
    script: str, *words: str, threads: int | None = None, settings: Mapping[str, str] | None = None
) -> Any:
    """Run a script of this folder in a separate process, and return the JSON that it prints.

    Args:
        script: its name.
        words: its arguments.
        threads: the number of threads that it may use; None leaves the default.
        settings: further environment variables.
    """
    command = [sys.executable, str(HERE / script), *words]
    environment = {**(os.environ if threads is None else with_threads(threads)), **(settings or {})}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    return json.loads(done.stdout)


def whole(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """The wall time of a command, in seconds."""
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    return time.perf_counter() - start


def take_turns(sides: Sequence[Side], seconds: float) -> list[list[float]]:
    """Run sides by turns until each has used ``seconds``; return the times of their steps."""
    times: list[list[float]] = [[] for _ in sides]
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(side)
        warm_up(sides)
        while any(sum(taken) < seconds or len(taken) < FEWEST for taken in times):
            for side, taken in zip(sides, times, strict=True):
                time.sleep(PAUSE)
                side.begin(TURN)
                taken += side.end()
    return times


def warm_up(sides: Sequence[Side]) -> None:
    """Run the first steps, which compile and allocate, and do not count."""
    for side in sides:
        side.begin(0)
    for side in sides:
        side.end()


def side_by_side(one: Side, other: Side, seconds: float) -> tuple[list[float], list[float]]:
    """Steps per second of one process alone and of both together, by turns."""
    alone, together = [], []
    with one, other:
        warm_up([one, other])
        while len(alone) < max(FEWEST, seconds / TURN):
            for sides, rates in (((one,), alone), ((one, other), together)):
                time.sleep(PAUSE)
                for side in sides:
                    side.begin(TURN)
                taken = [side.end() for side in sides]
                rates.append(sum(len(times) / sum(times) for times in taken))
    return alone, together
