"""Time whole runs of ``train.py``, and their parts; also of a figure of the paper.

    python benchmarks/jobs.py                            Sphere2, 10 000 iterations each
    python benchmarks/jobs.py --before 112bec8           by turns with the sources of a commit
    python benchmarks/jobs.py --jobs euler --niter 1000  one job, shorter
    python benchmarks/jobs.py --jobs mnist --data MNIST  the digits, 300 iterations
    python benchmarks/jobs.py --jobs fig5 --data DIR     Figure 5, of a folder of images, shorter

``112bec8`` is the last commit without the compiled kernel, ``3f0d677`` the last one whose kernel
does not solve fields of images. The times of the parts come from the files of a run: its history
holds the seconds of training (checks and certificate included); its last checkpoint is written when
training ends, ``audit.json`` when evaluation ends.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isnan, nan
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
IMAGES = {
    "mnist": "--dataset mnist --network odenet --ch_residual_block 16 --solver rk4 "
    "--step_size 0.25 --lr 0.001 --niter 300",
    "fig5": "reproduce fig5 --scale small --dataset image_folder --niter 100",
}


class Spent(NamedTuple):
    """Seconds of a run: the whole process, and its parts."""

    whole: float
    start_up: float
    training: float
    evaluation: float
    figures: float


def run(source: Path, flags: str, folder: Path, data: Path) -> Spent:
    """Train with the package in ``source``."""
    where = ["--name", "run", "--overwrite", "true"]
    taken, start = carry_out(source, [str(source / "train.py")], flags, folder, data, where)
    path = folder / "run"
    with (path / "history.csv").open(newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    training = float(last["seconds"])
    trained = max(file.stat().st_mtime for file in (path / "checkpoints").glob("*.pt")) - start
    evaluated = (path / "audit.json").stat().st_mtime - start
    return Spent(taken, trained - training, training, evaluated - trained, taken - evaluated)


def draw(source: Path, flags: str, folder: Path, data: Path) -> Spent:
    """Reproduce a figure with the package in ``source``."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        taken, _ = carry_out(source, ["-m", "trueode"], flags, Path(empty), data)
    return Spent(taken, *4 * [nan])


def carry_out(
    source: Path,
    script: Sequence[str],
    flags: str,
    folder: Path,
    data: Path,
    more: Sequence[str] = (),
) -> tuple[float, float]:
    """Run a command with the package in ``source``; return its seconds and when it started."""
    start = time.time()
    words = [*shlex.split(flags), "--output_dir", str(folder), "--data_dir", str(data), *more]
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    return whole([sys.executable, *script, *words], environment), start


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


def report(
    names: list[str], niter: int, before: str | None, repeats: int, images: Path | None
) -> str:
    """A Markdown table of medians, for each job and source."""
    flags = {name: f"{each} --niter {niter}" for name, each in JOBS.items()} | IMAGES
    lines = [
        f"{describe(['torch'])}\n",
        "| job | source | whole | start-up | training | evaluation | figures | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as made, sources(before, Path(made) / "before") as trees:
        runs = Path(made) / "runs"
        run(ROOT, "--niter 1", runs, runs / "data")  # makes the data, and warms the disk
        for name in names:
            tell(f"measuring {name}")
            taken: dict[str, list[Spent]] = {tree: [] for tree in trees}
            for _ in range(repeats):
                for tree, path in trees.items():
                    do = draw if name == "fig5" else run
                    data = images if name in IMAGES and images else runs / "data"
                    taken[tree].append(do(path, flags[name], runs, data))
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
                    f"| {name} | {tree} | {' | '.join(map(in_seconds, spent))} | {ratio} |"
                )
    lines += [
        "",
        *(
            f"* `{name}`: `{'trueode' if name == 'fig5' else 'python train.py'} {flags[name]}`"
            for name in names
        ),
    ]
    return "\n".join(lines) + "\n"


def in_seconds(taken: float) -> str:
    return "–" if isnan(taken) else f"{taken:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", metavar="COMMIT", help="compare with the source of this commit")
    parser.add_argument(
        "--jobs",
        nargs="+",
        choices=[*JOBS, *IMAGES],
        default=list(JOBS),
        metavar="JOB",
        help=f"{', '.join(JOBS)} (default: these), {', '.join(IMAGES)}",
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the images: MNIST (mnist), one per class (fig5)"
    )
    parser.add_argument("--niter", type=count, default=10_000, help="iterations (default: 10 000)")
    parser.add_argument(
        "--repeats",
        type=count,
        default=1,
        help="runs of each; the medians are printed (default: 1)",
    )
    arguments = parser.parse_args()
    if arguments.data is None and set(arguments.jobs) & set(IMAGES):
        parser.error("--data: jobs of images need the folder of the images")
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
        lambda: report(
            arguments.jobs,
            arguments.niter,
            arguments.before,
            arguments.repeats,
            arguments.data and arguments.data.resolve(),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
