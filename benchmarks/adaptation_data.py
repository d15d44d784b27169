"""Compare adaptation with the cheapest fixed-step solver that gives a true ODE on every seed.

    python benchmarks/adaptation_data.py                           data that needs no files
    python benchmarks/adaptation_data.py --mnist DIR --images DIR  also images of these folders
    python benchmarks/adaptation_data.py --search                  search the fixed steps again

The cheapest valid solver is that of ``data.csv``. ``--search`` searches it: rk4 with 1, 2, 3, …
steps, then midpoint and Euler, each until three seeds have at most 1 % of flips on the test data,
or until it costs more than the cheapest so far. Then the rule ``fidelity`` trains with
``--solver rk4``. Every run is kept in a file of ``--output_dir`` and is not repeated; the table
goes to ``docs/adaptation/data.csv`` and ``data.md``.

Flips: predictions on test data that change under the exact flow (regression and time series: by
more than 1 % of their spread). In the second half of training they are counted five times, against
rk4 with 16 steps or more. NFE: forward evaluations of the field per sample and iteration, training
and checks together. Certificates and the iterations that they add are a separate column.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from adaptation import commit, finish

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "adaptation"
SEEDS = (0, 1, 2)
STEPS = (
    *range(1, 13),
    14,
    16,
    18,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    128,
    160,
    200,
    256,
    320,
    400,
    500,
)
STAGES = {"rk4": 4, "midpoint": 2, "euler": 1}
FIDELITY = "--use_step_adaption_algo true --adaption_algo fidelity"
DENSE = "--network linear_odenet --act tanh --lr 0.003"
DATA: dict[str, tuple[str, int]] = {  # options, and the number of test samples
    "Sphere10": ("--dataset concentric_sphere10 --lr 0.001 --niter 3000", 1000),
    "three minima": ("--dataset three_minima --lr 0.001 --niter 3000", 1000),
    "flow map of a pendulum (regression)": (
        f"--dataset arrays --data_dir PENDULUM {DENSE} --niter 3000",
        1000,
    ),
    "pendulum (time series)": (f"--dataset pendulum {DENSE} --niter 2000", 500),
    "MNIST": (
        "--dataset mnist --network odenet --ch_residual_block 8 --batch_size 32 --lr 0.003 "
        "--niter 2000",
        400,
    ),
    "CIFAR-10, image folder": (
        "--dataset image_folder --network odenet --ch_residual_block 8 --batch_size 32 --lr 0.003 "
        "--niter 2000",
        400,
    ),
}


def train_and_measure(name: str, way: str, seed: int, where: str) -> dict[str, Any]:
    """Train one model; ``way`` is a method and a number of steps, or the solver of the rule."""
    import torch

    torch.set_num_threads(1)
    from trueode.auditing import judge
    from trueode.build import build_run
    from trueode.distributed import Ranks
    from trueode.evaluation import ModelOnSamples, finer_solver
    from trueode.options import load_options
    from trueode.training import Hooks, State

    flags, n_test = DATA[name]
    method, _, steps = way.partition(" x ")
    solver_flags = f"--n_steps {steps}" if steps else FIDELITY
    words = f"{flags.replace('PENDULUM', where)} --random_seed {seed}".split()
    words += f"--solver {method} {solver_flags}".split()
    if "--data_dir" not in words:
        words += ["--data_dir", where]
    options, _ = load_options(words)
    _, trainer = build_run(options, Ranks(0, 1, torch.device("cpu")))
    state, task, rule, model = trainer.state, trainer.task, trainer.state.rule, trainer.state.model
    test, niter = trainer.dataset.test.first(n_test), options.niter
    worst, trained = [0.0], {"evaluations": 0.0}
    begin = time.perf_counter()

    def look(current: State) -> None:
        """Count flips at five iterations of the second half."""
        if niter // 2 <= current.iteration < niter:
            runnable = ModelOnSamples(model, test, task, current.solver)
            own = runnable.run()
            finer = runnable.run(finer_solver(current.solver, own.n_steps))
            assert own.outputs is not None
            assert finer.outputs is not None
            flipped = task.flipped(own.outputs, finer.outputs, task.allowed(finer.outputs))
            worst.append(float(flipped.double().mean()))

    class Observed:
        """The rule; it records the evaluations before the first attempt at a certificate."""

        def __getattr__(self, attribute: str) -> Any:
            return getattr(rule, attribute)

        def certify(self, inspection: Any) -> Any:
            trained["evaluations"] = trained["evaluations"] or state.evaluations / state.samples
            return rule.certify(inspection)

    if rule is not None:
        state.rule = Observed()
    trainer.hooks = Hooks(checkpoint=look)
    trainer.schedule = replace(trainer.schedule, checkpoint=niter // 10)
    finish(trainer)
    total = state.evaluations / state.samples
    nfe = trained["evaluations"] or total
    runnable = ModelOnSamples(model, test, task, state.solver)
    found = judge(runnable, runnable.run())
    certificate = state.certificate
    return {
        "data": name,
        "way": way,
        "seed": seed,
        "final": str(state.solver),
        "nfe": nfe,
        "certifying": total * state.iteration / niter - nfe,
        "flips": found.flips / found.n,
        "worst": max(worst),
        "metric": task.metric_name,
        "exact": found.metric_exact,
        "certificate": ""
        if certificate is None
        else "certified"
        if certificate.certified
        else "not certified",
        "seconds": time.perf_counter() - begin,
        "commit": commit(),
    }


def make_pendulum(path: Path) -> None:
    """Write a regression task: the state of a damped pendulum after two seconds."""
    import numpy as np

    from trueode.data.pendulum import pendulum

    states, path_of, times = pendulum(10_000, np.random.default_rng(0))
    after = int(np.searchsorted(times, 2.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=states[:, 0], y=path_of[:, after, 0])


class Runs:
    """Runs jobs without a stored result, in processes of one thread each."""

    def __init__(self, folder: Path, places: dict[str, str], processes: int) -> None:
        self.folder, self.places = folder, places
        self.pool = ThreadPoolExecutor(processes)

    def results(self, name: str, way: str) -> Iterator[dict[str, Any]]:
        """The results of all seeds."""
        yield from self.pool.map(lambda seed: self.one(name, way, seed), SEEDS)

    def one(self, name: str, way: str, seed: int) -> dict[str, Any]:
        path = self.folder / f"{name} {way} {seed}.json".replace(" ", "-").replace(",", "")
        if not path.exists():
            job = json.dumps([name, way, seed, self.places[name], str(path)])
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--one", job],
                env=environment,
                check=True,
            )
        result: dict[str, Any] = json.loads(path.read_text())
        print(
            f"{name} | {way} | seed {seed} | NFE {result['nfe']:.1f} | "
            f"flips {result['flips']:.2%} | worst {result['worst']:.2%} | "
            f"{result['metric']} {result['exact']:.4g} | {result['certificate']} | "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
        return result

    def known(self, name: str) -> list[dict[str, Any]]:
        """The results of the cheapest fixed-step solver in the table of before."""
        with (DOCS / "data.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["data"] == name]
        numbers = ("nfe", "certifying", "flips", "worst", "exact", "seconds")
        return [
            {**row, "seed": int(row["seed"]), **{key: float(row[key]) for key in numbers}}
            for row in rows
            if " x " in row["way"]
        ]

    def cheapest(self, name: str) -> list[dict[str, Any]]:
        """The results of the cheapest fixed-step solver that is valid on every seed."""
        best: list[dict[str, Any]] = []
        for method, stages in STAGES.items():
            for n in STEPS:
                if best and n * stages >= best[0]["nfe"]:
                    break
                found = [self.one(name, f"{method} x {n}", SEEDS[0])]
                if found[0]["flips"] <= 0.01:  # else the other seeds are not needed
                    found = list(self.results(name, f"{method} x {n}"))
                    if all(result["flips"] <= 0.01 for result in found):
                        best = found
                        break
        if not best:
            raise SystemExit(
                f"{name}: no solver with up to {STEPS[-1]} steps is valid on every seed."
            )
        return best


def table(rows: list[list[dict[str, Any]]]) -> str:
    """A table with one row per data set and solver."""
    lines = [
        "| data | solver | NFE, mean | relative to the cheapest | flips, largest | "
        "flips in the second half, largest | "
        "metric under the exact flow, mean | worst seed, relative to the cheapest | certified | "
        "NFE of certificates | final solvers |",
        "|---" * 11 + "|",
    ]
    cheapest: dict[str, float] = {}
    metrics: dict[str, list[float]] = {}
    for results in rows:
        name, way = results[0]["data"], results[0]["way"]
        nfe = mean(result["nfe"] for result in results)
        least = cheapest.setdefault(name, nfe)
        exact = mean(result["exact"] for result in results)
        metric = (
            f"accuracy {exact:.1%}" if results[0]["metric"] == "accuracy" else f"mse {exact:.3g}"
        )
        fixed = metrics.setdefault(name, [result["exact"] for result in results])
        pairs = [(result["exact"], own) for result, own in zip(results, fixed, strict=True)]
        worst = (
            f"{100 * min(a - b for a, b in pairs):+.1f} points"
            if results[0]["metric"] == "accuracy"
            else f"{max(a / b for a, b in pairs):.2f} x"
        )
        certified = sum(result["certificate"] == "certified" for result in results)
        ruled = bool(results[0]["certificate"])
        lines.append(
            f"| {name} | {way if not ruled else f'fidelity, {way}'} | {nfe:.1f} | "
            f"{nfe / least:.2f} | {max(result['flips'] for result in results):.2%} | "
            f"{max(result['worst'] for result in results):.2%} | {metric} | "
            f"{worst if ruled else ''} | "
            f"{f'{certified} of {len(results)}' if ruled else ''} | "
            f"{format(mean(result['certifying'] for result in results), '.1f') if ruled else ''} | "
            f"{', '.join(result['final'] for result in results) if ruled else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        nargs="+",
        choices=DATA,
        default=list(DATA),
        help="default: all whose files are given",
    )
    parser.add_argument("--mnist", metavar="DIR", help="a --data_dir that contains MNIST")
    parser.add_argument(
        "--images", metavar="DIR", help="a folder with train/CLASS/* and test/CLASS/*"
    )
    parser.add_argument(
        "--ways", nargs="+", default=["rk4"], help="solvers of the rule (default: rk4)"
    )
    parser.add_argument("--search", action="store_true", help="search the fixed steps again")
    parser.add_argument("--output_dir", type=Path, default=Path("experiments/adaptation-data"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, way, seed, where, path = json.loads(arguments.one)
        partial = Path(f"{path}.part")
        partial.write_text(json.dumps(train_and_measure(name, way, seed, where)))
        partial.replace(path)
        return
    folder = arguments.output_dir.resolve()
    make_pendulum(folder / "pendulum.npz")
    places = dict.fromkeys(DATA, str(folder / "generated"))
    places |= {"flow map of a pendulum (regression)": str(folder / "pendulum.npz")}
    places |= {"MNIST": arguments.mnist or "", "CIFAR-10, image folder": arguments.images or ""}
    runs, rows = Runs(folder, places, arguments.processes), []
    for name in arguments.data:
        if not places[name]:
            continue
        fixed = runs.cheapest(name) if arguments.search else runs.known(name)
        rows += [fixed, *(list(runs.results(name, way)) for way in arguments.ways)]
    print(table(rows))
    if {results[0]["data"] for results in rows} < set(DATA):
        return  # only a part
    columns = list(rows[0][0])
    with (DOCS / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result for results in rows for result in results)
    minutes = sum(result["seconds"] for results in rows for result in results) / 60
    commits = sorted({result["commit"] for results in rows for result in results})
    flags = "\n".join(f"* {name}: `{flags}`" for name, (flags, _) in DATA.items())
    (DOCS / "data.md").write_text(
        f"# Adaptation on other data\n\n"
        f"Written by `python benchmarks/adaptation_data.py --mnist DIR --images DIR` at commit "
        f"{', '.join(commits)}, {os.cpu_count()} cores; the runs below took {minutes:.0f} minutes "
        f"of wall time in total, with whatever else the machine did meanwhile.\n\n"
        f"{(__doc__ or '').strip().split('``data.md``.')[1].strip()}\n\n{table(rows)}\n\n{flags}\n",
        encoding="utf-8",
    )
    print(f"\nresults: {DOCS}")


if __name__ == "__main__":
    main()
