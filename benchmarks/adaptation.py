"""Measure adaptation: train all rules on Sphere2 at the scale of the paper, one row per seed.

    python benchmarks/adaptation.py --seeds 100-106          the seeds not used for tuning: an hour
    python benchmarks/adaptation.py                          seeds 0 to 6
    python benchmarks/adaptation.py --rules rk4 --seeds 0 1  a part of it, without tables

Each finished run is kept in a file of ``--output_dir`` and is not repeated. The tables, with
machine and wall time, go to ``docs/adaptation/sphere2-FIRST-LAST.csv`` and ``.md``.

NFE: forward evaluations of the field per sample, divided by the 10 000 iterations. Training,
penalties, checks, trials and what a failed certificate adds all count; the certificates have a
column of their own. Prediction: evaluations of the final solver. Flips: predictions that differ
from those of rk4 in double precision: with 128 steps, among 2000 fresh points every 250 iterations
of the second half, and with 256, among 20 000 points at the end. Flips around: the same in the end
for 2000 points of a square that is a third wider than the data. D: total variation between the
predictions of the final solver and of the partners that a penalty draws, 2000 points. CV: standard
deviation of the number of steps over its mean, in the second half. V: sum of the changes of the
logarithm of the number of steps (or of the tolerance), in the second half.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "adaptation"
NITER, EVERY, MANY, SOME, EXACT, LOOK = 10_000, 250, 20_000, 2_000, 256, 128
AROUND = 0.6  # half the side of the square around the data, whose radii reach 0.45
ADAPT = "--use_step_adaption_algo true"
FIDELITY = f"{ADAPT} --adaption_algo fidelity"
RULES = {
    "rk4": f"--solver rk4 {FIDELITY}",
    "auto": f"--solver auto {FIDELITY}",
    "dopri5": f"--solver dopri5 {FIDELITY}",
    "euler": f"--solver euler {FIDELITY}",
    "rk4, no penalty": f"--solver rk4 {FIDELITY} --penalty 0",
    "paper": f"--solver euler {ADAPT}",
    "rk4 x 6": "--solver rk4 --n_steps 6",
    "rk4 x 8": "--solver rk4 --n_steps 8",
}
COLUMNS = {
    "seed": "seed",
    "final": "final solver",
    "nfe": "NFE",
    "certifying_nfe": "certificates",
    "prediction": "prediction",
    "flips": "flips, end",
    "worst": "flips, worst",
    "around": "flips around",
    "apart": "D",
    "accuracy": "accuracy",
    "exact": "exact flow",
    "cv": "CV",
    "v": "V",
    "certificate": "certificate",
    "seconds": "seconds",
    "checking": "checking",
    "certifying": "certifying",
}


def train_and_measure(
    rule_name: str, flags: str, seed: int, alter: Callable[[Any], Any] = lambda trainer: trainer
) -> dict[str, Any]:
    """Train one model as ``python train.py`` does, and measure it during and after training.

    Args:
        rule_name: the name of the result.
        flags: options of ``train.py``.
        seed: the seed of the run.
        alter: changes the trainer.
    """
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from trueode.build import build_run
    from trueode.data.spheres import concentric_spheres
    from trueode.distributed import Ranks
    from trueode.options import load_options
    from trueode.training import Hooks, State

    own_flags = f"--random_seed {seed} --niter {NITER} --data_dir {os.environ['TRUEODE_DATA']}"
    options, _ = load_options(f"{flags} {own_flags}".split())
    trainer = alter(build_run(options, Ranks(0, 1, torch.device("cpu")))[1])
    state, rule, model = trainer.state, trainer.state.rule, trainer.state.model
    random = np.random.default_rng([2026, seed])
    fresh, labels = concentric_spheres(MANY, 2, random)
    points, classes = torch.from_numpy(fresh), torch.from_numpy(labels)
    around = torch.from_numpy(random.uniform(-AROUND, AROUND, (SOME, 1, 2)))

    rows: list[dict[str, Any]] = []
    flips: list[tuple[int, float]] = []
    accuracy: list[tuple[int, float, float]] = []
    clock = {"looking": 0.0, "checking": 0.0, "certifying": 0.0}
    begin = time.perf_counter()

    def look(current: State) -> None:
        """Count flips every 250 iterations; the time for this is subtracted.

        128 steps of rk4 serve as the exact flow, in the first half of training 64.
        """
        start = time.perf_counter()
        late = current.iteration >= NITER // 2
        if not late and current.iteration % (2 * EVERY):
            return
        own, exact = predictions(model, current.solver, points[:SOME], LOOK if late else 64)
        if late and current.iteration <= NITER:
            flips.append((current.iteration, float((own != exact).double().mean())))
        right = [float((found == classes[:SOME]).double().mean()) for found in (own, exact)]
        accuracy.append((current.iteration, right[0], right[1]))
        clock["looking"] += time.perf_counter() - start

    if rule is not None:
        methods = {"propose": "checking", "certify": "certifying"}
        state.rule = _Timed(rule, clock, methods)
        checks = _Timed(trainer.checks, clock, {"measure": "checking"})
        trainer.checks = checks
    trainer.schedule = replace(trainer.schedule, checkpoint=EVERY)
    trainer.hooks = Hooks(rows.append, look)
    finish(trainer)
    seconds = time.perf_counter() - begin - clock["looking"]

    own, exact = predictions(model, state.solver, points)
    beyond = predictions(model, state.solver, around)
    with torch.no_grad():
        _, solution = model(points[:SOME].float(), state.solver, return_solution=True)
    half = [row for row in rows if row["iteration"] > NITER // 2]
    setting = "tolerance" if "tolerance" in half[-1] else "n_steps"
    steps = np.array(
        [row["n_steps"] for row in half if row["iteration"] <= NITER and row["iteration"] % 50 == 0]
    )
    values = np.array(
        [row[setting] for row in half if row["iteration"] <= NITER and setting in row]
    )
    certificate = state.certificate
    attempts = () if certificate is None else certificate.attempts
    certifying = sum(attempt.counts.evaluations for attempt in attempts)
    scale = state.iteration / NITER / state.samples
    return {
        "rule": rule_name,
        "seed": seed,
        "final": str(state.solver),
        "nfe": (state.evaluations - certifying) * scale,
        "certifying_nfe": certifying * scale,
        "prediction": solution.nfe,
        "flips": float((own != exact).double().mean()),
        "worst": max(share for _, share in flips),
        "around": float((beyond[0] != beyond[1]).double().mean()),
        "apart": apart(model, state.solver, points[:SOME].float()),
        "accuracy": float((own == classes).double().mean()),
        "exact": float((exact == classes).double().mean()),
        "cv": float(steps.std() / steps.mean()),
        "v": float(np.abs(np.diff(np.log(values))).sum()),
        "certificate": ""
        if certificate is None
        else f"{'' if certificate.certified else 'not '}certified, {len(attempts)}",
        "seconds": seconds,
        "checking": clock["checking"] / seconds,
        "certifying": clock["certifying"] / seconds,
        "commit": commit(),
        "flips_over_time": flips,
        "accuracy_over_time": accuracy,
        "history": {name: [row.get(name) for row in rows] for name in HISTORY},
    }


HISTORY = (
    "iteration",
    "loss",
    "accuracy",
    "nfe",
    "nfe_total",
    "n_steps",
    "step_size",
    "tolerance",
    "order",
    "signal",
    "target",
)


class _Timed:
    """A wrapper that times some methods of an object."""

    def __init__(self, inner: Any, clock: dict[str, float], methods: dict[str, str]) -> None:
        self._inner, self._clock, self._methods = inner, clock, methods

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in self._methods:
            return attribute

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return attribute(*arguments)
            finally:
                self._clock[self._methods[name]] += time.perf_counter() - start

        return timed


def predictions(model: Any, solver: Any, points: Any, n_steps: int = EXACT) -> tuple[Any, Any]:
    """Predicted classes under a solver in single precision, and under the exact flow.

    Args:
        points: in double precision.
        n_steps: of rk4 for the exact flow.
    """
    from copy import deepcopy

    import torch

    from trueode import FixedStep

    double = deepcopy(model).double()
    with torch.no_grad():
        own = [model(part.float(), solver).argmax(1) for part in points.split(500)]
        exact = [
            double(part, FixedStep("rk4", n_steps=n_steps)).argmax(1) for part in points.split(500)
        ]
    return torch.cat(own), torch.cat(exact)


def apart(model: Any, solver: Any, points: Any) -> float:
    """The mean total variation between the predictions of a solver and of all partners of N steps
    that the penalty may draw; for a tolerance, of one partner.
    """
    import torch

    from trueode.solvers import FixedStep

    n = solver.n_steps if isinstance(solver, FixedStep) else None
    partners = (
        [replace(solver, n_steps=m) for m in range(n + 1, 2 * n + 2)]
        if n
        else [solver.refined(1.5)]
    )
    with torch.no_grad():
        own = model(points, solver).softmax(1)
        gaps = [(own - model(points, each).softmax(1)).abs().sum(1).mean() / 2 for each in partners]
    return float(torch.stack(gaps).mean())


def finish(trainer: Any) -> None:
    """Train to the end; exit if a signal interrupts the training."""
    if not trainer.run():
        raise SystemExit("The training was interrupted: nothing is measured.")


def commit() -> str:
    """The commit of the code that runs."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


