"""Damaged, removed or replaced run directories: one message, and no other file is touched."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_experiment import everything, train
from trueode.cli.main import main
from trueode.experiment import runner
from trueode.runs import checkpoints, read_checkpoint, save_checkpoint

RUN = Path("experiments/run")
NEWEST = Path("checkpoints/iteration_00000004.pt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and one of another width."""
    folder = tmp_path_factory.mktemp("made")
    for name, flags in {"run": "", "wide": "--ch_residual_block 7"}.items():
        place = f"--output_dir {folder} --data_dir {folder / 'data'} --name {name}"
        assert main(["train", "--niter", "4", *place.split(), *flags.split()]) == 0
    return folder


@pytest.fixture(autouse=True)
def _folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "run", RUN)


def state(**changes: Any) -> Callable[[Path], None]:
    """A function that changes values in the newest checkpoint."""

    def change(run: Path) -> None:
        save_checkpoint(run / "checkpoints", 4, read_checkpoint(run / NEWEST) | changes)

    return change


def other_width(run: Path, wide: Path) -> None:
    shutil.copy(wide / NEWEST, run / NEWEST)


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "no number": state(iteration="four", evaluations=[1]),
    "a list": lambda run: [save_checkpoint(run / "checkpoints", i, [1]) for i in (0, 4)],
    "no solver": state(solver={"kind": "none"}),
    "a solver of text": state(solver="euler"),
    "no model": state(model={}),
    "a model of text": state(model="weights"),
    "a shape of text": state(shape={"task": "classification"}),
    "other data": state(shape={"task": "regression", "sample": (3,), "n_outputs": 1, "t_end": 1.0}),
    "no YAML": lambda run: (run / "config.yaml").write_text("niter: ["),
    "a date that is none": lambda run: (run / "config.yaml").write_text("niter: 2001-99-99\n"),
    "no text": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"),
    "cut off": lambda run: (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().partition("\nlr:")[0]
    ),
    "an unknown option": lambda run: (run / "config.yaml").write_text("nitre: 3\n"),
}
FOR_RESUMING: dict[str, Callable[[Path], Any]] = {
    "fewer than none": state(iteration=-1),
    "samples of text": state(samples="many"),
    "no numbers": state(recent_nfe=["x"]),
    "no random state": state(random=torch.zeros(3)),
    "an optimiser of nothing": state(optimizer={"state": {0: {}}}),
    "a byte that is no text": lambda run: (run / "history.csv").write_bytes(
        b"iteration,loss\n\xff\xfe\x00\n"
    ),
    "text for a number": lambda run: (run / "history.csv").write_text("iteration,loss\nx,1\n"),
    "other columns": lambda run: (run / "history.csv").write_text("iteration,loss\n1,1\n"),
}


def assert_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command ends with one message that names a file or option, and no change."""
    before = everything(RUN)
    code = main(words.split())
    printed = capsys.readouterr()
    assert code in (1, 2), printed
    message = printed.err.splitlines()[-1]
    assert message.startswith("trueode: ")
    assert "experiments/run" in message or "The data is for" in message
    assert everything(RUN) == before


@pytest.mark.parametrize("how", [*DAMAGED, "other width"])
def test_damage_is_told_wherever_it_is_read(
    how: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "other width":
        other_width(RUN, made / "wide")
    else:
        DAMAGED[how](RUN)
    for words in (
        "train --resume true --niter 9 --name run",
        "train --phase infer --name run",
        "audit experiments/run",
    ):
        assert_refused(words, capsys)


@pytest.mark.parametrize("how", FOR_RESUMING)
def test_damage_is_told_where_a_run_goes_on(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    FOR_RESUMING[how](RUN)
    code, output = train("--resume true --niter 9 --name run", capsys)
    assert code == 1, output
    assert "experiments/run" in output.splitlines()[-1]
    assert not (RUN / "checkpoints" / "iteration_00000009.pt").exists()


@pytest.fixture
def no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs end without verdict and figures."""
    monkeypatch.setattr(runner, "_close", lambda *_: None)


