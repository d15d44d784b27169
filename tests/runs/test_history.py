"""The history: appended rows can be read back, even if the end of the file is damaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.errors import RunDamagedError
from trueode.runs import History, cut_history, read_history

COLUMNS = ["iteration", "loss", "accuracy"]


def same(one: list[float], other: list[float]) -> bool:
    """Equality of every bit, except that NaN is NaN."""
    return list(map(repr, one)) == list(map(repr, other))


def written(path: Path, rows: int) -> str:
    """The text of a history of some rows."""
    with History(path, COLUMNS) as history:
        for i in range(1, rows + 1):
            history.append({"iteration": i, "loss": 1.5 / i**9, "accuracy": 1 - 1 / i})
    return path.read_bytes().decode()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.floats(), st.none() | st.floats()), max_size=6),
    st.integers(1, 4),
)
def test_rows_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, float, float | None]],
    buffer: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "history.csv"
    path.unlink(missing_ok=True)
    with History(path, COLUMNS, buffer=buffer) as history:
        for iteration, loss, accuracy in rows:
            given_only = {} if accuracy is None else {"accuracy": accuracy}
            history.append({"iteration": iteration, "loss": loss, **given_only})
    found = read_history(path)
    assert list(found) == COLUMNS
    assert found["iteration"] == [row[0] for row in rows]
    assert same(found["loss"], [row[1] for row in rows])
    assert same(found["accuracy"], [math.nan if row[2] is None else row[2] for row in rows])


def test_rows_wait_until_the_buffer_is_full(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    with History(path, COLUMNS, buffer=3) as history:
        seen = []
        for i in range(1, 8):
            history.append({"iteration": i, "loss": 0.0})
            seen.append(len(read_history(path).get("iteration", [])))
        assert seen == [0, 0, 3, 3, 3, 6, 6]
        history.flush()
        assert len(read_history(path)["iteration"]) == 7
        history.append({"iteration": 8, "loss": 0.0})
    assert read_history(path)["iteration"] == [*range(1, 9)]


def test_an_error_loses_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"

    def fail() -> None:
        with History(path, COLUMNS) as history:
            history.append({"iteration": 1, "loss": 0.5})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_history(path)["loss"] == [0.5]


def test_reopened_it_has_one_header(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.touch()
    for i in range(3):
        with History(path, COLUMNS) as history:
            history.append({"iteration": i, "loss": i / 3})
    assert path.read_text().count("iteration") == 1
    assert read_history(path)["loss"] == [i / 3 for i in range(3)]


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    text = written(path, 3)
    last = text.rindex("3,")
    for end in range(last, len(text) - 1):
        path.write_bytes(text[:end].encode())
        cut_history(path, 3)
        expected = [1.0, 2.0] if text[end - 1] != "\r" else [1.0, 2.0, 3.0]
        assert read_history(path)["iteration"] == expected, text[last:end]
        with History(path, COLUMNS) as history:
            history.append({"iteration": 4, "loss": 0.25, "accuracy": 0.75})
        found = read_history(path)
        assert found["iteration"] == [*expected, 4.0]
        assert found["accuracy"][-1] == 0.75


def torn(row: str) -> list[str]:
    return [row[:end] for end in range(1, len(row))]


@pytest.mark.parametrize(
    "left", [part for part in torn("3,7.620789513793629e-05,0.6666") if part.count(",") < 2]
)
def test_a_torn_last_line_is_not_read(tmp_path: Path, left: str) -> None:
    path = tmp_path / "history.csv"
    whole = written(path, 2)
    path.write_bytes((whole + left).encode())
    assert read_history(path)["iteration"] == [1.0, 2.0]


@pytest.mark.parametrize(
    "left", ["3,7.6e-05,", "3,7.6e-05,0", "3,7.6e-05,0.66", "3,7.6e-05,1.5e", "3,7.6e-05,1.5e-"]
)
def test_a_last_line_torn_in_its_last_number_is_not_read(tmp_path: Path, left: str) -> None:
    path = tmp_path / "history.csv"
    whole = written(path, 2)
    path.write_bytes((whole + left).encode())
    assert read_history(path)["iteration"] == [1.0, 2.0]


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12))
def test_cut_keeps_the_rows_up_to_an_iteration(
    tmp_path_factory: pytest.TempPathFactory, rows: int, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.unlink(missing_ok=True)
    written(path, rows)
    before = read_history(path)
    cut_history(path, at)
    after = read_history(path)
    assert list(after) == COLUMNS
    for name in COLUMNS:
        assert same(after[name], before[name][: min(rows, at)])


def test_cut_of_nothing(tmp_path: Path) -> None:
    cut_history(tmp_path / "missing.csv", 3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.csv").touch()
    cut_history(tmp_path / "empty.csv", 3)
    assert written(tmp_path / "empty.csv", 1).startswith("iteration,")


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"x,0.5,1",
        b"3,0.5",
        b"3,0.5,1,2",
        b"",
        b"1.5,1,1",
        b"nan,1,1",
        b"3,0.5,\x00",
        "3,½,1".encode(),
    ],
)
def test_a_whole_line_that_is_no_row_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.csv"
    whole = written(path, 2).encode()
    path.write_bytes(whole + line + b"\n")
    before = path.read_bytes()
    for read in (read_history, lambda path: cut_history(path, 9)):
        with pytest.raises(RunDamagedError, match="line 4") as failure:
            read(path)
        assert str(path) in str(failure.value)
    assert path.read_bytes() == before
    path.write_bytes(whole + line)  # the last line is torn
    cut_history(path, 9)
    assert read_history(path)["iteration"] == [1.0, 2.0]


def test_a_history_of_other_columns_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    before = written(path, 2)
    with pytest.raises(
        RunDamagedError, match="columns iteration, loss, accuracy, expected iteration, mse"
    ):
        History(path, ["iteration", "mse"])
    assert path.read_bytes().decode() == before
