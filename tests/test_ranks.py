"""Two processes that share every batch train the model that one process trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import processes
from trueode.runs import load_latest, read_history

# 2000 samples in batches of 129: the last batch of an epoch has 65, which the ranks share unequally
FLAGS = (
    "--name run --precision float64 --batch_size 129 --niter 100 --lr 0.001 --log_interval 10 "
    "--evaluate_test_acc true --eval_interval 50 --torch_threads 1"
)
JOBS = {
    "euler": "--solver euler --step_size 0.25",
    "dopri5": "--solver dopri5 --tol 1e-5",
    # sgd, because Adam takes a whole step for tiny gradients, which may be mostly rounding
    "dopri5 per sample": "--solver dopri5 --tol 1e-4 --per_sample true --niter 20 --optimizer sgd",
    "adapting steps": "--use_step_adaption_algo true --adaption_interval 10 --threshold 0.01 "
    "--max_steps 16",
    "adapting tolerance": "--solver fehlberg2 --use_step_adaption_algo true --adaption_interval 10 "
    "--initial_tol 1e-2 --threshold 0.01",
    "adapting with a certificate": (
        "--solver auto --use_step_adaption_algo true --adaption_algo fidelity "
        "--adaption_interval 5 --niter 60 --fidelity 0.05"
    ),
    "adapting to time series": (
        "--dataset pendulum --network linear_odenet --act tanh --solver rk4 "
        "--use_step_adaption_algo true "
        "--adaption_algo fidelity --adaption_interval 5 --niter 20 --check_on noise"
    ),
    "a penalty": "--solver rk4 --n_steps 2 --penalty 2 --penalty_interval 3 --niter 40",
    "a penalty of tolerances": "--solver dopri5 --tol 1e-3 --penalty 1 --niter 40",
    "a penalty of states": (
        "--dataset pendulum --network linear_odenet --act tanh --solver midpoint --n_steps 8 "
        "--penalty 1 --penalty_stride 50 --niter 20"  # a rank may have no samples of it
    ),
    "one sample left over": "--solver dopri5 --tol 1e-4 --batch_size 1999 --niter 4",
    "adjoint": "--solver midpoint --step_size 0.25 --autodif adjoint --niter 20",
}


def alike(one: Any, other: Any) -> bool:
    """Equality of nested plain values, with numbers up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == pytest.approx(other, rel=1e-8)) if isinstance(one, float) else one == other


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_are_one(job: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = f"{FLAGS} {JOBS[job]}"
    for folder in (one, two):
        folder.mkdir()
    code, output = processes.run(flags, one)
    assert code == 0, output
    output = processes.run_ranks(flags, two)
    assert output.count("results: ") == 1, output  # only one rank prints
    assert "Warning" not in output, output
    runs = [folder / "experiments" / "run" for folder in (one, two)]
    states = [load_latest(run / "checkpoints", pytest.fail)[1] for run in runs]
    for name, weight in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], weight, rtol=0, atol=1e-10)
    for part in ("solver", "rule", "certificate"):
        assert alike(states[0][part], states[1][part]), part
    if "per sample" in job:
        return  # each rank ends with its own slowest sample: fewer evaluations
    assert states[0]["evaluations"] == states[1]["evaluations"]
    assert states[1]["penalty"] == pytest.approx(states[0]["penalty"], rel=1e-9)
    histories = [read_history(run / "history.csv") for run in runs]
    for column, values in histories[0].items():
        if column not in ("seconds", "nfe_backward"):
            assert histories[1][column] == pytest.approx(values, rel=1e-9, nan_ok=True), column


def test_resumed_by_two(tmp_path: Path) -> None:
    flags = f"{FLAGS} --model_checkpoint_freq 10"
    code, output = processes.run(f"{flags} --niter 20", tmp_path)
    assert code == 0, output
    processes.run_ranks("--name run --resume true --niter 40", tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    code, output = processes.run(f"{flags} --niter 40", whole)
    assert code == 0, output
    continued, uninterrupted = (
        load_latest(folder / "experiments" / "run" / "checkpoints", pytest.fail)[1]
        for folder in (tmp_path, whole)
    )
    for name, weight in uninterrupted["model"].items():
        torch.testing.assert_close(continued["model"][name], weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_sample_that_cannot_be_solved_is_met_by_all(part: str, tmp_path: Path) -> None:
    """Only the second rank has it; no rank waits forever."""
    (tmp_path / "own").mkdir()
    random = np.random.default_rng(0)
    for name in ("train", "test"):
        x = random.normal(size=(20, 2))
        if name == part:
            x[-1] = 1e38
        np.savez(tmp_path / "own" / f"{name}.npz", x=x, y=np.arange(20) % 2)
    flags = (
        "--name run --dataset arrays --data_dir own --network linear_odenet --niter 10 "
        "--batch_size 20 --n_steps 2 "
        "--serial_batches true --evaluate_test_acc true --eval_interval 5 --log_interval 5"
    )
    output = processes.run_ranks(flags, tmp_path, code=1 if part == "train" else 0)
    info = json.loads((tmp_path / "experiments" / "run" / "run.json").read_text())
    if part == "train":
        assert info["status"] == "diverged"
        assert "last checkpoint" in output
    else:
        assert info["status"] == "finished"
        assert "test data cannot be evaluated" in output


@pytest.mark.parametrize(
    "solver", ["euler", "dopri5 --tol 1e-3 --per_sample true", "midpoint --adjoint true"]
)
def test_a_batch_smaller_than_the_number_of_ranks(solver: str, tmp_path: Path) -> None:
    """21 samples in batches of 10: the last batch is one sample, on one rank."""
    (tmp_path / "own").mkdir()
    x = np.random.default_rng(0).normal(size=(21, 2))
    for name in ("train", "test"):
        np.savez(tmp_path / "own" / f"{name}.npz", x=x, y=np.arange(21) % 2)
    flags = (
        "--name run --dataset arrays --data_dir own --network linear_odenet --niter 6 "
        "--batch_size 10"
    )
    processes.run_ranks(f"{flags} --solver {solver}", tmp_path)
