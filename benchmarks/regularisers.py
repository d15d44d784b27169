"""Compare the penalty with published regularisers and with controls: Sphere2, fixed steps of rk4.

    python benchmarks/regularisers.py --tune    seeds 0 to 6, five weights of each, 3 steps: hours
    python benchmarks/regularisers.py           seeds 100 to 106, the weights chosen, 3 and 6 steps

Each term is added to the loss of the paper's run (10 000 iterations). A weight is chosen on seeds
0 to 6 by one rule for all: among weights whose mean accuracy under the exact flow is at most 0.7
points below the best one's, those with at most 0.5 % of flips on most seeds, then the fewest flips
in the mean. Finished runs are kept in ``--output_dir`` and in the tables
``docs/adaptation/regularisers-tuned.csv`` and ``regularisers-100-106.csv``. The report goes to
``regularisers.md`` beside them.

The terms. They are computed every fourth iteration and weigh four times as much there, as the
penalty does; but on all 128 samples, where the penalty takes 32. Their own evaluations of the field
are not counted, because an implementation could take them from the solve:

* ``penalty``: `DiscretisationPenalty`.
* ``embedded``: the local error estimates of the solver, times the step sizes (Pal et al. 2021).
  The third-order method within rk4 replaces the last stage by the first of the next step.
* ``kinetic``: the kinetic energy and the Jacobian norm, estimated with one random vector
  (Finlay et al. 2020).
* ``taylor``: the second total derivative of the state in time (Kelly et al. 2020).
* ``steer``: the end time of every iteration is random, 1 - b to 1 + b (Ghosh et al. 2020).
* ``random steps``: the number of steps of every iteration is random, from a range around N.
* ``both``: the cross-entropy of the penalty's second solve.
* ``plain``: nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

import adaptation
import numpy as np
import torch
from torch import Tensor

from trueode.data import Batch
from trueode.solvers import FixedStep
from trueode.training import Trainer
from trueode.training.loop import Step

INTERVAL = 4
TUNED, REPORTED = range(7), range(100, 107)
STEPS = 3  # of the runs that choose the weights
GRIDS = (3, 6)  # steps of the runs that are reported
CHOICE = adaptation.DOCS / "regularisers-tuned.csv"
NAMES = {  # in the picture
    "plain": "fixed steps, nothing added",
    "penalty": "discretisation penalty",
    "embedded": "embedded error (Pal 2021)",
    "kinetic": "kinetic energy (Finlay 2020)",
    "taylor": "Taylor (Kelly 2020)",
    "steer": "STEER (Ghosh 2020)",
    "random steps": "random numbers of steps",
    "both": "cross-entropy of both solves",
}
RULES = {  # of the benchmark of adaptation, as they are called in the picture
    "paper": "the paper's rule",
    "rk4, no penalty": "fidelity without the penalty",
    "rk4": "fidelity",
    "rk4 x 8": "8 fixed steps",
}
WEIGHTS: dict[str, tuple[float, ...]] = {
    "plain": (0.0,),
    "penalty": (0.3, 0.5, 1.0, 2.0, 3.0),
    "embedded": (0.3, 3.0, 6.0, 10.0, 30.0),
    "kinetic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "taylor": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    "steer": (0.05, 0.1, 0.2, 0.35, 0.5),
    "random steps": (0.0, 1.0, 2.0, 3.0, 4.0),  # see `span`
    "both": (0.25, 0.5, 1.0, 2.0, 4.0),
}

Field = Callable[[Any, Tensor], Tensor]


def steps(field: Field, z: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of n steps of rk4 on [0, 1]: the last stage, and the state after the step."""
    h = 1 / n
    for i in range(n):
        t = i * h
        k1 = field(t, z)
        k2 = field(t + h / 2, z + h / 2 * k1)
        k3 = field(t + h / 2, z + h / 2 * k2)
        k4 = field(t + h, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield k4, z


def integral(of: Callable[[float, Tensor], Tensor], field: Field, z: Tensor, n: int) -> Tensor:
    """The integral over [0, 1] of a quantity along a solution, by the trapezoidal rule."""
    states = [z, *(after for _, after in steps(field, z, n))]
    values = torch.stack([of(i / n, state) for i, state in enumerate(states)])
    return torch.trapezoid(values, dx=1 / n)


def square(x: Tensor) -> Tensor:
    """The mean over samples of the squared norm."""
    return x.square().flatten(1).sum(1).mean()


def embedded(field: Field, z: Tensor, n: int, seed: int) -> Tensor:
    """The norms of the error estimates times the step size, summed over steps."""
    errors = [
        (last - field(i / n, after)) / (6 * n)
        for i, (last, after) in enumerate(steps(field, z, n), 1)
    ]
    return torch.stack([error.flatten(1).norm(dim=1).mean() for error in errors]).sum() / n


def kinetic(field: Field, z: Tensor, n: int, seed: int) -> Tensor:
    """The integrals of |f|^2 and of |e^T df/dz|^2 with random signs e."""
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], z.shape)).to(z)

    def energy(t: float, at: Tensor) -> Tensor:
        slope = field(t, at)
        (row,) = torch.autograd.grad(slope, at, signs, create_graph=True)
        return square(slope) + square(row)

    return integral(energy, field, z, n)


