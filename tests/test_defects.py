"""Fifteen defects of the original implementation; each test fails if one of them exists."""

from __future__ import annotations

import ast
import os
import pickle
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_interruptions import equal
from trueode.adaptation import paper_starting_step
from trueode.cli.main import main
from trueode.data import Batch, Split
from trueode.errors import CheckpointError, OptionError
from trueode.evaluation import ModelOnSamples, SolverTable, by_factors, evaluate, get_task
from trueode.models import NeuralODE
from trueode.options import load_options
from trueode.runs import History, load_latest, read_checkpoint, read_history
from trueode.solvers import FixedStep

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(flags: str) -> int:
    return main(["train", *shlex.split(flags)])


def state(name: str) -> dict[str, Any]:
    return load_latest(Path("experiments") / name / "checkpoints", pytest.fail)[1]


def test_1_unknown_options_are_errors() -> None:
    for text in ("--evaluate_with_diferent_solver true", "--stepsize 0.1"):
        with pytest.raises(OptionError, match=r"Did you mean '(evaluate_with_dif|step_size)"):
            load_options(text.split())
    documented = (
        "--evaluate_text_acc true --evaluate_with_different_solver true --use_step_adaptation true"
    )
    options, _ = load_options(documented.split())
    assert options.evaluate_test_acc
    assert options.evaluate_with_dif_solver
    assert options.use_step_adaption_algo


def test_2_booleans_mean_what_they_say() -> None:
    for text, expected in {
        "--adjoint true": "adjoint",
        "--adjoint false": "naive",
        "--adjoint": "adjoint",
    }.items():
        assert load_options(text.split())[0].autodif == expected
    assert not load_options(["--use_gpu", "false"])[0].use_gpu


def test_3_test_step_is_factor_times_training_step() -> None:
    model = NeuralODE(lambda t, z: -z, downstream=torch.nn.Flatten())
    split = Split(torch.randn(10, 1, 2), torch.zeros(10, dtype=torch.int64))
    training = FixedStep("euler", step_size=0.25)
    runnable = ModelOnSamples(model, split, get_task("classification"), training)
    table = SolverTable(runnable, runnable.run())
    by_factors(table, ["euler"], [0.5, 1, 2], length=1.0, tol=1e-6)
    assert {row.factors: row.n_steps for row in table.rows} == {(1.0,): 4, (0.5,): 8, (2,): 2}


def test_4_the_seed_comes_before_everything() -> None:
    for name in ("one", "two"):
        train(f"--niter 3 --name {name} --data_dir data-{name}")  # regenerates the data
        torch.rand(7)
    assert equal(state("one")["model"], state("two")["model"])
    files = [next(Path(f"data-{name}").rglob("*.npz")).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_5_means_are_over_samples() -> None:
    torch.manual_seed(0)
    model = NeuralODE(lambda t, z: -z, downstream=torch.nn.Flatten())
    x = torch.randn(11, 1, 2)
    y = x[:, 0].argmax(1)
    y[-1] = 1 - y[-1]  # the only mistake is in the last, smallest batch
    found = evaluate(model, Split(x, y), get_task("classification"), batch_size=10)
    assert found.metric == pytest.approx(10 / 11)
    batch = Batch(x, y)
    whole = get_task("classification").loss_sum(model(x), batch) / 11
    assert found.loss == pytest.approx(float(whole), rel=1e-6)


def test_6_tolerances_are_adapted_from_the_first_check_on() -> None:
    flags = (
        "--solver dopri5 --use_step_adaption_algo true --adaption_interval 1 --initial_tol 1e-3 "
        "--niter 8"
    )
    assert train(f"{flags} --log_interval 1 --name run") == 0
    tolerances = read_history(Path("experiments/run/history.csv"))["tolerance"]
    assert tolerances[0] == 1e-3
    assert len(set(tolerances)) > 1
    assert (
        len(state("run")["recent_nfe"]) == 5
    )  # the values of the rule are kept in the run, not in its log


def test_7_the_starting_step_looks_at_the_whole_state() -> None:
    """The step is the same for an image and a vector with the same numbers."""
    matrix = torch.randn(48, 48, dtype=torch.float64)

    def field(t: Any, z: torch.Tensor) -> torch.Tensor:
        return (z.flatten(1) @ matrix).view_as(z)

    image = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    steps = [
        paper_starting_step(field, z, 1.0, order=1, max_steps=10**6)
        for z in (image, image.reshape(5, 1, 48))
    ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-12)


def test_8_results_of_a_user_are_not_deleted() -> None:
    train("--niter 3 --name run")
    before = {path: path.read_bytes() for path in Path("experiments").rglob("*") if path.is_file()}
    command = [sys.executable, str(ROOT / "train.py"), "--niter", "3", "--name", "run"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "--resume true" in done.stderr
    assert {
        path: path.read_bytes() for path in Path("experiments").rglob("*") if path.is_file()
    } == before


def test_9_a_history_is_appended_to_and_nothing_is_written_at_every_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    original = Path.open

    def watched(self: Path, *how: Any, **more: Any) -> Any:
        opened.append(self.name)
        return original(self, *how, **more)

    flushes = []
    flush = History.flush
    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(History, "flush", lambda self: (flushes.append(1), flush(self)))
    train("--niter 60 --log_interval 1 --model_checkpoint_freq 30 --name run")
    assert opened.count("history.csv") <= 3  # to append, and for the figures
    assert len(flushes) <= 5  # the first line, three checkpoints, the end
    assert len(read_history(Path("experiments/run/history.csv"))["loss"]) == 60


def test_10_nothing_that_is_loaded_is_executed(tmp_path: Path) -> None:
    train("--niter 3 --name run")
    assert "step_size: 1.0" in Path("experiments/run/config.yaml").read_text()

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"model": Evil()}, buffer)
    path = tmp_path / "iteration_00000001.pt"
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    config = Path("experiments/run/config.yaml")
    config.write_text("!!python/object/apply:os.mkdir ['owned']")
    assert train("--resume true --name run") == 1
    assert not Path("owned").exists()


def test_11_the_solver_swap_is_plotted() -> None:
    assert train("--niter 3 --name run --evaluate_with_dif_solver true") == 0
    assert Path("experiments/run/figures/solver_swap.png").stat().st_size > 10_000


def test_12_test_accuracy_comes_at_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    import trueode.training.loop as loop

    calls = []
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: (calls.append(1), evaluate(*a, **k))[1])
    train("--niter 30 --evaluate_test_acc true --eval_interval 10 --log_interval 5 --name run")
    assert len(calls) == 3


def test_13_weight_decay_decays_weights() -> None:
    for decay in (0, 1):
        train(f"--niter 20 --lr 0.01 --weight_decay {decay} --name decay{decay}")
    norms = [
        sum(float(w.norm()) for w in state(f"decay{decay}")["model"].values()) for decay in (0, 1)
    ]
    assert norms[1] < 0.97 * norms[0]


def test_14_help_comes_without_heavy_imports() -> None:
    code = (
        "import sys; sys.argv = ['train.py', '--help']; from trueode.cli.main import "
        "train_script; train_script(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'scipy', "
        "'matplotlib', 'torchvision')))"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"after {time.perf_counter() - begin:.2f} s"
    assert "--step_size" in done.stdout


def test_15_several_devices_go_through_distributed_data_parallel() -> None:
    names = {
        node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    }
    assert "DistributedDataParallel" in names
    assert "DataParallel" not in names
