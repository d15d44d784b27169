"""Runs of densities: every data set, gradient and rule; resumed, evaluated, audited and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_experiment import SHORT, history, state, train
from tests.test_interruptions import equal
from trueode import ContinuousFlow
from trueode.cli.main import main
from trueode.experiment import load

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = f"{SHORT} --ch_residual_block 8 --n_steps 4 --batch_size 32 --verdict_budget 0"
FIDELITY = "--use_step_adaption_algo true --adaption_algo fidelity --adaption_interval 4"
ADAPTED = f"{SHORT} --ch_residual_block 8 --batch_size 32 --verdict_budget 0 {FIDELITY}"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dataset", ["moons", "rings", "checkerboard"])
def test_a_run_learns_a_density(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = train(
        f"{SHORT} --dataset {dataset} --n_steps 4 --niter 40 --evaluate_test_acc true --name run",
        capsys,
    )
    assert code == 0, output
    rows = history("run")
    assert rows["loss"][-1] < rows["loss"][0]
    # nats of a sample, and bits per dimension
    assert np.array(rows["bits_per_dim"]) == pytest.approx(
        np.array(rows["loss"]) / (2 * np.log(2)), rel=1e-6
    )
    assert np.isfinite(rows["test_bits_per_dim"][-1])


@pytest.mark.parametrize(
    "flags",
    [
        f"{SMALL} --autodif naive",
        f"{SMALL} --autodif checkpoint",
        f"{SMALL} --autodif adjoint",
        f"{SMALL} --trace hutchinson --penalty 1 --penalty_interval 2",
        f"{SMALL.replace('--n_steps 4', '')} --solver dopri5 --tol 1e-3 --per_sample true",
        f"{SMALL} --solver euler --time_dependent false --act softplus --precision float64",
        f"{SMALL.replace('--n_steps 4', '')} --use_step_adaption_algo true --adaption_interval 4",
        f"{ADAPTED} --solver auto",
        f"{ADAPTED} --solver bosh3 --trace hutchinson",
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--dataset moons {flags}"
    code, output = train(f"{flags} --name whole", capsys)
    assert code == 0, output
    code, output = train(f"{flags} --name part --niter 5", capsys)
    assert code == 0, output
    code, output = train("--name part --resume true --niter 12", capsys)
    assert code == 0, output
    one, two = state("whole"), state("part")
    assert equal(one["model"], two["model"])
    assert equal(one["optimizer"], two["optimizer"])


def test_a_certificate_of_a_density(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = train(
        "--dataset moons --niter 60 --ch_residual_block 8 --batch_size 128 --name run "
        f"{FIDELITY} --fidelity 0.05",
        capsys,
    )
    assert code == 0, output
    audit = json.loads(Path("experiments/run/audit.json").read_text())
    assert audit["certificate"]["status"] == "ode", output
    assert audit["certificate"]["sentence"] in output


def test_arrays_hold_samples_alone(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    np.savez("x.npz", x=x)
    np.savez("labelled.npz", x=x, y=np.zeros(200, dtype=int))
    code, output = train(f"--dataset arrays --data_dir x.npz --task density {SMALL}", capsys)
    assert code == 0, output
    model, options = load("experiments/neural_ode")
    assert isinstance(model, ContinuousFlow)
    assert model.shape == (1, 3)
    assert options.network == "linear_odenet"
    for flags, words in {
        "--data_dir x.npz": ["'y' is missing", "--task density"],
        "--data_dir labelled.npz --task density": ["y beside x", "alone"],
    }.items():
        code, output = train(f"--dataset arrays {flags}", capsys)
        assert code == 2
        assert all(word in output for word in words)


def test_a_run_is_evaluated_audited_and_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    train(f"--dataset checkerboard {SMALL} --name run", capsys)
    model, _ = load("experiments/run")
    assert isinstance(model, ContinuousFlow)
    x = torch.zeros(3, 1, 2)
    torch.testing.assert_close(model.log_prob(x), model(x))
    assert model.sample(5).shape == (5, 1, 2)
    code, output = train("--phase infer --split test --name run --verdict_budget 1e6", capsys)
    assert code == 0, output
    found = json.loads(Path("experiments/run/evaluation_test.json").read_text())
    assert found["n"] == 2000
    assert found["bits_per_dim"] == pytest.approx(found["loss"] / (2 * np.log(2)))
    assert main(["audit", "experiments/run", "--methods", "", "--samples", "200"]) in (0, 3, 4)
    capsys.readouterr()
    audit = json.loads(Path("experiments/run/audit/audit.json").read_text())
    assert audit["task"] == "density"