def run_all(
    jobs: Sequence[tuple[str, int]], folder: Path, processes: int, script: Path = Path(__file__)
) -> Iterator[dict[str, Any]]:
    """The results of jobs; missing ones are computed in processes of one thread each."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRUEODE_DATA": str(folder / "data")}

    def one(job: tuple[str, int]) -> dict[str, Any]:
        path = folder / f"{job[0]}-{job[1]}.json"
        if not path.exists():
            command = [
                sys.executable,
                str(script.resolve()),
                "--one",
                job[0],
                str(job[1]),
                str(path),
            ]
            subprocess.run(command, env=environment, check=True)
        result: dict[str, Any] = json.loads(path.read_text())
        print(shown(result), flush=True)
        return result

    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(one, jobs)


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a finished result."""
    partial = Path(f"{path}.part")
    partial.write_text(json.dumps(result))
    partial.replace(path)


def shown(result: dict[str, Any]) -> str:
    """A result as one line."""
    return " | ".join([result["rule"], *(cell(result, name) for name in COLUMNS)])


def cell(result: dict[str, Any], name: str) -> str:
    value = result[name]
    if name in ("flips", "worst", "around", "apart"):
        return f"{100 * value:.2f} %"
    if name in ("accuracy", "exact", "cv", "checking", "certifying"):
        return f"{100 * value:.1f} %"
    if name in ("nfe", "prediction"):
        return f"{value:.1f}"
    if name in ("certifying_nfe", "v"):
        return f"{value:.2f}"
    return f"{value:.0f}" if name == "seconds" else str(value)


