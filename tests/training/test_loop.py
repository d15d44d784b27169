"""The training loop: where it stops, and how it continues."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from trueode.adaptation import DiscretisationPenalty
from trueode.build import build_run
from trueode.distributed import Ranks
from trueode.evaluation import get_task
from trueode.options import make_options
from trueode.solvers import Adaptive, FixedStep, Solver
from trueode.training import Hooks, Row, State, Trainer


def a_trainer(tmp_path: Path, rows: list[Row], saved: list[int]) -> Trainer:
    """Ten iterations: checks at every third, rows at every fourth, tests at every fifth."""
    how = {
        "niter": 10,
        "log_interval": 4,
        "eval_interval": 5,
        "evaluate_test_acc": True,
        "model_checkpoint_freq": 5,
    }
    rule = {"use_step_adaption_algo": True, "adaption_interval": 3, "max_steps": 8}
    options = make_options({**how, **rule, "data_dir": str(tmp_path)})
    _, trainer = build_run(options, Ranks(0, 1, torch.device("cpu")))

    def save(state: State) -> None:
        saved.append(state.iteration)

    trainer.hooks = Hooks(rows.append, save)
    return trainer


def test_what_happens_when(tmp_path: Path) -> None:
    rows: list[Row] = []
    saved: list[int] = []
    trainer = a_trainer(tmp_path, rows, saved)
    assert not trainer.done
    assert trainer.run()
    assert trainer.done
    assert [row["iteration"] for row in rows] == [1, 3, 4, 5, 6, 8, 9, 10]
    assert [row["iteration"] for row in rows if "test_loss" in row] == [5, 10]
    assert [row["iteration"] for row in rows if "signal" in row] == [3, 6, 9]
    assert saved == [5, 10]


def test_parts_of_a_training_are_the_whole(tmp_path: Path) -> None:
    whole: list[Row] = []
    parts: list[Row] = []
    one, other = a_trainer(tmp_path, whole, []), a_trainer(tmp_path, parts, [])
    assert one.run()
    assert not other.run(4)
    assert other.state.iteration == 4
    assert other.run()
    for name, weight in one.state.model.state_dict().items():
        assert torch.equal(other.state.model.state_dict()[name], weight)
    assert [{**row, "seconds": 0} for row in parts] == [{**row, "seconds": 0} for row in whole]


@pytest.mark.parametrize(
    "solver", [FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-3, 1e-3)], ids=str
)
def test_a_penalty_is_part_of_the_gradient_and_counted(tmp_path: Path, solver: Solver) -> None:
    how = {"penalty": 2.0, "penalty_interval": 3, "penalty_stride": 5, "precision": "float64"}
    options = make_options({**how, "data_dir": str(tmp_path)})
    _, trainer = build_run(options, Ranks(0, 1, torch.device("cpu")))
    trainer.run(1)
    state, model = trainer.state, trainer.state.model
    state.solver = solver
    penalty = DiscretisationPenalty(2.0, 3, 5, seed=0, task=get_task("classification"))
    batch = trainer.dataset.train.batch(torch.arange(128))
    for iteration in (2, 3):
        state.iteration, before = iteration, state.evaluations
        step = trainer.step(model, batch, 128)
        found = [param.grad.clone() for param in model.parameters() if param.grad is not None]
        spent = state.evaluations - before

        output, solution = model(batch.x, solver, return_solution=True)
        loss, work = F.cross_entropy(output, batch.y), 128 * solution.nfe
        torch.testing.assert_close(step.loss, loss)
        if iteration == 3:
            partner = penalty.partner(solver, iteration)
            other, solution = model(batch.x[::5], partner, return_solution=True)
            loss = loss + 6.0 * penalty.task.distance(output[::5], other).mean()
            work += 26 * solution.nfe
        assert spent == work
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for gradient, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, wanted)


def test_the_history_has_the_last_penalty(tmp_path: Path) -> None:
    rows: list[Row] = []
    options = make_options(
        {"penalty": 1.0, "n_steps": 1, "log_interval": 2, "niter": 9, "data_dir": str(tmp_path)}
    )
    _, trainer = build_run(options, Ranks(0, 1, torch.device("cpu")))
    trainer.hooks = Hooks(rows.append)
    trainer.run()
    penalties = {row["iteration"]: row["penalty"] for row in rows}
    assert penalties[1] == penalties[2] == 0
    assert penalties[4] == penalties[6] > 0
    assert penalties[8] == penalties[9] not in (0, penalties[6])
