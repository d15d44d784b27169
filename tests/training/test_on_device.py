"""Training on a GPU: what waits for it, and that every kind of run goes through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretend import CUDA, Device, Pretended, pretend
from trueode.build import build_run
from trueode.cli.main import main
from trueode.distributed import Ranks
from trueode.experiment import closing
from trueode.models import NeuralODE
from trueode.options import make_options
from trueode.runs import load_latest, read_checkpoint, save_checkpoint
from trueode.solvers.backends import native
from trueode.solvers.backends.gpu.graphs import EQUAL, RECORDINGS
from trueode.solvers.backends.gpu.library import GRAPHS
from trueode.training import Hooks, Trainer
from trueode.training.optimizers import (
    FusedAdam,
    FusedSGD,
    Optimizer,
    TorchAdam,
    TorchRMSprop,
    TorchSGD,
)

ENDING = "solvers/solving.py"  # without gradients, a solve looks whether its state is finite
NEVER = 10**6
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def portable() -> Iterator[None]:
    """The path that GPUs take."""
    with native.using("off"):
        yield


@pytest.fixture
def device() -> Iterator[Device]:
    with pretend() as found:
        yield found


def a_trainer(folder: Path, where: torch.device = CUDA, **how: Any) -> Trainer:
    """A run without rows, tests and checkpoints, unless asked for."""
    how = {
        "niter": NEVER,
        "log_interval": NEVER,
        "model_checkpoint_freq": NEVER,
        "batch_size": 16,
        "network": "linear_odenet",
        "ch_residual_block": 4,
        "data_dir": str(folder),
        **how,
    }
    return build_run(make_options(how), Ranks(0, 1, where))[1]


def waits(device: Device, allowed: str = "nothing") -> int:
    return sum(n for (_, line), n in device.waits.items() if not line.startswith(allowed))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for i in range(40):
        path = tmp_path / ("train", "test")[i % 2] / ("ant", "zebra")[i // 2 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (6, 5), (6 * i, 40, 99)).save(path)
    return tmp_path


SERIES = {"dataset": "pendulum", "act": "tanh", "solver": "rk4", "n_steps": 4}
STEPS: dict[str, dict[str, Any]] = {
    "dense": {"solver": "midpoint", "n_steps": 3},
    "convolutions": {"network": "simple_odenet", "n_steps": 3},
    "series": SERIES,
    "time": {"solver": "rk4", "n_steps": 2, "time_dependent": True},
    "penalty": {"n_steps": 2, "penalty": 1.0, "penalty_interval": 2},
    "checkpoint": {"n_steps": 2, "autodif": "checkpoint"},
    "adjoint": {"n_steps": 2, "autodif": "adjoint"},
    "sgd": {"n_steps": 2, "optimizer": "sgd"},
    "rmsprop": {"n_steps": 2, "optimizer": "rmsprop"},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_nothing(name: str, tmp_path: Path, device: Device) -> None:
    trainer = a_trainer(tmp_path, **STEPS[name])
    trainer.run(2)
    device.reset()
    trainer.run(5)
    assert not waits(device), device


def test_a_step_with_images_waits_for_nothing(images: Path, device: Device) -> None:
    how = {"dataset": "image_folder", "network": "odenet", "batch_size": 8, "n_steps": 2}
    trainer = a_trainer(images, **how)
    trainer.run(2)
    device.reset()
    trainer.run(5)  # more than an epoch
    assert not waits(device), device


RULES: dict[str, dict[str, Any]] = {
    "paper": {"max_steps": 8},
    "paper, of a series": {"max_steps": 8, "dataset": "pendulum", "act": "tanh"},
    "fidelity": {"adaption_algo": "fidelity", "fidelity": 0.2},
    "fidelity on unseen inputs": {"adaption_algo": "fidelity", "check_on": "held_out"},
    "fidelity with noise": {"adaption_algo": "fidelity", "check_on": "noise"},
}


@pytest.mark.parametrize("name", RULES)
def test_a_comparison_of_a_rule_reads_once(name: str, tmp_path: Path, device: Device) -> None:
    how = {"use_step_adaption_algo": True, "adaption_interval": 2, **RULES[name]}
    trainer = a_trainer(tmp_path, **how)
    difference, compared = trainer.checks.difference, 0

    def counted(*given: Any) -> float:
        nonlocal compared
        compared += 1
        return difference(*given)

    trainer.checks = replace(trainer.checks, difference=counted)
    trainer.hooks = Hooks()
    trainer.run(2)
    device.reset()
    compared = 0
    trainer.run(4)
    assert compared >= 2
    rows = 2  # a check is also a row of the history
    assert waits(device, ENDING) <= compared + rows, device


@pytest.mark.parametrize("per_sample", [False, True])
def test_ranks_know_what_a_solve_costs(
    per_sample: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask one another only if their steps may differ."""
    asked = 0

    def alone(ranks: Ranks, x: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return x

    monkeypatch.setattr(Ranks, "sum", alone)
    monkeypatch.setattr("trueode.training.loop._shared", lambda model, ranks: model)
    trainer = a_trainer(tmp_path, CPU, solver="dopri5", tol=1e-2, per_sample=per_sample)
    trainer.ranks = Ranks(0, 2, CPU)
    counts = []
    for iterations in (2, 5, 9):
        asked = 0
        trainer.run(iterations)
        counts.append(asked)
    assert counts[2] - counts[1] == (4 if per_sample else 0)


def test_an_evaluation_reads_once(tmp_path: Path, device: Device) -> None:
    trainer = a_trainer(tmp_path, n_steps=1, evaluate_test_acc=True, eval_interval=3)
    trainer.run(3)
    device.reset()
    trainer.run(3)
    assert waits(device, ENDING) == 2  # a row, and its 1000 test samples


def test_a_checkpoint_asks_once_whether_weights_are_finite(tmp_path: Path, device: Device) -> None:
    trainer = a_trainer(tmp_path, n_steps=1, model_checkpoint_freq=3)
    trainer.run(2)
    device.reset()
    trainer.run(1)
    assert waits(device) == 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("name", ["dense", "series", "penalty"])
def test_a_run_moves_between_devices(
    name: str, optimizer: str, tmp_path: Path, device: Device
) -> None:
    """From the CPU to the GPU and back, through files."""
    how = {**STEPS[name], "optimizer": optimizer, "lr": 1e-3}
    whole = a_trainer(tmp_path, CPU, **how)
    whole.run(6)
    saved: dict[str, Any] | None = None
    for where in (CPU, CUDA, CPU):
        part = a_trainer(tmp_path, where, **how)
        if saved is not None:
            part.state.load_state_dict(saved)
        part.run(2)
        path = save_checkpoint(tmp_path, part.state.iteration, part.state.state_dict())
        saved = read_checkpoint(path)
        assert ("random_cuda" in saved) == (where == CUDA)
    assert part.state.iteration == 6
    for name, weight in part.state.model.state_dict().items():
        wanted = whole.state.model.state_dict()[name]
        torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-6)
    assert part.state.evaluations == whole.state.evaluations


