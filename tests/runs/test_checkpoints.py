"""Checkpoints: complete or refused, without code, and always one to resume from."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.errors import CheckpointError
from trueode.runs import load_latest, read_checkpoint, save_checkpoint
from trueode.runs.checkpoints import KEEP, found


def a_state(seed: int = 0) -> dict[str, Any]:
    """All kinds of values that a run saves."""
    generator = torch.Generator().manual_seed(seed)
    nan = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    return {
        "iteration": 10**10,
        "rule": None,
        "model": {
            "a.weight": torch.randn(3, 2, generator=generator),
            "b": torch.randn(2, dtype=torch.float64),
        },
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": nan}},
            "groups": [{"lr": 0.1, "on": True}],
        },
        "solver": {"step_size": 0.1 + 0.2},
        "logged": [1, 0.5, 1e-300],
        "random": torch.get_rng_state(),
        "name": "ζ",
    }


def assert_same(one: Any, other: Any) -> None:
    """Equality bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert one.shape == other.shape
        assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for x, y in zip(one, other, strict=True):
            assert_same(x, y)
    else:
        assert repr(one) == repr(other)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def quiet(text: str) -> None:
    raise AssertionError(text)


def test_round_trip(tmp_path: Path) -> None:
    state = a_state()
    path = save_checkpoint(tmp_path / "checkpoints", 500, state)
    assert_same(read_checkpoint(path), state)
    latest, again = load_latest(tmp_path / "checkpoints", quiet)
    assert latest == path
    assert_same(again, state)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_round_trip_of_plain_values(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]
) -> None:
    path = save_checkpoint(tmp_path_factory.getbasetemp() / "plain", 1, state)
    assert_same(read_checkpoint(path), state)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    iterations = [
        0,
        5,
        10,
        99_999_999,
        100_000_000,
        1_000_000_000,
    ]  # compared as numbers, not as names
    for done, iteration in enumerate(iterations, 1):
        path = save_checkpoint(tmp_path, iteration, {"iteration": iteration})
        kept = iterations[max(0, done - KEEP) : done]
        assert [read_checkpoint(p)["iteration"] for p in found(tmp_path)] == kept[::-1]
        assert load_latest(tmp_path, quiet)[0] == path
    assert KEEP == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_files_that_are_no_checkpoints_stay(tmp_path: Path) -> None:
    for name in ("best.pt", "iteration_x.pt", "iteration_00000001.pt.bak", "notes"):
        (tmp_path / name).write_text("mine")
    for iteration in range(5):
        save_checkpoint(tmp_path, iteration, {})
    assert {name for name, text in files(tmp_path).items() if text == b"mine"} == {
        *("best.pt", "iteration_x.pt", "iteration_00000001.pt.bak", "notes")
    }


SAMPLE: dict[str, Any] = {"w": torch.arange(6.0), "n": 3}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sample"), 7, SAMPLE)


def assert_refused(folder: Path, content: bytes) -> None:
    path = folder / "iteration_00000009.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as failure:
        read_checkpoint(path)
    assert str(path) in str(failure.value)
    path.unlink()


@settings(deadline=None)
@given(st.data())
def test_truncated_at_any_length(sample: Path, data: st.DataObject) -> None:
    content = sample.read_bytes()
    assert_refused(sample.parent, content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, -33, -32, -31, -1])
def test_truncated_at_the_edges(sample: Path, length: int) -> None:
    assert_refused(sample.parent, sample.read_bytes()[:length])


@settings(deadline=None)
@given(st.data())
def test_any_bit_flipped(sample: Path, data: st.DataObject) -> None:
    content = bytearray(sample.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert_refused(sample.parent, bytes(content))


def test_digest_of_something_else(sample: Path) -> None:
    assert_refused(sample.parent, hashlib.sha256(b"").digest())
    for rubbish in (b"", b"not a checkpoint", b"\x80\x02}q\x00."):
        assert_refused(sample.parent, rubbish + hashlib.sha256(rubbish).digest())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_checkpoint(tmp_path / "missing.pt")


def test_the_one_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, i, {"iteration": i}) for i in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-5])
    told: list[str] = []
    path, state = load_latest(tmp_path, told.append)
    assert (path, state) == (paths[1], {"iteration": 2})
    assert len(told) == 1
    assert str(paths[2]) in told[0]
    assert "one before it" in told[0]
    paths[1].write_bytes(b"")
    told.clear()
    assert load_latest(tmp_path, told.append)[0] == paths[0]
    assert [str(damaged) in text for damaged, text in zip(paths[:0:-1], told, strict=True)] == [
        True,
        True,
    ]
    save_checkpoint(tmp_path, 2, {"iteration": 2})  # resuming from the first rewrites the second
    assert load_latest(tmp_path, lambda text: None)[1] == {"iteration": 2}


def test_none_is_usable(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, i, {}) for i in (1, 2, 3)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    told: list[str] = []
    with pytest.raises(CheckpointError) as failure:
        load_latest(tmp_path, told.append)
    assert all(str(path) in str(failure.value) for path in paths)
    assert failure.value.exit_code == 1
    assert len(told) == 2  # for each with a later one


@pytest.mark.parametrize("exists", [False, True])
def test_there_are_none(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "checkpoints"
    if exists:
        folder.mkdir()
    with pytest.raises(CheckpointError) as failure:
        load_latest(folder, quiet)
    assert str(folder) in str(failure.value)


class Code:
    """Makes a directory when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "it ran"
    buffer = io.BytesIO()
    torch.save(
        {"iteration": 1, "model": Code(trace)}, buffer, _use_new_zipfile_serialization=not legacy
    )
    content = buffer.getvalue()
    path = tmp_path / "iteration_00000001.pt"
    path.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError) as failure:
        read_checkpoint(path)
    assert str(path) in str(failure.value)
    assert not trace.exists()
    with pytest.raises(CheckpointError):
        load_latest(tmp_path, lambda text: None)
    assert not trace.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert trace.exists(), "the attack is none"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for i in (1, 2, 3):
        save_checkpoint(tmp_path, i, {"iteration": i})
    before = files(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, fail)
        for iteration in (3, 4):  # the same one again, and the next
            with pytest.raises(OSError, match="disk full"):
                save_checkpoint(tmp_path, iteration, {"iteration": -1})
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.endswith(".part") for name in after.keys() - before.keys())
    assert load_latest(tmp_path, quiet)[1] == {"iteration": 3}
    save_checkpoint(tmp_path, 4, {"iteration": 4})
    assert [path.name[-4:] for path in found(tmp_path)] == ["4.pt", "3.pt", "2.pt"]


def test_a_state_that_cannot_be_saved_writes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {})
    before = files(tmp_path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, 2, {"hook": lambda: None})
    assert files(tmp_path) == before


def test_leftovers_are_ignored(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"iteration": 1})
    (tmp_path / "iteration_00000002.pt.part").write_bytes(b"half")
    assert load_latest(tmp_path, quiet)[1] == {"iteration": 1}


@pytest.mark.parametrize("content", [[1], 3, None, "state", torch.zeros(2)])
def test_something_else_than_a_state(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match="not the state of a run"):
        read_checkpoint(save_checkpoint(tmp_path, 1, content))
