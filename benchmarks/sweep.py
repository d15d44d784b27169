"""Measure the overhead of a sweep, and the gain of a second worker.

    python benchmarks/sweep.py                       twelve runs of Sphere2, three turns: minutes
    python benchmarks/sweep.py --runs 4 --niter 500  fewer and shorter runs

Three commands do the same runs by turns: a loop over the function that `train.py` calls (the bare
runs), `trueode sweep` with one worker, and with two workers. Each run uses one thread, each process
that trains imports PyTorch once, and the data exists at the start. Times are of whole commands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from command import count, end_to_end, short, tell
from machine import describe
from turns import whole, with_threads

BASE = {
    "dataset": "concentric_sphere2",
    "network": "simple_odenet",
    "ch_residual_block": 32,
    "batch_size": 128,
    "lr": 1e-4,
    "solver": "euler",
    "step_size": 0.03125,
    "evaluate_with_dif_solver": True,
    "test_solver_list": ["euler", "midpoint", "rk4"],
    "test_factor_list": [0.5, 0.75, 1.0, 1.5, 2.0],
}
BARE = """
import json, sys
from trueode.experiment import run
from trueode.options import make_options
for values in json.loads(sys.argv[1]):
    run(make_options(values), frozenset())
"""
WANTED = {"overhead": 0.03, "two workers": 1.8}


def measure(way: str, runs: int, niter: int, folder: Path) -> float:
    """Seconds that one of the commands takes, in a new folder."""
    base = {**BASE, "niter": niter, "data_dir": str(folder / "data")}
    place = Path(tempfile.mkdtemp(dir=folder))
    if way == "bare":
        values = [
            {
                **base,
                "random_seed": seed,
                "name": str(seed),
                "output_dir": str(place),
                "torch_threads": 1,
            }
            for seed in range(runs)
        ]
        command = [sys.executable, "-c", BARE, json.dumps(values)]
    else:
        plan = place / "plan.yaml"  # JSON is YAML
        plan.write_text(
            json.dumps({"name": "plan", "base": base, "axes": {"random_seed": list(range(runs))}})
        )
        words = ["sweep", str(plan), "--output_dir", str(place / "out"), "--workers", way]
        command = [sys.executable, "-m", "trueode", *words]
    return whole(command, with_threads(1))


def report(runs: int, niter: int, repeats: int) -> str:
    """A Markdown table of the medians over the turns."""
    taken: dict[str, list[float]] = {"bare": [], "1": [], "2": []}
    with tempfile.TemporaryDirectory() as made:
        measure("bare", 1, 1, Path(made))  # makes the data and warms the disk cache
        for _ in range(repeats):
            for way, times in taken.items():
                times.append(measure(way, runs, niter, Path(made)))
                tell(f"{way}: {times[-1]:.1f} s")
    bare, one, two = (statistics.median(times) for times in taken.values())
    overhead, gain = one / bare - 1, one / two
    return "\n".join(
        [
            f"{describe(['torch'])}\n",
            "| way | seconds, median | lowest and highest |",
            "|---|---|---|",
            *(
                f"| {title} | {statistics.median(times):.1f} | {min(times):.1f}, {max(times):.1f} |"
                for title, times in zip(
                    ("bare", "sweep, one worker", "sweep, two workers"), taken.values(), strict=True
                )
            ),
            "",
            f"Overhead of the sweep: {100 * overhead:.1f} % (wanted: at most "
            f"{100 * WANTED['overhead']:.0f} %). Two workers: {short(gain)} x one "
            f"(wanted: at least {WANTED['two workers']} x).",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=count, default=12, help="number of runs (default: 12)")
    parser.add_argument(
        "--niter", type=count, default=3000, help="iterations of each run (default: 3000)"
    )
    parser.add_argument(
        "--repeats",
        type=count,
        default=3,
        help="number of turns; the medians are printed (default: 3)",
    )
    arguments = parser.parse_args()
    return end_to_end(lambda: report(arguments.runs, arguments.niter, arguments.repeats))


if __name__ == "__main__":
    sys.exit(main())
