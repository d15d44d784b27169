"""TensorBoard: the rows of the history as scalars."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trueode.errors import UsageError
from trueode.training.board import Board


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a folder of event files: (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_rows_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Board(tmp_path / "logs", 0) as board:
        board.add({"iteration": 1, "loss": 0.5, "accuracy": 0.25, "test_loss": None})
        board.add({"iteration": 10, "loss": 0.125, "accuracy": 0.75, "test_loss": 2.0})
    assert read(tmp_path / "logs") == {
        "loss": [(1, 0.5), (10, 0.125)],
        "accuracy": [(1, 0.25), (10, 0.75)],
        "test_loss": [(10, 2.0)],
    }


def test_what_came_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Board(tmp_path, 0) as board:
        for i in (10, 20, 30, 40):
            board.add({"iteration": i, "loss": 1.0})
    first = next(tmp_path.iterdir())
    first.rename(
        tmp_path / "events.out.tfevents.0000000001.machine.1.0"
    )  # event files are read in the order of names
    with Board(tmp_path, 20) as board:
        for i in (30, 40):
            board.add({"iteration": i, "loss": 2.0})
    assert read(tmp_path) == {"loss": [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]}


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        UsageError, match=r"--use_tensorboard true.*pip install 'trueode\[tensorboard\]'"
    ):
        Board(tmp_path / "logs", 0)
    assert not (tmp_path / "logs").exists()
