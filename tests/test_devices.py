"""Nothing depends on the user's default device."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors

import trueode
from trueode.build import Shape, build_model
from trueode.catalog import INITIALISATIONS
from trueode.cli.main import main
from trueode.data import Batches, folder, identity, keep_unseen, load_dataset
from trueode.experiment import load
from trueode.options import make_options
from trueode.runs import load_latest, read_history, save_checkpoint
from trueode.training.optimizers import (
    FusedAdam,
    FusedSGD,
    Optimizer,
    TorchAdam,
    TorchRMSprop,
    TorchSGD,
)

ROOT = Path(trueode.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
FACTORIES = {factory.__name__.removeprefix("fft_") for factory in _device_constructors()}
OTHERS = {
    "Generator",
    "Tensor",
    "normal",
    "load",
    *(f"{kind}Tensor" for kind in ("Float", "Double", "Long", "Bool")),
}


def unnamed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and names of calls that make or load tensors or generators on the default device."""
    imported = {
        name.asname or name.name: name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "torch"
        for name in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and ast.unparse(called.value) in (
            "torch",
            "torch.fft",
        ):
            name = called.attr
        elif isinstance(called, ast.Name) and called.id in imported:
            name = imported[called.id]
        else:
            continue
        if name not in FACTORIES | OTHERS:
            continue
        named = {keyword.arg for keyword in node.keywords} & {"device", "map_location"}
        if not named and not (name == "Generator" and node.args):
            yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_new_tensor_names_its_device(path: Path) -> None:
    found = list(unnamed(ast.parse(path.read_text(encoding="utf-8"))))
    assert not found, f"{path}: " + ", ".join(f"line {line}: torch.{name}" for line, name in found)


def test_what_names_no_device_is_found() -> None:
    source = """
import torch
from torch import zeros as nothing
torch.tensor([1.0], dtype=torch.float64)
nothing(3)
torch.as_tensor(x).cpu()
torch.Generator().manual_seed(0)
torch.load(file)
torch.zeros(3, device="cpu"); torch.Generator("cpu"); torch.zeros_like(x); x.new_zeros(3)
torch.load(file, map_location=y)
"""
    found = [name for _, name in sorted(unnamed(ast.parse(source)))]
    assert found == ["tensor", "zeros", "as_tensor", "Generator", "load"]


def on_both(make: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of ``make`` with the CPU as the default device, and with another one."""
    here = make()
    with torch.device("meta"):
        return here, make()


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, their tensors bit for bit and on the CPU."""
    if isinstance(one, Tensor):
        return one.device.type == other.device.type == "cpu" and torch.equal(
            one.nan_to_num(), other.nan_to_num()
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", ["three_minima", "pendulum"])
def test_batches_of_generated_data(name: str, tmp_path: Path) -> None:
    def make() -> list[Any]:
        data, unseen = keep_unseen(load_dataset(name, tmp_path), seed=1, share=0.1, size=20)
        taken = [
            unseen.control.first(5),
            unseen.attempt(1),
            data.test.take(torch.tensor([3, 1], device="cpu")),
        ]
        batches = [split.batch(torch.tensor([0, 1], device="cpu")) for split in taken]
        shuffled = islice(Batches(data.train, 24, seed=3).from_iteration(1), 100)
        return [
            *batches,
            *shuffled,
            *Batches(data.train, 24).in_order(),
            Batches(data.train, 9).order(2),
        ]

    assert same(*on_both(make))


def test_batches_of_arrays(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.normal(size=(600, 2)), y=random.integers(0, 2, 600))

    def make() -> list[Any]:
        data, unseen = keep_unseen(load_dataset("arrays", tmp_path), seed=1, share=0.5, size=20)
        return [
            *Batches(data.train, 50).in_order(),
            *Batches(unseen.attempt(2), 10).in_order(),
            list(identity("arrays", tmp_path).items()),
        ]

    assert same(*on_both(make))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_batches_of_images(
    workers: int, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    for i in range(8):
        path = tmp_path / ("train", "test")[i % 2] / ("ant", "zebra")[i // 2 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4, 5, 3), 20 * i, np.uint8)).save(path)
    monkeypatch.setattr(folder, "MEMORY", memory)

    def make() -> list[Any]:
        data = load_dataset("image_folder", tmp_path)
        return list(islice(Batches(data.train, 3, num_workers=workers).from_iteration(0), 4))

    assert same(*on_both(make))


@pytest.mark.parametrize("network", ["linear_odenet", "odenet"])
@pytest.mark.parametrize("init_type", INITIALISATIONS)
def test_weights(init_type: str, network: str) -> None:
    options = make_options(
        {
            "network": network,
            "init_type": init_type,
            "upstream_channels": 3,
            "ch_residual_block": 4,
            "dataset": "mnist",
            "precision": "float64",
        }
    )
    shape = Shape("classification", (1, 6, 6), 3, 1.0)
    assert same(*on_both(lambda: build_model(options, shape).state_dict()))


@pytest.mark.parametrize("kind", [FusedAdam, FusedSGD, TorchAdam, TorchSGD, TorchRMSprop])
def test_optimisers_and_checkpoints(kind: type[Optimizer], tmp_path: Path) -> None:
    def make() -> list[Any]:
        params = [
            nn.Parameter(torch.ones(3, device="cpu")),
            nn.Parameter(torch.ones(2, 2, device="cpu")),
        ]
        optimizer = kind(params, 0.1, 0.2)
        saved: dict[str, Any] = {}
        for i in range(6):
            if i == 3:  # resumes from a file
                save_checkpoint(tmp_path, i, {"optimizer": optimizer.state_dict()})
                saved = load_latest(tmp_path, pytest.fail)[1]
                optimizer = kind(params, 0.1, 0.2)
                optimizer.load_state_dict(saved["optimizer"])
            optimizer.zero_grad()
            for param in params:
                (param * param).sum().backward()
            optimizer.step()
        return [[param.detach() for param in params], optimizer.state_dict(), saved]

    assert same(*on_both(make))


RUNS = (
    "--dataset pendulum --network linear_odenet --act tanh --solver rk4 --n_steps 16 "
    "--optimizer rmsprop --serial_batches true",
    "--solver dopri5 --tol 1e-3 --per_sample true --use_step_adaption_algo true "
    "--adaption_interval 4",
    "--solver midpoint --use_step_adaption_algo true --adaption_algo fidelity --fidelity 0.05 "
    "--adaption_interval 4 "
    "--optimizer sgd --evaluate_with_dif_solver true",
)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("flags", RUNS)
def test_whole_runs(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, tests, checkpoints, verdict, figures, a resumed run, an evaluation, an audit."""
    monkeypatch.chdir(tmp_path)
    common = (
        "--log_interval 4 --model_checkpoint_freq 4 --evaluate_test_acc true --eval_interval 4 "
        "--verdict_budget 0.5"
    )

    def make(name: str) -> list[Any]:
        assert main(["train", "--name", name, "--niter", "8", *common.split(), *flags.split()]) == 0
        assert main(["train", "--name", name, "--niter", "12", "--resume", "true"]) == 0
        assert main(["train", "--name", name, "--phase", "infer", "--split", "test"]) == 0
        audited = main(["audit", f"experiments/{name}", "--samples", "10"])
        run = tmp_path / "experiments" / name
        rows = read_history(run / "history.csv")
        saved = load_latest(run / "checkpoints", pytest.fail)[1]
        for timed in (rows, saved):
            del timed["seconds"]
        found = json.loads((run / "evaluation_test.json").read_text())
        model, _ = load(run)
        x = torch.ones(3, 1, 2, device="cpu")
        return [
            audited,
            list(map(str, rows.items())),
            saved,
            str(found).replace(name, "run"),
            model(x).detach(),
        ]

    here = make("here")
    with torch.device("meta"):
        there = make("there")
    assert same(here, there)
