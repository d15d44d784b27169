"""Audit models whose share of flips is known, each on twenty samples of a thousand points.

    python benchmarks/audit_truth.py             all models: an hour on two cores
    python benchmarks/audit_truth.py --models 3  the first three
    python benchmarks/audit_truth.py --again     the stored models, audited by the current package

Models: Sphere2 trained as by ``python train.py`` with 1 to 512 Euler steps and with rk4 (5000
iterations; 2000 with more than 100 steps), and fields whose flow is known in closed form (a
rotation, a spiral, logistic growth), solved by Euler or midpoint steps, with a head fitted to the
states of that solver. The true share of flips is computed from 20 000 fresh points, with dopri5 in
double precision under per-sample control, at a tolerance of 1e-9. If the margin between the two
largest logits of a point is below ten times its measured error (the difference from a tolerance ten
times as large), the point is solved again with 1e-12; points that are too close even then are
counted separately. Evaluations: those of the exact flow, per sample of an audit. Weights, truth and
audits of each model are kept in files of ``--output_dir`` and are not repeated; ``--again`` repeats
audits by other sources of the package. The table goes to ``docs/audit-truth.csv`` and
``audit-truth.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from adaptation import commit, finish
from machine import source

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MANY, AUDITS, EACH, MARGIN = 20_000, 20, 1_000, 0.01
NITER, NITER_FINE = 5_000, 2_000  # the latter for more than 100 steps: their iterations cost more
TRAINED = [
    *(("euler", n, seed) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) for seed in (0, 1, 2)),
    *(("rk4", n, seed) for n in (4, 6, 8, 16) for seed in (0, 1, 2)),
    *(("euler", n, seed) for n in (128, 256, 512) for seed in (0, 1)),
]
ANALYTIC = [
    *(("rotation", "euler", n) for n in (4, 16, 64, 256, 1024)),
    *(("rotation", "midpoint", n) for n in (4, 8, 16)),
    *(("spiral", "euler", n) for n in (4, 16, 64, 256)),
    *(("logistic", "euler", n) for n in (2, 8, 32, 128)),
]
MODELS = [
    *(f"Sphere2, {method} x {n}, seed {seed}" for method, n, seed in TRAINED),
    *(f"{field}, {method} x {n}" for field, method, n in ANALYTIC),
]


Draw = Callable[[int, int], tuple[Any, Any]]


def build(name: str, data_dir: str, weights: Path) -> tuple[Any, Draw]:
    """A model with its stored weights, and a function that draws ``n`` fresh samples by seed."""
    index = MODELS.index(name)
    if index < len(TRAINED):
        return trained(*TRAINED[index], data_dir, weights), spheres
    return analytic(*ANALYTIC[index - len(TRAINED)], weights)


def keep_weights(model: Any, path: Path, train: Callable[[], None]) -> Any:
    """Load the weights of a model from a file, or train it and write them."""
    import torch

    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train()
        partial = path.with_suffix(".part")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    return model.eval()


def spheres(n: int, seed: int) -> tuple[Any, Any]:
    import numpy as np
    import torch

    from trueode.data.spheres import concentric_spheres

    points, labels = concentric_spheres(n, 2, np.random.default_rng([2027, seed]))
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def trained(method: str, n_steps: int, seed: int, data_dir: str, weights: Path) -> Any:
    """A model trained as by ``python train.py``."""
    import torch

    from trueode.build import build_run
    from trueode.distributed import Ranks
    from trueode.options import load_options

    niter = NITER if n_steps <= 100 else NITER_FINE
    words = f"--solver {method} --n_steps {n_steps} --max_steps 512".split()
    words += f"--random_seed {seed} --niter {niter} --data_dir {data_dir}".split()
    options, _ = load_options(words)
    _, trainer = build_run(options, Ranks(0, 1, torch.device("cpu")))
    model = keep_weights(trainer.state.model, weights, lambda: finish(trainer))
    model.solver = trainer.state.solver
    return model


def analytic(field_name: str, method: str, n_steps: int, weights: Path) -> tuple[Any, Draw]:
    """A field of known flow, with a head fitted to its solution by a solver."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from trueode import FixedStep, NeuralODE

    torch.manual_seed(n_steps)
    field = FIELDS[field_name]

    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2027 + 1000 * seed)
        low = 0.05 if field_name == "logistic" else -1.0
        x = low + (1.0 - low) * torch.rand(n, 2, generator=generator)
        middle = (1.0 + low) / 2
        return x, (x[:, 0] - middle > 0.4 * torch.sin(4 * x[:, 1])).long()

    head = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    model = NeuralODE(as_module(field), downstream=head, solver=FixedStep(method, n_steps=n_steps))
    x, labels = draw(4000, 999)

    def train() -> None:
        with torch.no_grad():
            states = NeuralODE(as_module(field), solver=model.solver)(x)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
        for _ in range(600):
            loss = F.cross_entropy(head(states), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    check_flow(field_name, x[:100].double())
    return keep_weights(model, weights, train), draw


def rotation(t: Any, z: Any) -> Any:
    return 3.0 * z.flip(1) * z.new_tensor([-1.0, 1.0])


def spiral(t: Any, z: Any) -> Any:
    return rotation(t, z) - 0.7 * z


def logistic(t: Any, z: Any) -> Any:
    return 4.0 * z * (1 - z)


FIELDS: dict[str, Callable[[Any, Any], Any]] = {
    "rotation": rotation,
    "spiral": spiral,
    "logistic": logistic,
}


def as_module(function: Callable[[Any, Any], Any]) -> Any:
    """A field as a module."""
    from torch import nn

    class Known(nn.Module):
        def forward(self, t: Any, z: Any) -> Any:
            return function(t, z)

    return Known()


def check_flow(name: str, x: Any) -> None:
    """Check the reference solution against the flow in closed form."""
    import torch

    from trueode import Adaptive, solve

    found = solve(FIELDS[name], x, solver=Adaptive("dopri5", 1e-10, 1e-10, per_sample=True)).z
    if name == "logistic":
        exact = 1 / (1 + (1 / x - 1) * torch.exp(torch.tensor(-4.0, dtype=torch.float64)))
    else:
        c, s = torch.cos(torch.tensor(3.0).double()), torch.sin(torch.tensor(3.0).double())
        turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        exact = x @ turn.T * (torch.exp(torch.tensor(-0.7).double()) if name == "spiral" else 1.0)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


def true_flips(model: Any, x: Any) -> dict[str, float]:
    """The shares of fresh points that flip, and that are too close to a boundary to decide."""
    from copy import deepcopy

    import torch

    from trueode import Adaptive

    double = deepcopy(model).double()
    with torch.no_grad():
        own = torch.cat([model(part) for part in x.split(1000)])

        def exact(points: Any, tolerance: float) -> Any:
            solver = Adaptive("dopri5", tolerance, tolerance, per_sample=True)
            return torch.cat([double(part.double(), solver) for part in points.split(1000)])

        found, error = torch.zeros_like(own).double(), torch.zeros(len(own)).double()
        close = torch.ones(len(own), dtype=torch.bool)
        for tolerance in (1e-9, 1e-12):  # the latter for points that are still too close
            if bool(close.any()):
                found[close] = exact(x[close], tolerance)
                error[close] = (found[close] - exact(x[close], 10 * tolerance)).abs().amax(dim=1)
            margin = found.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
            close = margin < 10 * error
    flipped = (own.argmax(1) != found.argmax(1)) & ~close
    return {
        "true": float(flipped.double().mean()),
        "close": float(close.double().mean()),
        "error": float(error.median()),
    }


def examine(name: str, data_dir: str, path: Path) -> None:
    """Write the true share of flips of a model and the results of its audits.

    Weights and truth are kept next to the result.
    """
    import torch

    torch.set_num_threads(1)
    from trueode.auditing import audit

    weights, truth = path.with_suffix(".pt"), path.with_suffix(".truth.json")
    if not weights.exists():
        truth.unlink(missing_ok=True)
    model, draw = build(name, data_dir, weights)
    x, y = draw(AUDITS * EACH, 1)
    if not truth.exists():
        with torch.no_grad():
            accuracy = float((model(x).argmax(1) == y).double().mean())
        put(truth, {**true_flips(model, draw(MANY, 0)[0]), "accuracy": accuracy})
    begin = time.perf_counter()
    audits = [
        audit(model, (x[i : i + EACH], y[i : i + EACH]), methods=())
        for i in range(0, AUDITS * EACH, EACH)
    ]
    seconds = (time.perf_counter() - begin) / AUDITS
    verdicts = [found.verdict for found in audits]
    result = {
        "model": name,
        **json.loads(truth.read_text()),
        **{
            verdict: verdicts.count(verdict)
            for verdict in ("ode", "solver-dependent", "inconclusive")
        },
        "evaluations": mean(
            found.exact.evaluations / EACH if found.exact else 0.0 for found in audits
        ),
        "seconds": seconds,
        "commit": commit(),
        "source": source(),
    }
    put(path, result)


def put(path: Path, result: dict[str, Any]) -> None:
    """Write a file atomically."""
    partial = Path(f"{path}.part")
    partial.write_text(json.dumps(result))
    partial.replace(path)


def run_all(names: list[str], folder: Path, processes: int, again: bool) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRUEODE_DATA": str(folder / "data")}

    def one(name: str) -> dict[str, Any]:
        path = folder / f"{name.replace(', ', '-').replace(' ', '_')}.json"
        if not path.exists() or (again and json.loads(path.read_text()).get("source") != source()):
            command = [sys.executable, str(Path(__file__).resolve()), "--one", name, str(path)]
            subprocess.run(command, env=environment, check=True)
        result: dict[str, Any] = json.loads(path.read_text())
        print(shown(result), flush=True)
        return result

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, names))


