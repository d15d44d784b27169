"""The training loop: where it stops, and how it continues."""

from __future__ import annotations

from pathlib import Path

import torch

from trueode.build import build_run
from trueode.distributed import Ranks
from trueode.options import make_options
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
