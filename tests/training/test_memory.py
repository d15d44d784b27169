"""The estimated memory of back-propagation, and runs that have too little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trueode.build import build_run
from trueode.distributed import Ranks
from trueode.fields import ConvField
from trueode.models import NeuralODE
from trueode.options import make_options
from trueode.runs import read_checkpoint, save_checkpoint
from trueode.solvers import Adaptive, Backprop, Checkpoint, FixedStep, Solver, get_tableau, solve
from trueode.solvers.backends import native
from trueode.training import Hooks, Row, Schedule, State, memory
from trueode.training.memory import bytes_per_step, free_memory

CPU = torch.device("cpu")


def a_model(hidden: int = 16, solver: Solver | None = None) -> NeuralODE:
    torch.manual_seed(0)
    return NeuralODE(ConvField(3, hidden, 2), solver=solver or FixedStep("euler", n_steps=4))


def images(batch: int, size: int = 12) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_a_step_keeps_the_activations_of_its_stages(method: str) -> None:
    """Per evaluation: its input, two hidden layers, and at most 1.5 times as much in copies."""
    hidden, batch, size = 16, 8, 12
    model = a_model(hidden)
    stages = len(get_tableau(method).b)
    activations = stages * batch * (3 + 2 * hidden) * size**2 * 4
    found = bytes_per_step(model, images(batch, size), FixedStep(method, n_steps=4))
    assert 0.9 * activations < found < 2.5 * activations


@pytest.mark.parametrize(
    "solver", [FixedStep("rk4", n_steps=4), Adaptive("dopri5", 1e-3, 1e-3)], ids=str
)
def test_it_is_linear_in_the_batch(solver: Solver) -> None:
    model = a_model(solver=solver)
    two, four, six = (bytes_per_step(model, images(batch), solver) for batch in (2, 4, 6))
    assert two > 0
    assert six - four == four - two
    assert four - two == pytest.approx(
        two, rel=0.2
    )  # the part that does not depend on the batch is small


def test_numbers_of_twice_the_size_take_twice_the_memory() -> None:
    model, x = a_model(), images(4)
    single = bytes_per_step(model, x, model.solver)
    assert bytes_per_step(model.double(), x.double(), model.solver) == pytest.approx(
        2 * single, rel=0.05
    )


def test_it_does_not_depend_on_the_number_of_steps() -> None:
    model, x = a_model(), images(4)
    assert len({bytes_per_step(model, x, FixedStep("rk4", n_steps=n)) for n in (1, 10, 1000)}) == 1


def test_it_is_what_autograd_keeps_for_each_further_step() -> None:
    """Compare with the tensors that autograd keeps for ten steps, minus those for five, where the
    field is called.
    """
    model, x = a_model(), images(4)

    def kept(n_steps: int) -> int:
        found: dict[tuple[int, int], Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.data_ptr(), tensor.numel()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            solve(model.field, x, solver=FixedStep("midpoint", n_steps=n_steps))
        return sum(tensor.nbytes for tensor in found.values())

    with native.using("off"):
        each = (kept(10) - kept(5)) / 5
        estimate = bytes_per_step(model, x, FixedStep("midpoint", n_steps=1))
    assert estimate == pytest.approx(each, rel=0.25)


def test_measuring_changes_nothing() -> None:
    model, x = a_model(), images(2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    bytes_per_step(model, x, model.solver)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():  # also without gradients
        assert bytes_per_step(model, x, model.solver) > 0


def test_some_memory_is_free() -> None:
    assert free_memory(CPU) > 2**20
    assert isinstance(free_memory(CPU), int)


def trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, **values: Any
) -> tuple[State, list[str], list[Row]]:
    """Train for three iterations with limited memory (None: plenty): state, notices, rows."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**60 if free is None else free)
    how = {
        "niter": 3,
        "batch_size": 32,
        "lr": 0.01,
        "precision": "float64",
        "data_dir": str(tmp_path / "data"),
        **values,
    }
    options = make_options(how)
    _, trainer = build_run(options, Ranks(0, 1, CPU))
    notices: list[str] = []
    rows: list[Row] = []
    trainer.schedule = Schedule(
        options.niter, log=1, test=None, check=options.adaption_interval, checkpoint=10
    )
    trainer.hooks = Hooks(rows.append, notice=notices.append)
    assert trainer.run()
    assert trainer.state.iteration == 3
    return trainer.state, notices, rows


