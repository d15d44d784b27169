"""What a sweep adds to its runs, and what a second worker brings.

    python benchmarks/sweep.py                       twelve runs of Sphere2, three turns: about ten minutes
    python benchmarks/sweep.py --runs 4 --niter 500  fewer and shorter ones

Three ways of doing the same runs take turns, each in a process of its own: one after the other by
the function that `train.py` calls (the bare runs); `trueode sweep` with one worker; the same with
two. All have one thread for each run, import PyTorch once for each process that trains, and start
with the data in its place. Times are of whole commands.
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
    """Seconds of one way, from start to end, in a new folder."""
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
    """Medians over the turns, as Markdown."""
    taken: dict[str, list[float]] = {"bare": [], "1": [], "2": []}
    with tempfile.TemporaryDirectory() as made:
        measure("bare", 1, 1, Path(made))  # makes the data, and warms the disk
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
                f"| {told} | {statistics.median(times):.1f} | {min(times):.1f}, {max(times):.1f} |"
                for told, times in zip(
                    ("bare", "sweep, one worker", "sweep, two workers"), taken.values(), strict=True
                )
            ),
            "",
            f"Overhead of the sweep: {100 * overhead:.1f} % (wanted: at most {100 * WANTED['overhead']:.0f} %). Two workers: "
            f"{short(gain)} x one (wanted: at least {WANTED['two workers']} x).",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=count, default=12, help="in the plan (default: 12)")
    parser.add_argument(
        "--niter", type=count, default=3000, help="iterations of each (default: 3000)"
    )
    parser.add_argument(
        "--repeats", type=count, default=3, help="turns; medians are told (default: 3)"
    )
    arguments = parser.parse_args()
    return end_to_end(lambda: report(arguments.runs, arguments.niter, arguments.repeats))


if __name__ == "__main__":
    sys.exit(main())
