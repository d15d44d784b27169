"""What identifies data: its content and its names, not its place, and a cache that does not change the answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trueode.data import generator_version, identity
from trueode.errors import DataError


def folder(root: Path, content: bytes = b"1", name: str = "a.png") -> Path:
    for part in ("cats", "dogs"):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / name).write_bytes(content + part.encode())
    return root


def test_generated_data_is_its_generator() -> None:
    assert identity("concentric_sphere2", "anywhere") == {"generator": generator_version("concentric_sphere2")}


def test_folders_are_their_names_and_content(tmp_path: Path) -> None:
    first = identity("image_folder", folder(tmp_path / "a"))
    assert first["files"] == 2
    assert identity("image_folder", folder(tmp_path / "b")) == first
    assert identity("image_folder", folder(tmp_path / "c", b"2")) != first
    assert identity("image_folder", folder(tmp_path / "d", name="b.png")) != first
    folder(tmp_path / "b" / "generated")
    assert identity("image_folder", tmp_path / "b") == first, "generated data lies there too"


def test_nothing_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data"):
        identity("image_folder", tmp_path)


def test_the_cache_is_believed_until_a_file_looks_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = folder(tmp_path / "a"), tmp_path / "cache.json"
    first = identity("image_folder", root, cache)
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or original(path))
    assert identity("image_folder", root, cache) == first
    assert not read
    file = root / "cats" / "a.png"
    file.write_bytes(b"3")
    os.utime(file, ns=(1, 1))
    assert identity("image_folder", root, cache) != first
    assert len(read) == 2
    cache.write_text("{damaged")
    assert identity("image_folder", root, cache) == identity("image_folder", root)