RUNS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler", "n_steps": 8},
    "dense": {"solver": "rk4", "n_steps": 3, "network": "linear_odenet"},
    "dopri5": {"solver": "dopri5", "tol": 1e-3},
    "per sample": {"solver": "dopri5", "tol": 1e-3, "per_sample": True},
    "conv": {
        "dataset": "concentric_sphere900",
        "ch_residual_block": 2,
        "n_steps": 2,
        "batch_size": 4,
    },
    "adapting": {"use_step_adaption_algo": True, "adaption_interval": 1, "threshold": 1e-9},
    "time series": {
        "dataset": "pendulum",
        "network": "linear_odenet",
        "step_size": 0.25,
        "act": "tanh",
        "lr": 1e-3,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_too_little_memory_changes_the_way_and_not_the_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty, silent, rows = trained(tmp_path, monkeypatch, None, **RUNS[name])
    assert plenty.model.gradient == Backprop()
    assert silent == []
    scarce, notices, rows_again = trained(tmp_path, monkeypatch, 1000, **RUNS[name])
    assert scarce.model.gradient == Checkpoint()
    assert len(notices) == 1
    assert "--autodif checkpoint" in notices[0]
    weights = plenty.model.state_dict()
    assert len({row["loss"] for row in rows}) == 3
    for key, weight in scarce.model.state_dict().items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-9, atol=1e-9)
    for row, again in zip(rows, rows_again, strict=True):
        assert row["loss"] == pytest.approx(again["loss"], rel=1e-9)
        assert (row["n_steps"], row["nfe"]) == (again["n_steps"], again["nfe"])


@pytest.mark.parametrize("autodif", ["checkpoint", "adjoint"])
def test_a_gradient_that_needs_little_memory_stays(
    autodif: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, notices, _ = trained(tmp_path, monkeypatch, 1000, autodif=autodif, n_steps=4)
    assert not isinstance(state.model.gradient, Backprop)
    assert (state.model.gradient == Checkpoint()) == (autodif == "checkpoint")
    assert notices == []


def test_half_of_the_free_memory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient changes exactly if the steps need more than half of the free memory."""
    how = {"solver": "euler", "n_steps": 8, "network": "linear_odenet"}
    state, _, _ = trained(tmp_path, monkeypatch, None, **how)
    need = 8 * bytes_per_step(state.model, torch.zeros(32, 1, 2, dtype=torch.float64), state.solver)
    assert trained(tmp_path, monkeypatch, 2 * need, **how)[1] == []
    assert len(trained(tmp_path, monkeypatch, 2 * need - 2, **how)[1]) == 1


def test_a_state_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state loaded into fresh parts equals the saved one."""
    how = RUNS["adapting"]
    state, _, _ = trained(tmp_path, monkeypatch, None, **how)
    saved = read_checkpoint(save_checkpoint(tmp_path, 3, state.state_dict()))
    options = make_options(
        {"data_dir": str(tmp_path / "data"), "precision": "float64", "random_seed": 1, **how}
    )
    fresh = build_run(options, Ranks(0, 1, CPU))[1].state
    rule = fresh.rule
    assert rule is not None
    assert fresh.solver != state.solver
    fresh.load_state_dict(saved)
    assert (fresh.solver, fresh.iteration, fresh.recent_nfe) == (state.solver, 3, state.recent_nfe)
    assert rule.solver == state.solver
    again = fresh.state_dict()
    assert again.keys() == saved.keys()
    for key, weight in saved["model"].items():
        assert torch.equal(again["model"][key], weight)
    assert {k: v for k, v in again.items() if k not in ("model", "optimizer", "random")} == {
        k: v for k, v in saved.items() if k not in ("model", "optimizer", "random")
    }
    assert torch.equal(again["random"], saved["random"])
