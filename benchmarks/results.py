"""Train the models of ``docs/results``, and write its tables and figures.

    python benchmarks/results.py                           data that needs no files: minutes
    python benchmarks/results.py --mnist DIR --images DIR  also images of these folders

Runs go to ``--output_dir`` and are not repeated: finished runs are only read, interrupted ones are
resumed. The tables, with the command of each, go to ``docs/results/README.md``, the figures to the
same folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "results"
FIGURE_4A = (
    "--dataset concentric_sphere2 --solver euler --step_size 0.015625 --lr 0.0001 "
    "--network simple_odenet --ch_residual_block 32 --batch_size 128 --niter 10000 "
    "--evaluate_text_acc true --evaluate_with_different_solver true "
    "--test_solver_list euler midpoint rk4 --test_factor_list 0.5 0.75 1. 1.5 2."
)
MNIST = (
    "--dataset mnist --network odenet --ch_residual_block 16 --solver rk4 --step_size 0.25 "
    "--lr 0.001 --niter 300"
)
IMAGES = (
    "--dataset image_folder --network odenet --solver euler --step_size 0.125 --lr 0.001 "
    "--niter 600"
)
PAPER = "--use_step_adaption_algo true --evaluate_test_acc true --niter 10000"
FIDELITY = (
    "--solver rk4 --use_step_adaption_algo true --adaption_algo fidelity "
    "--evaluate_test_acc true --niter 10000"
)
PENDULUM = (
    "--dataset pendulum --network linear_odenet --act tanh --solver rk4 --step_size 0.25 --lr 0.001"
)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and results."""

    path: Path

    def read(self, name: str) -> Any:
        """One of its JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    @property
    def audit(self) -> dict[str, Any]:
        """The final verdict of the run."""
        return self.read("audit.json")

    def keep(self, figure: str, name: str) -> None:
        """Copy a figure into the documentation."""
        shutil.copy(self.path / "figures" / f"{figure}.png", DOCS / f"{name}.png")


class Trainer:
    """Calls ``python train.py`` for runs that are not finished."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir

    def train(self, name: str, flags: str, *where: str) -> Run:
        """Train a model or resume its run, unless it is finished."""
        path = self.output_dir / name
        if not (path / "audit.json").is_file():
            begun = (path / "config.yaml").is_file()
            self._call(name, *(["--resume", "true"] if begun else [*shlex.split(flags), *where]))
        return Run(path)

    def infer(self, name: str, split: str, *words: str) -> Any:
        """Evaluate a run on a split."""
        file = self.output_dir / name / f"evaluation_{split}.json"
        if not file.is_file():
            self._call(name, "--phase", "infer", "--split", split, *words)
        return json.loads(file.read_text(encoding="utf-8"))

    def _call(self, name: str, *words: str) -> None:
        place = ["--name", name, "--output_dir", str(self.output_dir)]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words, *place], check=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def verdict(audit: dict[str, Any]) -> str:
    """The verdict in a few words."""
    if audit["verdict"] != "solver-dependent":
        return {"ode": "behaves as an ODE", "inconclusive": "undecided"}[audit["verdict"]]
    words = {
        "better with its solver": "NOT an ODE",
        "better under the exact flow": "better solved finely",
    }
    return words.get(audit["performance"]["answer"], "depends on its solver")


def checked(audit: dict[str, Any]) -> str:
    """The cells of a table row: the metric under both solvers, changed predictions, verdict."""
    performance = audit["performance"]
    value = percent if performance["name"] == "accuracy" else "{:.2g}".format
    flips = f"{percent((audit['flips'] + audit['blown_up']) / audit['n'])} of {audit['n']}"
    return (
        f"{value(performance['own'])} | {value(performance['exact'])} | {flips} | {verdict(audit)}"
    )


HEAD = "own solver | exact flow | changed predictions | verdict |"


def default_job(trainer: Trainer) -> str:
    """The default job with seeds 0 to 4."""
    rows = []
    for seed in range(5):
        run = trainer.train(f"default-{seed}", f"--random_seed {seed}")
        accuracy = trainer.infer(run.path.name, "train")["accuracy"]
        rows.append((accuracy, f"| {seed} | {percent(accuracy)} | {checked(run.audit)} |"))
    median = sorted(accuracy for accuracy, _ in rows)[2]
    return "\n".join(
        [
            "## The default job, five seeds\n\n`python train.py --random_seed SEED`\n\n"
            f"| seed | training accuracy | {HEAD}",
            "|---|---|---|---|---|---|",
            *(row for _, row in rows),
            f"\nMedian training accuracy: {percent(median)}.",
        ]
    )


