"""Everything that only a GPU can show: one command with a budget of seconds, and a report.

    python benchmarks/gpu.py --out DIR                            on the first GPU, 450 seconds
    python benchmarks/gpu.py --out DIR --images FOLDER            with the paper's runs on images
    python benchmarks/gpu.py --out DIR --sections machine parity  these sections alone
    python benchmarks/gpu.py --out DIR --device cpu --budget 60   all of it at tiny sizes

It needs the package's sources, and a Python with PyTorch and NumPy. Rows that need more say what is
missing. Each section is a process of its own, which is killed when its share of the budget is over,
and writes each result to DIR/sections. A further call with the same DIR does what is not done, and
goes on with the paper's runs. DIR/report.md and DIR/report.json hold the results of all calls.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from command import seconds, tell
from gpu_bench import PRELOADED, ROOT, SERVER, SLOW, Bench, conduct
from gpu_report import short_report, write_report

RESERVE = 3.0  # seconds for the report


class Section(NamedTuple):
    """A part of the work.

    Attributes:
        work: its function, as ``MODULE:FUNCTION``.
        share: its part of the budget, relative to the others. What a section leaves goes to later
            ones.
        alone: whether nothing may run beside it, because it measures times.
    """

    work: str
    share: float
    alone: bool = False


SECTIONS = {
    "machine": Section("gpu_speed:machine", 20, alone=True),
    "parity": Section("gpu_solves:parity", 40),
    "waits": Section("gpu_solves:waits", 20),
    "graphs": Section("gpu_solves:graphs", 40),
    "kernel": Section("gpu_solves:kernel", 30),
    "speed": Section("gpu_speed:speed", 90, alone=True),
    "diffrax": Section("gpu_speed:diffrax", 30, alone=True),
    "double": Section("gpu_speed:double", 15, alone=True),
    "audits": Section("gpu_runs:audits", 40),
    "resume": Section("gpu_runs:resume", 50),
    "across": Section("gpu_runs:across", 30),
    "ranks": Section("gpu_runs:ranks", 25),
    "figure5": Section("gpu_figures:figure5", 120, alone=True),
    "figure4d": Section("gpu_figures:figure4d", 40, alone=True),
}
TINY = 40  # the largest share at tiny sizes
CORES_OF_A_SECTION = 4


@dataclass
class Call:
    """One call of the script.

    Attributes:
        bench: what its sections have in common.
        end: the time at which all of them must have ended.
        sections: the sections, by name.
    """

    bench: Bench
    end: float
    sections: dict[str, Section]
    _running: dict[str, int] = field(default_factory=dict)  # groups of processes
    _interrupted: bool = False

    def run(self) -> None:
        """Run the sections that are not done; those that measure no times side by side."""
        waiting = [name for name in self.sections if not self.done(name)]
        at_once = max(1, (os.cpu_count() or 1) // CORES_OF_A_SECTION)
        for alone, names in groupby(waiting, lambda name: self.sections[name].alone):
            group = list(names)
            size = 1 if alone else at_once
            for first in range(0, len(group), size):
                together = group[first : first + size]
                share, rest = (
                    sum(map(self.share, names))
                    for names in (together, waiting[waiting.index(together[0]) :])
                )
                end = time.time() + (self.end - time.time()) * share / rest
                with ThreadPoolExecutor(len(together)) as pool:
                    list(pool.map(lambda name: self.section(name, end), together))  # noqa: B023

    def share(self, name: str) -> float:
        """A section's part of the budget; at tiny sizes none takes all that it gets."""
        share = self.sections[name].share
        return min(share, TINY) if self.bench.tiny else share

    def done(self, name: str) -> bool:
        """Whether an earlier call did all of a section."""
        return bool(replace(self.bench, section=name).read()["status"] == "done")

    def section(self, name: str, end: float) -> None:
        """Run a section in its own process, until it ends or its time is over."""
        bench = replace(self.bench, section=name, end=end)
        tell(f"{name}: at most {bench.left:.0f} s")
        log, begin = str(bench.path.with_suffix(".log")), time.time()
        child = SERVER.Process(target=conduct, args=(bench, self.sections[name].work, log))
        child.start()
        assert child.pid is not None
        self._running[name] = child.pid
        child.join(max(0.0, bench.left))
        over = child.is_alive()
        self.kill(name)  # it, or what it left running
        child.join()
        code = child.exitcode
        if over or self._interrupted:
            spent = f"its {time.time() - begin:.0f} s were over"
            bench.write(status="stopped", why="interrupted" if self._interrupted else spent)
        elif code:
            bench.write(status="failed", why=f"its process ended with code {code}")
        before = bench.read()["seconds"]
        bench.write(seconds=round(before + time.time() - begin, 1))
        found = bench.read()
        tell(f"{name}: {found['status']} {found['why']}".rstrip())

    def kill(self, name: str) -> None:
        """Kill the processes of a section."""
        pid = self._running.pop(name, None)
        if pid is None:
            return
        for kill in (os.killpg, os.kill):  # it may have no group yet
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
                return

    def interrupt(self) -> None:
        """Kill all sections that run."""
        self._interrupted = True
        for name in list(self._running):
            self.kill(name)