def shown(result: dict[str, Any]) -> str:
    cells = [
        result["model"],
        f"{100 * result['accuracy']:.1f} %",
        f"{100 * result['true']:.2f} %",
        f"{100 * result['close']:.3f} %",
        *(str(result[verdict]) for verdict in ("ode", "solver-dependent", "inconclusive")),
        f"{evaluations([result]):.0f}",
    ]
    return " | ".join(cells)


def evaluations(results: list[dict[str, Any]]) -> float:
    """Evaluations per sample: the mean over the models for which they are known."""
    known = [value for result in results if isfinite(value := result.get("evaluations", nan))]
    return mean(known) if known else nan


def summary(results: list[dict[str, Any]]) -> str:
    """A table of the wanted and the observed shares of verdicts."""
    wrong = [result for result in results if result["true"] > MARGIN]
    good = [result for result in results if result["true"] <= 0.003]
    bad = [result for result in results if result["true"] >= 0.03]
    total = AUDITS * len(wrong)
    worst = max((result["ode"] for result in wrong), default=0)
    passed = sum(result["ode"] for result in wrong)
    found_good = min((result["ode"] for result in good), default=AUDITS)
    found_bad = min((result["solver-dependent"] for result in bad), default=AUDITS)

    def share(count: int, of: int) -> str:
        return f"{100 * count / max(of, 1):.1f} %"

    rate_good = sum(result["ode"] for result in good)
    rate_bad = sum(result["solver-dependent"] for result in bad)
    return "\n".join(
        [
            "| true share of flips | models | audits | verdict | share of the audits | "
            "least or most of a model | wanted |",
            "|---|---|---|---|---|---|---|",
            f"| > 1 % | {len(wrong)} | {total} | `ode` | {share(passed, total)} | "
            f"at most {worst} of {AUDITS} | none |",
            f"| ≤ 0.3 % | {len(good)} | {AUDITS * len(good)} | `ode` | "
            f"{share(rate_good, AUDITS * len(good))} | at least {found_good} of {AUDITS} | "
            "≥ 97 % |",
            f"| ≥ 3 % | {len(bad)} | {AUDITS * len(bad)} | `solver-dependent` | "
            f"{share(rate_bad, AUDITS * len(bad))} | at least {found_bad} of {AUDITS} | ≥ 99 % |",
            f"\nEvaluations of the exact flow per sample: {evaluations(good):.0f} over the "
            f"{len(good)} models in which at most 0.3 % flip (wanted: ≤ 300), "
            f"{evaluations(results):.0f} over all {len(results)} (wanted: ≤ 700).",
        ]
    )