def figure_4a(trainer: Trainer) -> str:
    """The documented command of Figure 4 a."""
    run = trainer.train("figure-4a", FIGURE_4A)
    run.keep("solver_swap", "figure-4a")
    sentence = run.audit["sentence"]
    rows = [
        f"| {row['method']}{' (training)' if row['is_training'] else ''} "
        f"| {' '.join(f'{x:g}' for x in row['factors'])} | {row['n_steps']:g} | {row['nfe']:g} "
        f"| {percent(row['metric'])} | {row['loss']:.4f} | {percent(row['changed'])} "
        f"| {percent(row['flips'])} |"
        for row in run.audit["rows"]
    ]
    return "\n".join(
        [
            f"## Figure 4 a, training step 1/64, one seed\n\n`python train.py {FIGURE_4A}`\n",
            "| solver | factor | steps | NFE | test accuracy | loss "
            "| unlike the training solver's | unlike the exact flow's |\n"
            "|---|---|---|---|---|---|---|---|",
            *rows,
            f"\n{sentence[0].upper()}{sentence[1:]}.\n\n"
            "![Test accuracy against the number of steps](figure-4a.png)",
        ]
    )


def adaptation(title: str, flags: str, run: Run, figure: str) -> str:
    """The section of an adaptive run: its verdict, its effort and its figure."""
    nfe = run.read("run.json")["nfe_per_iteration"]
    return (
        f"## {title}\n\n`python train.py {flags}`\n\n* {run.audit['sentence']}\n"
        f"* {nfe:.1f} evaluations per iteration, all counted\n\n"
        f"![Accuracy, steps, signal and effort over training]({figure})"
    )


def single(title: str, command: str, run: Run, note: str = "") -> str:
    metric = run.audit["performance"]["name"]
    return (
        f"## {title}\n\n`python train.py {command}`\n\n| test {metric}: {HEAD}\n|---|---|---|---|\n"
        f"| {checked(run.audit)} |\n\nWhole test set, training solver: {shown(run, metric)}.{note}"
    )


def shown(run: Run, metric: str) -> str:
    """The metric on the whole test set, from the last row of the history."""
    header, *rows = (run.path / "history.csv").read_text(encoding="utf-8").split()
    value = float(dict(zip(header.split(","), rows[-1].split(","), strict=True))[f"test_{metric}"])
    return f"{metric} {percent(value) if metric == 'accuracy' else f'{value:.3g}'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("experiments"), help="folder of the runs"
    )
    parser.add_argument("--mnist", metavar="DIR", help="a --data_dir that contains MNIST")
    parser.add_argument(
        "--images", metavar="DIR", help="a folder with train/CLASS/* and test/CLASS/*"
    )
    arguments = parser.parse_args()
    DOCS.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.output_dir)
    tested = " --evaluate_test_acc true"
    parts = [
        "# Results\n\nWritten by `python benchmarks/results.py`.",
        default_job(trainer),
        figure_4a(trainer),
    ]
    for name, title, flags in (
        ("adaptation-paper", "The paper's adaptation", PAPER),
        ("adaptation-fidelity", "The fidelity adaptation", FIDELITY),
    ):
        run = trainer.train(name, flags)
        run.keep("adaptation", name)
        parts.append(adaptation(title, flags, run, f"{name}.png"))
    run = trainer.train("pendulum", PENDULUM + tested)
    run.keep("time_series", "pendulum")
    figure = "\n\n![Predicted trajectories of the pendulum](pendulum.png)"
    parts.append(single("Pendulum", PENDULUM + tested, run, figure))
    for name, title, flags, folder in (
        ("mnist", "MNIST", MNIST, arguments.mnist),
        ("images", "A folder of images", IMAGES, arguments.images),
    ):
        if folder:
            run = trainer.train(name, flags + tested, "--data_dir", folder)
            parts.append(single(title, flags + tested, run))
    text = "\n\n".join(parts) + "\n"
    (DOCS / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