@pytest.mark.usefixtures("no_end")
def test_a_run_whose_history_was_moved_away_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    (RUN / "history.csv").unlink()
    code, output = train("--resume true --niter 6 --log_interval 1 --name run", capsys)
    assert code == 0, output
    assert [line.split(",")[0] for line in (RUN / "history.csv").read_text().splitlines()] == [
        "iteration",
        "5",
        "6",
    ]


@pytest.mark.parametrize(("name", "code"), [("run.json", 0), ("figures", 1), ("checkpoints", 1)])
def test_links_that_lead_in_a_circle(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run replaces a link that stands for a file, and refuses one that stands for a folder."""
    path = RUN / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    found, output = train("--resume true --niter 6 --name run", capsys)
    assert found == code, output
    assert ("iteration 6/6" in output) != bool(code)
    assert path.is_symlink() == bool(code)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_run_never_writes_into_another_directory(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, away = Path("experiments/own"), Path("experiments/away")
    seen: list[dict[str, bytes]] = []

    def save(*arguments: Any) -> Path:
        path = save_checkpoint(*arguments)
        if arguments[1] == 4:
            own.rename(away)
            if how == "removed":
                shutil.rmtree(away)
            if how == "replaced":
                shutil.copytree(RUN, own)
            seen.append(everything(Path("experiments")))
        return path

    monkeypatch.setattr(runner, "save_checkpoint", save)
    code, output = train("--niter 12 --log_interval 3 --model_checkpoint_freq 4 --name own", capsys)
    assert code == 1, output
    assert "removed, moved or replaced" in output
    after = everything(Path("experiments"))
    assert {path for path in after if after[path] != seen[0].get(path)} <= {
        "experiments/away/history.csv"
    }
    assert after.keys() == seen[0].keys()


def test_overwriting_through_links_deletes_nothing_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine").mkdir()
    for name in ("loss.png", "precious.png", "iteration_00000004.pt"):
        (Path("mine") / name).write_text("mine")
    for folder in ("figures", "checkpoints"):
        shutil.rmtree(RUN / folder)
        (RUN / folder).symlink_to(Path("mine").resolve())
    before = everything(Path("mine"))
    assert_refused("train --resume true --niter 9 --name run", capsys)
    code, output = train("--overwrite true --niter 3 --name run", capsys)
    assert code == 0, output
    assert everything(Path("mine")) == before
    assert (RUN / "figures" / "loss.png").is_file()


@pytest.mark.parametrize(
    "flags",
    ["--dataset arrays --network linear_odenet --data_dir nope.npz", "--use_tensorboard true"],
)
def test_a_run_that_cannot_begin_leaves_no_directory(
    flags: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    before = everything(Path())
    for name in ("--output_dir a/b", "--name run --overwrite true"):
        code, output = train(f"--niter 3 {name} {flags}", capsys)
        assert code == 2, output
        assert not Path("a").exists()
        assert everything(Path()) == before


@pytest.mark.usefixtures("no_end")
def test_rows_are_on_the_disk_before_a_checkpoint_and_nothing_waits_for_the_disk_between_them(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}  # bytes of files, by inode
    counts: list[int] = []
    fsync = os.fsync

    def count(handle: int) -> None:
        counts[-1] += 1
        found = os.fstat(handle)
        synced[found.st_ino] = found.st_size
        fsync(handle)

    def write(path: Path, content: Any) -> None:
        history = path.parents[1] / "history.csv"
        found = history.stat()
        assert synced[found.st_ino] == found.st_size
        iteration = int(path.stem.split("_")[1])
        assert len(history.read_text().splitlines()) == 1 + (
            0 if not iteration else 1 + iteration // 10
        )
        for place in (history.parent, history.parents[1]):
            assert place.stat().st_ino in synced, "the names of the history and of the run"
        write_atomic(path, content)

    write_atomic = checkpoints.write_atomic
    monkeypatch.setattr(os, "fsync", count)
    monkeypatch.setattr(checkpoints, "write_atomic", write)
    for niter in (20, 60):
        counts.append(0)
        flags = f"--niter {niter} --model_checkpoint_freq {niter} --data_dir {made / 'data'}"
        code, output = train(f"{flags} --name synced{niter}", capsys)
        assert code == 0, output
    assert counts[0] == counts[1]
