"""Runs that are killed, interrupted or damaged continue to the undisturbed result."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from tests import processes
from trueode import files
from trueode.runs import checkpoints, load_latest

FLAGS = (
    "--niter 1000 --name run --max_steps 16 --use_step_adaption_algo true "
    "--adaption_interval 20 --threshold 0.02 "
    "--lr 0.001 --log_interval 7 --model_checkpoint_freq 40 --evaluate_test_acc true "
    "--eval_interval 100 --torch_threads 1 --penalty 1 --penalty_interval 3"
)
CERTIFIED = (  # with few checks, so that a certificate fails
    "--niter 200 --name run --solver rk4 --use_step_adaption_algo true "
    "--adaption_algo fidelity --fidelity 0.02 --lr 0.01 "
    "--adaption_interval 150 --log_interval 7 --model_checkpoint_freq 40 --torch_threads 1"
)
RESUME = "--name run --resume true"


def result(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The newest checkpoint and the history of the run, without wall times."""
    path, state = load_latest(folder / "experiments" / "run" / "checkpoints", pytest.fail)
    assert path.name.endswith(
        f"{1000 if state['certificate'] is None else 200 + state['extra']:05d}.pt"
    )
    del state["seconds"]
    with (folder / "experiments" / "run" / "history.csv").open() as file:
        rows = [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]
    return state, rows


def equal(one: Any, other: Any) -> bool:
    """Equality bit for bit of nested plain values and tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("whole")
    code, output = processes.run(FLAGS, folder)
    assert code == 0, output
    state, rows = result(folder)
    assert len({row["step_size"] for row in rows}) > 3, "the adaptation has nothing to remember"
    return state, rows


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_checkpoint(number: int, phase: str) -> None:
    """Let this process be killed in the ``number``-th write of a checkpoint."""
    written = 0

    def write_atomic(path: Path, write: Any) -> None:
        nonlocal written
        written += 1
        if written < number:
            return files.write_atomic(path, write)
        if phase == "half written":

            class Half:
                def __init__(self, file: IO[bytes]) -> None:
                    self.file = file

                def write(self, content: bytes) -> None:
                    self.file.write(content[: len(content) // 2])
                    self.file.flush()
                    die()

            return files.write_atomic(path, lambda file: write(Half(file)))
        if phase == "not in its place":
            os.replace = lambda *_: die()
        files.write_atomic(path, write)
        die()  # in its place, before old ones are removed

    checkpoints.write_atomic = write_atomic


def kill_and_resume(flags: str, folder: Path, moments: list[Any]) -> None:
    """Kill and resume a run at all moments, then let it end.

    A moment is a phase of a write of a checkpoint, or a time in seconds. The next write ends the
    wait for a time, so a fast machine does not end the run before the last moment.
    """
    for moment in moments:
        write = (1, "in its place") if isinstance(moment, float) else moment
        child = processes.start(flags, folder, before=partial(die_in_a_checkpoint, *write))
        if isinstance(moment, float):
            child.join(moment)
            child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, (moment, (folder / "output.txt").read_text())
        if (
            folder / "experiments" / "run" / "config.yaml"
        ).exists():  # otherwise the run had not started
            flags = RESUME
    code, output = processes.run(flags, folder)
    assert code == 0, output


def test_killed_eight_times(uninterrupted: Any, tmp_path: Path) -> None:
    moments: list[Any] = [0.2 + 0.4 * random.random() for _ in range(5)]
    moments += [(2, "half written"), (3, "not in its place"), (2, "in its place")]
    random.shuffle(moments)
    kill_and_resume(FLAGS, tmp_path, moments)
    state, rows = result(tmp_path)
    assert rows == uninterrupted[1]
    assert equal(state, uninterrupted[0])
    assert not list((tmp_path / "experiments").rglob(f"*{files.TEMPORARY}"))


def test_killed_while_it_certifies_and_trains_on(tmp_path: Path) -> None:
    """The rule makes the same decisions, with the same certificate and weights."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    code, output = processes.run(CERTIFIED, whole)
    assert code == 0, output
    state, rows = result(whole)
    assert state["extra"] > 0, "no certificate failed: there is nothing to go on with"
    assert len(state["rule"]["attempts"]) > 1
    kill_and_resume(
        CERTIFIED, broken, [(5, "in its place"), 0.7, (1, "in its place"), 0.9, (1, "half written")]
    )
    assert equal(result(broken)[0], state)
    assert result(broken)[1] == rows
    name = Path("experiments") / "run" / "audit.json"
    assert (broken / name).read_text() == (whole / name).read_text()


def test_interrupted_by_the_user(uninterrupted: Any, tmp_path: Path) -> None:
    child = processes.start(FLAGS, tmp_path)
    history = tmp_path / "experiments" / "run" / "history.csv"
    while not (history.exists() and len(history.read_text().splitlines()) > 3):
        assert child.is_alive(), (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    assert child.exitcode == 130
    assert "--resume true --name run" in (tmp_path / "output.txt").read_text()
    code, output = processes.run(RESUME, tmp_path)
    assert code == 0, output
    state, rows = result(tmp_path)
    assert rows == uninterrupted[1]
    assert equal(state, uninterrupted[0])


@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
def test_damaged_checkpoint(uninterrupted: Any, tmp_path: Path, damage: str) -> None:
    child = processes.start(FLAGS, tmp_path, before=partial(die_in_a_checkpoint, 5, "in its place"))
    child.join(60)
    folder = tmp_path / "experiments" / "run" / "checkpoints"
    newest = checkpoints.found(folder)[0]
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        del content[len(content) // 3 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, output = processes.run(RESUME, tmp_path)
    assert code == 0, output
    assert str(newest.name) in output
    assert "truncated or corrupted" in output
    state, rows = result(tmp_path)
    assert rows == uninterrupted[1]
    assert equal(state, uninterrupted[0])