def summary(results: list[dict[str, Any]]) -> str:
    """A table with one row per rule, of the values that have targets."""
    lines = [
        "| rule | NFE, mean | NFE, largest | certificates, mean | prediction, mean | "
        "flips at the end, largest | flips in the second half, largest | flips around, mean | "
        "accuracy under the exact flow, mean | the same, smallest | CV, largest | V, largest | "
        "certified |",
        "|---" * 13 + "|",
    ]
    for rule in dict.fromkeys(result["rule"] for result in results):
        rows = [result for result in results if result["rule"] == rule]
        most = {name: max(r[name] for r in rows) for name in ("nfe", "flips", "worst", "cv", "v")}
        names = ("nfe", "certifying_nfe", "prediction", "around", "exact")
        means = {name: mean(r[name] for r in rows) for name in names}
        certified = sum(row["certificate"].startswith("certified") for row in rows)
        promised = f"{certified} of {len(rows)}" if any(row["certificate"] for row in rows) else ""
        lines.append(
            f"| {rule} | {means['nfe']:.1f} | {most['nfe']:.1f} | {means['certifying_nfe']:.1f} | "
            f"{means['prediction']:.1f} | {most['flips']:.2%} | {most['worst']:.2%} | "
            f"{means['around']:.1%} | {means['exact']:.2%} | {min(r['exact'] for r in rows):.2%} | "
            f"{most['cv']:.1%} | {most['v']:.2f} | {promised} |"
        )
    return "\n".join(lines)