def probe(bench: Bench) -> None:
    """End with a code that tells whether the device is there."""
    try:
        import torch
    except ImportError:
        sys.exit(3)
    sys.exit(4 if bench.on_gpu and not torch.cuda.is_available() else 0)


PROBLEMS = {
    3: "this Python has no PyTorch: use one that has it",
    4: "--device cuda: PyTorch sees no GPU; --device cpu and pretend run all of it at tiny sizes",
}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "pretend", "cpu"),
        default="cuda",
        help="pretend: the CPU as a device that counts launches and waits (default: cuda)",
    )
    parser.add_argument(
        "--budget", type=seconds, default=450.0, help="seconds of all sections (default: 450)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of results")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help=", ".join(SECTIONS),
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="images, one folder per class")
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest sizes; always with pretend and cpu"
    )
    arguments = parser.parse_args(words)
    arguments.tiny = arguments.tiny or arguments.device != "cuda"
    if arguments.images is not None and not arguments.images.is_dir():
        parser.error(f"--images: there is no folder {arguments.images}")
    made = {"device": arguments.device, "tiny": arguments.tiny}
    path = arguments.out / "call.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != made:
        parser.error(f"--out: {arguments.out} holds results of another --device or size")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made), encoding="utf-8")
    except OSError as failure:
        parser.error(f"--out: {failure}")
    return arguments


def main() -> int:
    begin = time.time()
    arguments = parse()
    for folder in (ROOT, ROOT / "src"):
        sys.path.insert(0, str(folder))
    SERVER.set_forkserver_preload([*PRELOADED, *(() if arguments.device == "cuda" else SLOW)])
    bench = Bench(
        "",
        arguments.device,
        arguments.tiny,
        arguments.out.resolve(),
        arguments.images and arguments.images.resolve(),
    )
    there = SERVER.Process(target=probe, args=(bench,))
    there.start()
    there.join()
    if there.exitcode:
        tell(PROBLEMS.get(there.exitcode, f"PyTorch ended with code {there.exitcode}"))
        return 2
    wanted = {name: SECTIONS[name] for name in SECTIONS if name in arguments.sections}
    return carry_out(Call(bench, begin + arguments.budget - RESERVE, wanted))


def carry_out(call: Call) -> int:
    """Run the sections and write the report, also when interrupted; return the exit code."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        call.interrupt()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    interrupted = False
    try:
        call.run()
    except KeyboardInterrupt:
        interrupted = True
    found = write_report(call.bench, SECTIONS)
    print(short_report(found), end="")
    if interrupted:
        tell("interrupted; the same command goes on")
        return 130
    failed = [name for name in call.sections if found["sections"][name]["status"] == "failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
