"""Files are written completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.files import Lock, write_atomic, write_json, write_text


def test_what_is_written_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, lambda file: file.write(b"\x00one"))
    assert path.read_bytes() == b"\x00one"
    write_text(path, "zwei: ζ\n")
    assert path.read_bytes() == "zwei: ζ\n".encode()
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("existed", [False, True])
def test_a_writer_that_fails_changes_nothing(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "file"
    if existed:
        path.write_text("old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the new cont")
        file.flush()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.exists() == existed
    if existed:
        assert path.read_text() == "old"
    write_text(path, "new")  # remains of the failure do not matter
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(
        os, "replace", lambda old, new: (order.append("replace"), replace(old, new))
    )
    write_text(tmp_path / "file", "content")
    assert order == ["fsync", "replace", "fsync"]  # the content, and the name
    write_text(tmp_path / "a" / "b" / "file", "content")
    assert order[3:] == [
        "fsync",
        "fsync",
        "fsync",
        "replace",
        "fsync",
    ]  # the names of both folders before


def test_content_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def without_non_finite(content: Any) -> Any:
    """The expected text: NaN, Infinity and -Infinity replaced by null."""
    return json.loads(json.dumps(content), parse_constant=lambda name: None)


contents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(contents)
def test_json_reads_back_and_numbers_that_are_not_finite_are_null(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(
        path.read_text(encoding="utf-8"), parse_constant=refuse
    ) == without_non_finite(content)


def test_tuples_are_lists(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"t": (1.5, float("nan"), [float("-inf"), (float("inf"),)])})
    assert json.loads((tmp_path / "a.json").read_text()) == {"t": [1.5, None, [None, [None]]]}


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path)
    assert lock is not None
    assert Lock.take(tmp_path) is None
    lock.release()
    again = Lock.take(tmp_path)
    assert again is not None
    again.release()