def write(results: list[dict[str, Any]]) -> None:
    columns = [
        "model",
        "accuracy",
        "true",
        "close",
        "error",
        "ode",
        "solver-dependent",
        "inconclusive",
    ]
    columns += ["evaluations", "seconds"]
    with (DOCS / "audit-truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    names = [
        "model",
        "accuracy",
        "true flips",
        "too close",
        "ode",
        "solver-dependent",
        "inconclusive",
        "evaluations",
    ]
    head = f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|"
    rows = "\n".join(f"| {shown(result)} |" for result in results)
    commits = ", ".join(sorted({result["commit"] for result in results}))
    (DOCS / "audit-truth.md").write_text(
        "# The audit against the truth\n\n"
        f"Written by `python benchmarks/audit_truth.py` at commit {commits}, {os.cpu_count()} "
        f"cores ({platform.machine()}). {len(results)} models, each audited on {AUDITS} samples of "
        f"{EACH} that share no point, at a margin of 1 %.\n\n"
        f"{(__doc__ or '').strip().split('Models:', 1)[1].join(['Models:', ''])}\n\n"
        f"{summary(results)}\n\n{head}\n{rows}\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=len(MODELS), help="only the first ones")
    parser.add_argument("--output_dir", type=Path, default=Path("experiments/audit-truth"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--again", action="store_true", help="repeat audits by other sources of the package"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, path = arguments.one
        examine(name, os.environ["TRUEODE_DATA"], Path(path))
        return
    folder, how = arguments.output_dir.resolve(), (arguments.processes, arguments.again)
    results = run_all(MODELS[: arguments.models], folder, *how)
    if arguments.models >= len(MODELS):
        write(results)
    print(summary(results))


if __name__ == "__main__":
    main()