def taylor(field: Field, z: Tensor, n: int, seed: int) -> Tensor:
    """The integral of |z''|^2."""

    def curvature(t: float, at: Tensor) -> Tensor:
        time = at.new_tensor(t)
        along = (torch.ones_like(time), field(time, at))
        return square(torch.func.jvp(field, (time, at), along)[1])

    return integral(curvature, field, z, n)


TERMS = {"embedded": embedded, "kinetic": kinetic, "taylor": taylor}


def span(n: int, weight: float) -> tuple[int, int]:
    """The range of the random steps: N to N + 1, N - 1 to N + 1, and so on, around N."""
    more = int(weight)
    return max(n - (more + 1) // 2, 1), n + 1 + more // 2


@dataclass
class Regularised(Trainer):
    """A trainer with another term in its loss."""

    term: str = "plain"
    weight: float = 0.0
    n_steps: int = STEPS

    def step(self, network: Any, batch: Batch, whole: int) -> Step:
        model, state = self.state.model, self.state
        chance = np.random.default_rng([self.checks.seed, state.iteration]).random()
        if self.term == "steer":
            model.t = (0.0, 1.0 + self.weight * (2 * chance - 1))
        elif self.term == "random steps":
            low, high = span(self.n_steps, self.weight)
            state.solver = FixedStep("rk4", n_steps=low + int(chance * (high - low + 1)))
        try:
            return super().step(network, batch, whole)
        finally:
            model.t = (0.0, 1.0)
            state.solver = FixedStep("rk4", n_steps=self.n_steps)

    def penalise(self, network: Any, batch: Batch, whole: int, output: Tensor) -> Tensor | None:
        if self.term == "penalty":
            return super().penalise(network, batch, whole, output)
        state, scale = self.state, INTERVAL * self.weight
        if state.iteration % INTERVAL or self.term not in (*TERMS, "both"):
            return None
        if self.term == "both":
            assert self.penalty is not None
            part = batch.rows(self.penalty.rows())
            partner = self.penalty.partner(state.solver, state.iteration)
            other, solution = self.task.predict(network, part, partner)
            state.evaluations += solution.nfe * len(part.x)
            return scale * self.task.loss_sum(other, part) / len(part.x)
        z = batch.x if state.model.upstream is None else state.model.upstream(batch.x)
        z = z if z.requires_grad else z.detach().requires_grad_()
        return scale * TERMS[self.term](state.model.field, z, self.n_steps, state.iteration)


def flags(name: str) -> str:
    """The options of a run that is named ``TERM WEIGHT x STEPS``."""
    term, weight, n = parse(name)
    penalty = {"penalty": weight, "both": 1.0}.get(term, 0.0)
    return f"--solver rk4 --n_steps {n} --penalty {penalty}"


def parse(name: str) -> tuple[str, float, int]:
    run, _, n = name.partition(" x ")
    term, _, weight = run.rpartition(" ")
    return term, float(weight), int(n)


def train_and_measure(name: str, seed: int) -> dict[str, Any]:
    """Train one model with one term, and measure it as the benchmark of adaptation does."""
    term, weight, n = parse(name)
    adaptation.EVERY = 1000  # these runs are judged in the end

    def with_term(trainer: Trainer) -> Trainer:
        same = {field.name: getattr(trainer, field.name) for field in fields(Trainer)}
        trainer.state.solver = FixedStep("rk4", n_steps=n)
        return Regularised(**same, term=term, weight=weight, n_steps=n)

    return adaptation.train_and_measure(name, flags(name), seed, with_term)


def chosen(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The weight of each term, by the rule above."""
    weights = {}
    for term, tried in WEIGHTS.items():
        runs = {
            weight: [r for r in results if r["rule"] == f"{term} {weight:g} x {STEPS}"]
            for weight in tried
        }
        accuracy = {weight: mean(r["exact"] for r in rows) for weight, rows in runs.items()}
        good = [weight for weight in tried if accuracy[weight] >= max(accuracy.values()) - 0.007]
        weights[term] = min(
            good,
            key=lambda weight: (
                2 * sum(r["flips"] <= 0.005 for r in runs[weight]) <= len(runs[weight]),
                mean(r["flips"] for r in runs[weight]),
            ),
        )
    return weights


COLUMNS = ("nfe", "flips", "worst", "exact", "around", "apart", "seconds")


def lines(results: Sequence[dict[str, Any]]) -> str:
    """A table with one row per run name: means, and flips and accuracy of each seed."""
    head = (
        "| term, weight, steps | evaluations | flips | accuracy under the exact flow | "
        "flips around the data | D | seconds | flips, seed by seed | accuracy, seed by seed |"
    )
    rows = [head, "|---" * 9 + "|"]
    for name in dict.fromkeys(r["rule"] for r in results):
        of = [r for r in results if r["rule"] == name]
        flips, exact = ([100 * r[key] for r in of] for key in ("flips", "exact"))
        rows.append(
            f"| {name} | {mean(r['nfe'] for r in of):.1f} | {mean(flips):.2f} % | "
            f"{mean(exact):.2f} % | {100 * mean(r['around'] for r in of):.1f} % | "
            f"{100 * mean(r['apart'] for r in of):.2f} % | "
            f"{mean(r['seconds'] for r in of):.0f} | {', '.join(f'{x:.2f}' for x in flips)} | "
            f"{', '.join(f'{x:.1f}' for x in exact)} |"
        )
    return "\n".join(rows)


def paired(results: Sequence[dict[str, Any]], best: str) -> str:
    """Differences to one run, seed by seed: means with 95 % intervals (Student)."""
    from scipy.stats import t as student

    def of(name: str, key: str) -> list[float]:
        return [100 * r[key] for r in results if r["rule"] == name]

    rows = [f"| minus {best} | flips | accuracy under the exact flow |", "|---|---|---|"]
    for name in dict.fromkeys(r["rule"] for r in results):
        if name == best:
            continue
        cells = []
        for key in ("flips", "exact"):
            gaps = [a - b for a, b in zip(of(name, key), of(best, key), strict=True)]
            centre, n = mean(gaps), len(gaps)
            spread = (sum((gap - centre) ** 2 for gap in gaps) / (n - 1)) ** 0.5
            half = float(student.ppf(0.975, n - 1)) * spread / n**0.5
            cells.append(f"{centre:+.2f} ({centre - half:+.2f} to {centre + half:+.2f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw flips against evaluations: a line per term, a mark per rule.

    The rules are those of the benchmark of adaptation on the same seeds.
    """
    from trueode.figures import save
    from trueode.figures.theme import DARK, colour, new_figure, style

    with (adaptation.DOCS / f"sphere2-{REPORTED[0]}-{REPORTED[-1]}.csv").open(newline="") as file:
        rules = list(csv.DictReader(file))
    with style():
        figure = new_figure(7.8, 4.6)
        axes = figure.subplots()
        for k, term in enumerate(WEIGHTS):
            names = [n for n in dict.fromkeys(r["rule"] for r in results) if parse(n)[0] == term]
            of = [[r for r in results if r["rule"] == name] for name in names]
            x, y = ([mean(r[key] for r in rows) for rows in of] for key in ("nfe", "flips"))
            axes.plot(
                x,
                [100 * each for each in y],
                "o-",
                color=colour(k),
                label=NAMES[term],
                markersize=4,
            )
        for marker, (rule, name) in zip("Xsd^", RULES.items(), strict=True):
            of_rule = [row for row in rules if row["rule"] == rule]
            x, y = ([mean(float(row[key]) for row in of_rule)] for key in ("nfe", "flips"))
            axes.plot(x, [100 * each for each in y], marker, color=DARK, label=name, markersize=8)
        axes.axhline(1, color=DARK, linewidth=0.7, linestyle=":")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="field evaluations per iteration",
            ylabel="changed predictions (%)",
        )
        ticks = (10, 12, 16, 24, 32, 50)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_yticks((0.1, 1, 10), ["0.1", "1", "10"])
        axes.minorticks_off()
        figure.subplots_adjust(right=0.65)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(figure, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The results in a table."""
    with path.open(newline="") as file:
        return [
            {**row, "seed": int(row["seed"]), **{key: float(row[key]) for key in COLUMNS}}
            for row in csv.DictReader(file)
        ]


def place(result: dict[str, Any]) -> tuple[int, float, int, int]:
    """The place of a result in a table."""
    term, weight, n = parse(result["rule"])
    return list(WEIGHTS).index(term), weight, n, result["seed"]


def write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write results as a table."""
    names = ["rule", "seed", *COLUMNS, "commit"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(results, key=place))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="train with all weights")
    parser.add_argument("--terms", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--output_dir", type=Path, default=Path("experiments/regularisers"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, seed, path = arguments.one
        adaptation.keep(Path(path), train_and_measure(name, int(seed)))
        return
    folder = arguments.output_dir.resolve()
    if arguments.tune:
        names = [
            f"{term} {weight:g} x {STEPS}" for term in arguments.terms for weight in WEIGHTS[term]
        ]
        seeds, table = TUNED, CHOICE
    else:
        weights = chosen(read(CHOICE))
        names = [f"{term} {weights[term]:g} x {n}" for n in GRIDS for term in arguments.terms]
        seeds, table = REPORTED, CHOICE.with_name("regularisers-100-106.csv")
    results = read(table) if table.exists() else []
    have = {(r["rule"], r["seed"]) for r in results}
    jobs = [(name, seed) for name in names for seed in seeds if (name, seed) not in have]
    for result in adaptation.run_all(jobs, folder, arguments.processes, Path(__file__)):
        results.append(result)
        write(table, results)
    results.sort(key=place)
    print(lines(results))
    if arguments.tune:
        return
    if arguments.terms != list(WEIGHTS):
        return
    draw(results, adaptation.DOCS / "regularisers.png")
    commits = ", ".join(sorted({r["commit"] for r in results}))
    said = (__doc__ or "").split("The terms.", 1)[1]
    best = f"penalty {weights['penalty']:g} x {STEPS}"
    (adaptation.DOCS / "regularisers.md").write_text(
        f"# Regularisers on Sphere2, seeds {seeds[0]} to {seeds[-1]}\n\n"
        f"Written by `python benchmarks/regularisers.py` at commit {commits}, {os.cpu_count()} "
        f"cores, a process per core. The weights were chosen on seeds 0 to 6 by "
        f"`python benchmarks/regularisers.py --tune`.\n\nThe terms.{said.rstrip()}\n\n"
        f"{lines(results)}\n\n## Paired differences in percentage points\n\n"
        f"{paired(results, best)}\n\n## The weights, seeds 0 to 6\n\n"
        f"{lines(read(CHOICE))}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