def deceived(results: list[dict[str, Any]]) -> str:
    """The runs whose flips the penalty's own measure D does not show."""
    names = [f"{r['rule']} of seed {r['seed']}" for r in results if r["flips"] > 3 * r["apart"]]
    return f"Runs whose flips exceed three times their D: {', '.join(names) or 'none'}."


def draw(results: list[dict[str, Any]], name: str) -> None:
    """Draw accuracy and steps over training for all seeds of the rules ``paper`` and ``rk4``.

    The paper's Figure 5 shows the same.
    """
    import numpy as np

    from trueode import figures

    runs: dict[str, list[Any]] = {}
    for result in results:
        if result["rule"] in ("paper", "rk4"):
            looked = np.array(result["accuracy_over_time"], dtype=float)
            history = {
                key: np.array(values, dtype=float) for key, values in result["history"].items()
            }
            n = len(history["iteration"])
            joined = {
                key: np.concatenate([values, np.full(len(looked), np.nan)])
                for key, values in history.items()
            }
            joined["iteration"][n:] = looked[:, 0]
            joined["test_accuracy"], joined["test_accuracy_reference"] = np.full(
                (2, n + len(looked)), np.nan
            )
            joined["test_accuracy"][n:], joined["test_accuracy_reference"][n:] = (
                looked[:, 1],
                looked[:, 2],
            )
            title = "paper, Euler" if result["rule"] == "paper" else "fidelity, rk4"
            runs.setdefault(title, []).append(joined)
    if len(runs) == 2:
        figures.save(figures.adaptation_runs(runs, "accuracy"), DOCS / f"{name}.png")


def write(results: list[dict[str, Any]], seeds: Sequence[int], command: str) -> None:
    """Write the tables and the figure of one set of seeds."""
    DOCS.mkdir(parents=True, exist_ok=True)
    name = f"sphere2-{min(seeds)}-{max(seeds)}"
    with (DOCS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["rule", *COLUMNS], extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(results)
    draw(results, name)
    minutes = sum(result["seconds"] for result in results) / 60
    commits = ", ".join(sorted({result["commit"] for result in results}))
    head = "| rule | " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|"
    rows = "\n".join(f"| {shown(result)} |" for result in results)
    rules = "\n".join(
        f"* `{rule}`: `python train.py {flags} --niter {NITER}`" for rule, flags in RULES.items()
    )
    (DOCS / f"{name}.md").write_text(
        f"# Adaptation on Sphere2, seeds {min(seeds)} to {max(seeds)}\n\n"
        f"Written by `{command}` at commit {commits}, {os.cpu_count()} cores "
        f"({platform.machine()}), a process per core; {minutes:.0f} core minutes of training, "
        f"without the measurements.\n\n"
        f"{(__doc__ or '').strip().split('NFE:', 1)[1].join(['NFE:', ''])}\n\n"
        f"{summary(results)}\n\n{deceived(results)}\n\n{rules}\n\n"
        f"## Seed by seed\n\n{head}\n{rows}\n",
        encoding="utf-8",
    )


def parse_seeds(words: Sequence[str]) -> list[int]:
    seeds: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", nargs="+", default=["0-6"], help="as 0-6 or 0 1 2 (default: 0-6)"
    )
    parser.add_argument(
        "--rules", nargs="+", choices=RULES, default=list(RULES), help="default: all"
    )
    parser.add_argument("--tables", action="store_true", help="write tables of some rules, too")
    parser.add_argument("--output_dir", type=Path, default=Path("experiments/adaptation"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        rule, seed, path = arguments.one
        keep(Path(path), train_and_measure(rule, RULES[rule], int(seed)))
        return
    seeds = parse_seeds(arguments.seeds)
    jobs = [(rule, seed) for rule in arguments.rules for seed in seeds]
    results = list(run_all(jobs, arguments.output_dir.resolve(), arguments.processes))
    if arguments.tables or arguments.rules == list(RULES):
        words = ["--seeds", *arguments.seeds]
        if arguments.tables:
            words += ["--rules", *arguments.rules, "--tables"]
        write(results, seeds, shlex.join(["python", "benchmarks/adaptation.py", *words]))
    print(
        summary(results), f"\nruns: {arguments.output_dir}; tables of all rules: {DOCS}", sep="\n"
    )


if __name__ == "__main__":
    main()
