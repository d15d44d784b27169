"""Sides of a comparison take turns, each in a process of its own.

Every side of a row, and every number of threads, is a process that runs its step again and again
while it has its turn, and sleeps otherwise. So a slow moment of the machine meets all sides, and
none disturbs another one: in a common process, the threads of the side before would still wait
actively (OpenMP's do for some milliseconds) on the core that the next side's threads need, and what
one leaves behind in allocators and caches would be the other's. A pause between turns lets waiting
threads fall asleep, and the first step of a turn does not count. Nothing is set that users do not
have by default, but for the number of threads: OMP_NUM_THREADS (PyTorch), NPROC (XLA).

A side's script calls `serve`; `Side` starts it and asks for turns. What has no other side comes
from a script that prints it: `told`.
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
TURN, PAUSE, FEWEST = 0.5, 0.2, 5  # seconds, seconds, steps that a median needs


def serve(step: Callable[[], object]) -> None:
    """In the process of a side: run the step for as many seconds as each line of the input says;
    answer with its times.
    """
    for line in sys.stdin:
        step()
        print(json.dumps(timed(step, float(line), fewest=1)), flush=True)


def timed(step: Callable[[], object], seconds: float, fewest: int = FEWEST) -> list[float]:
    """Times of steps, in seconds, one after the other."""
    times: list[float] = []
    begin = start = time.perf_counter()
    while start - begin < seconds or len(times) < fewest:
        step()
        end = time.perf_counter()
        times.append(end - start)
        start = end
    return times


class Side:
    """A process that runs steps when asked to, for the time of a ``with`` block.

    Args:
        script: of this folder, which calls `serve`.
        work: what it does there: arguments of the script.
        threads: how many it may use.
    """

    def __init__(self, script: str, work: Sequence[str], threads: int) -> None:
        self.name, self.threads = work[-1], threads
        self._command = [sys.executable, str(HERE / script), *work]

    def __enter__(self) -> Side:
        """Start it; it ends with the block."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=with_threads(self.threads),
            start_new_session=True,  # Ctrl-C is for the parent alone, which ends this process
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
        """Let it run."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> list[float]:
        """Wait for the end of its turn: the times of its steps."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"the process of {self.name} ended with code {self._process.wait()}"
            )
        times: list[float] = json.loads(line)
        return times


def with_threads(threads: int) -> dict[str, str]:
    """The environment of a process that may use so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}


def told(
    script: str, *words: str, threads: int | None = None, settings: Mapping[str, str] | None = None
) -> Any:
    """The JSON that a script of this folder prints, in a process of its own.

    Args:
        script: its name.
        words: its arguments.
        threads: as many as it takes by itself if this is None.
        settings: further variables of its environment.
    """
    command = [sys.executable, str(HERE / script), *words]
    environment = {**(os.environ if threads is None else with_threads(threads)), **(settings or {})}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    return json.loads(done.stdout)


def whole(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Seconds that a command takes from its start to its end."""
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
    """Times of the steps of each side, in seconds: as many turns as it takes until each has had its
    time.
    """
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
    """First steps, which compile and allocate: they do not count."""
    for side in sides:
        side.begin(0)
    for side in sides:
        side.end()


def side_by_side(one: Side, other: Side, seconds: float) -> tuple[list[float], list[float]]:
    """Steps a second of a process alone and, turn by turn, of both together."""
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