@pytest.mark.parametrize("kind", [FusedAdam, FusedSGD, TorchAdam, TorchSGD, TorchRMSprop])
def test_the_state_of_an_optimiser_is_on_the_device(kind: type[Optimizer], device: Device) -> None:
    """Also its counts of steps: a graph of an iteration could not contain those of the CPU."""
    params: list[Tensor] = [torch.nn.Parameter(torch.ones(3, device="cpu").to(CUDA))]
    saved: dict[str, Any] = {"state": {}}
    for _ in range(2):  # the second time resumed
        optimizer = kind(params, 0.1, 0.2)
        optimizer.load_state_dict(saved)
        device.reset()
        params[0].grad = torch.full_like(params[0], 2.0, requires_grad=False)
        optimizer.step()
        assert not device.waits
        saved = optimizer.state_dict()
        assert saved["state"][0].keys() == set(kind.NAMES)
        assert all(isinstance(x, Pretended) for x in saved["state"][0].values())


RECORDED: dict[str, dict[str, Any]] = {
    "dense": {"n_steps": 2},
    "short batches": {"n_steps": 2, "batch_size": 700},  # the last one of an epoch is smaller
    "a rule": {"use_step_adaption_algo": True, "adaption_interval": 5, "step_size": 0.5},
    "penalty": {"n_steps": 2, "penalty": 1.0, "penalty_interval": 2},
    "convolutions": {"network": "simple_odenet", "n_steps": 2},
    "series": SERIES,
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_steps_give_the_same_bits(
    name: str, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when recording begins anew, as after an interruption. Without recordings, gradients of
    weights that serve several solves, or of results that are transposed, are rounded differently.
    """
    weights, solvers, n = [], [], 2 * EQUAL + 6
    for value, parts in (("off", (n,)), ("on", (n,)), ("on", (EQUAL + 2, n - EQUAL - 2))):
        monkeypatch.setenv(GRAPHS.variable, value)
        trainer = a_trainer(tmp_path, **RECORDED[name])
        for part in parts:
            RECORDINGS.clear()
            trainer.run(part)
            assert bool(len(RECORDINGS)) == (value == "on")
        parameters = trainer.state.model.parameters()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in parameters]))
        solvers.append(trainer.state.solver)
    RECORDINGS.clear()
    assert solvers[0] == solvers[1] == solvers[2]
    assert torch.equal(weights[1], weights[2])
    if name in ("penalty", "series"):
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)
    else:
        assert torch.equal(weights[0], weights[1])


def test_the_generator_of_the_gpu_is_restored(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"state": torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: own["state"])
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda x, device: own.update(state=x))
    trainer = a_trainer(tmp_path, n_steps=1)
    saved = trainer.state.state_dict()
    own["state"] = torch.zeros(16, dtype=torch.uint8)
    trainer.state.load_state_dict(saved)
    assert torch.equal(own["state"], torch.arange(16, dtype=torch.uint8))


def test_layouts_of_images(tmp_path: Path, device: Device) -> None:
    """cuDNN has channels-last convolutions in single precision only."""
    found: list[bool] = []

    class Field(torch.nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            found.append(z.is_contiguous(memory_format=torch.channels_last))
            return z

    for dtype in (torch.float32, torch.float64):
        for where in (CPU, CUDA):
            x = torch.zeros(2, 3, 4, 5, dtype=dtype, device="cpu").to(where)
            found.clear()
            NeuralODE(Field())(x)
            assert all(found) != (where == CUDA and dtype == torch.float64)


WHOLE = {
    "swap": "--solver rk4 --n_steps 2 --optimizer rmsprop --evaluate_with_dif_solver true",
    "tolerances": "--solver bosh3 --initial_tol 1e-2 --use_step_adaption_algo true",
    "per sample": "--solver dopri5 --tol 1e-2 --per_sample true --optimizer sgd",
    "certificate": "--solver midpoint --use_step_adaption_algo true --adaption_algo fidelity "
    "--fidelity 0.2 --penalty 1 --penalty_interval 2",
    "series": "--dataset pendulum --act tanh --solver rk4 --n_steps 4",
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", WHOLE)
def test_whole_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, tests, checkpoints, verdict, and the same run on the CPU."""
    monkeypatch.setattr(closing, "SAMPLES", 40)
    monkeypatch.setattr(closing, "LEAST_FLOPS", 1e6)
    common = (
        "--niter 4 --batch_size 64 --log_interval 2 --model_checkpoint_freq 2 --lr 0.001 "
        "--adaption_interval 2 --network linear_odenet --ch_residual_block 4 --verdict_budget 0.1 "
        f"--data_dir {tmp_path}/data --output_dir {tmp_path}"
    )
    runs: dict[str, Callable[[], int]] = {
        run: lambda run=run, gpu=gpu: main(  # type: ignore[misc]
            ["train", "--name", run, "--use_gpu", gpu, *common.split(), *WHOLE[name].split()]
        )
        for run, gpu in (("here", "false"), ("there", "true"))
    }
    assert runs["here"]() == 0
    with pretend():
        assert runs["there"]() == 0
    here, there = (load_latest(tmp_path / run / "checkpoints", pytest.fail)[1] for run in runs)
    for key, weight in here["model"].items():
        torch.testing.assert_close(there["model"][key], weight, rtol=1e-4, atol=1e-5)
    facts = {run: json.loads((tmp_path / run / "run.json").read_text()) for run in runs}
    assert "gpu" not in facts["here"]
    assert facts["there"]["gpu"]["device"] == "cuda:0"
    assert there["solver"] == here["solver"]
    assert there["evaluations"] == here["evaluations"]
