"""Runs whose training computes the field in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import processes
from tests.test_experiment import history, state, train
from tests.test_interruptions import equal
from trueode.data import Split
from trueode.evaluation import evaluate, get_task
from trueode.experiment import load
from trueode.runs import load_latest
from trueode.solvers.backends import native

FLAGS = (
    "--dataset arrays --data_dir own --network odenet --ch_residual_block 8 --precision bf16 "
    "--step_size 0.25 --lr 0.01 "
    "--batch_size 16 --log_interval 2 --verdict_budget 0"
)
PAPER = "--use_step_adaption_algo true --adaption_interval 3"
FIDELITY = (
    "--use_step_adaption_algo true --adaption_algo fidelity --adaption_interval 4 --fidelity 0.3 "
    "--step_size 1"
)


@pytest.fixture(autouse=True)
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the kernel solves stays in float32."""
    monkeypatch.setenv("TRUEODE_NATIVE", "off")  # of other processes
    with native.using("off"):
        yield


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of images that differ in their mean."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for name, n in (("train", 400), ("test", 40)):
        y = np.arange(n) % 2
        np.savez(
            tmp_path / "own" / f"{name}.npz",
            x=random.normal(size=(n, 1, 6, 6)) + 0.7 * y[:, None, None, None],
            y=y,
        )


@pytest.mark.parametrize("how", ["", "--autodif checkpoint", "--autodif adjoint", PAPER, FIDELITY])
def test_a_resumed_run_is_the_uninterrupted_one(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = train(f"{FLAGS} {how} --name run --niter 6", capsys)
    assert code == 0, output
    code, output = train("--name run --resume true --niter 12", capsys)
    assert code == 0, output
    train(f"{FLAGS} {how} --name whole --niter 12", capsys)
    run, whole = state("run"), state("whole")
    if "fidelity" in how:  # the resumed run is certified twice, with more evaluations
        run, whole = (
            {part: saved[part] for part in ("model", "optimizer", "solver")}
            for saved in (run, whole)
        )
    else:
        assert repr(history("run")) == repr(history("whole"))
    assert equal(run, whole)
    weights = state("run")["model"]
    assert {x.dtype for x in weights.values()} == {torch.float32}


def test_training_is_rounded_and_evaluation_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"{FLAGS} --niter 1 --evaluate_test_acc true"
    for name in ("bf16", "float32"):
        train(f"{flags} --name {name} --precision {name}", capsys)
    found = {name: history(name) for name in ("bf16", "float32")}
    assert found["bf16"]["loss"] != found["float32"]["loss"]
    assert found["bf16"]["loss"] == pytest.approx(found["float32"]["loss"], rel=0.02)
    model, _ = load("experiments/bf16")
    x, y = (np.load("own/test.npz")[key] for key in "xy")
    tested = evaluate(
        model, Split(torch.tensor(x).float(), torch.tensor(y)), get_task("classification")
    )
    assert found["bf16"]["test_loss"][-1] == pytest.approx(tested.loss, rel=1e-5)


def test_two_processes_are_one_up_to_rounding(tmp_path: Path) -> None:
    runs = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        (folder / "own").symlink_to(tmp_path / "own")
        flags = f"{FLAGS} --optimizer sgd --niter 10 --name run --torch_threads 1 {PAPER}"
        if ranks == 1:
            code, output = processes.run(flags, folder)
            assert code == 0, output
        else:
            processes.run_ranks(flags, folder)
        runs.append(folder / "experiments" / "run")
    one, two = (load_latest(run / "checkpoints", pytest.fail)[1] for run in runs)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=0, atol=1e-3)
    assert [json.loads((run / "run.json").read_text())["status"] for run in runs] == [
        "finished"
    ] * 2
