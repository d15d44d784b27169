"""Time whole runs of ``train.py`` on Sphere2, and their parts.

    python benchmarks/jobs.py                            these sources, 10 000 iterations each
    python benchmarks/jobs.py --before 112bec8           by turns with the sources of a commit
    python benchmarks/jobs.py --jobs euler --niter 1000  one job, shorter

``112bec8`` is the last commit without the compiled kernel. The times of the parts come from the
files of a run: its history holds the seconds of training (checks and certificate included); its
last checkpoint is written when training ends, ``audit.json`` when evaluation ends.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from command import count, end_to_end, short, tell
from machine import ROOT, describe
from results import FIDELITY, FIGURE_4A
from turns import whole

NITER, EULER = " --niter 10000", "--solver euler --step_size 0.015625"
SWAPS = FIGURE_4A.replace(NITER, "")  # ends with the table of other solvers
JOBS = {
    "euler": SWAPS,
    "rk4": SWAPS.replace(EULER, "--solver rk4 --step_size 0.0625"),
    "dopri5": SWAPS.replace(EULER, "--solver dopri5 --tol 1e-5"),
    "fidelity": FIDELITY.replace(NITER, ""),
}


class Spent(NamedTuple):
    """Seconds of a run: the whole process, and its parts."""

    whole: float
    start_up: float
    training: float
    evaluation: float
    figures: float


def run(source: Path, flags: str, niter: int, folder: Path) -> Spent:
    """Train with the package in ``source``; the data must exist."""
    where = [
        "--name",
        "run",
        "--overwrite",
        "true",
        "--output_dir",
        str(folder),
        "--data_dir",
        str(folder / "data"),
    ]
    words = [*shlex.split(flags), "--niter", str(niter), *where]
    start = time.time()
    taken = whole(
        [sys.executable, str(source / "train.py"), *words],
        {**os.environ, "PYTHONPATH": str(source / "src")},
    )
    path = folder / "run"
    with (path / "history.csv").open(newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    training = float(last["seconds"])
    trained = max(file.stat().st_mtime for file in (path / "checkpoints").glob("*.pt")) - start
    evaluated = (path / "audit.json").stat().st_mtime - start
    return Spent(taken, trained - training, training, evaluated - trained, taken - evaluated)


@contextmanager
def sources(before: str | None, folder: Path) -> Iterator[dict[str, Path]]:
    """The sources of a commit, checked out temporarily into a folder, and the current ones."""
    if before is None:
        yield {"now": ROOT}
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), before], check=True)
    try:
        if (folder / "setup.py").exists():  # it has a compiled kernel
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        yield {before: folder, "now": ROOT}
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def report(names: list[str], niter: int, before: str | None, repeats: int) -> str:
    """A Markdown table of medians, for each job and source."""
    lines = [
        f"{describe(['torch'])}\n",
        "| job | source | whole | start-up | training | evaluation | figures | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as made, sources(before, Path(made) / "before") as trees:
        runs = Path(made) / "runs"
        run(ROOT, "", 1, runs)  # makes the data, and warms the disk
        for name in names:
            tell(f"measuring {name}")
            taken: dict[str, list[Spent]] = {tree: [] for tree in trees}
            for _ in range(repeats):
                for tree, path in trees.items():
                    taken[tree].append(run(path, JOBS[name], niter, runs))
                    tell(f"{tree}: {taken[tree][-1]}")
            medians = {
                tree: Spent(*map(statistics.median, zip(*all_, strict=True)))
                for tree, all_ in taken.items()
            }
            for tree, spent in medians.items():
                ratio = (
                    ""
                    if tree == before or before is None
                    else f"{short(next(iter(medians.values())).whole / spent.whole)} x"
                )
                lines.append(
                    f"| {name} | {tree} | {' | '.join(f'{s:.1f} s' for s in spent)} | {ratio} |"
                )
    lines += [
        "",
        *(f"* `{name}`: `python train.py {JOBS[name]} --niter {niter}`" for name in names),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", metavar="COMMIT", help="compare with the source of this commit")
    parser.add_argument(
        "--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS)
    )
    parser.add_argument("--niter", type=count, default=10_000, help="iterations (default: 10 000)")
    parser.add_argument(
        "--repeats",
        type=count,
        default=1,
        help="runs of each; the medians are printed (default: 1)",
    )
    arguments = parser.parse_args()
    known = [
        "git",
        "-C",
        str(ROOT),
        "rev-parse",
        "--quiet",
        "--verify",
        f"{arguments.before}^{{commit}}",
    ]
    if arguments.before is not None and subprocess.run(known, stdout=subprocess.DEVNULL).returncode:
        parser.error(f"--before: there is no commit {arguments.before}")
    return end_to_end(
        lambda: report(arguments.jobs, arguments.niter, arguments.before, arguments.repeats)
    )


if __name__ == "__main__":
    sys.exit(main())
