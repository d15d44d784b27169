"""Fingerprints depend on content and names of data, not on its place or on the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trueode.data import generator_version, identity, load_dataset
from trueode.errors import DataError


def folder(root: Path, content: bytes = b"1", name: str = "a.png") -> Path:
    for part in ("cats", "dogs"):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / name).write_bytes(content + part.encode())
    return root


def test_generated_data_is_its_generator() -> None:
    assert identity("concentric_sphere2", "anywhere") == {
        "generator": generator_version("concentric_sphere2")
    }


def test_folders_are_their_names_and_content(tmp_path: Path) -> None:
    first = identity("image_folder", folder(tmp_path / "a"))
    assert first["files"] == 2
    assert identity("image_folder", folder(tmp_path / "b")) == first
    assert identity("image_folder", folder(tmp_path / "c", b"2")) != first
    assert identity("image_folder", folder(tmp_path / "d", name="b.png")) != first
    folder(tmp_path / "b" / "generated")
    assert identity("image_folder", tmp_path / "b") == first, "generated data lies there too"


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    there = identity("image_folder", folder(tmp_path / "there"))
    links = tmp_path / "links"
    links.mkdir()
    for part in ("cats", "dogs"):
        (links / part).symlink_to(tmp_path / "there" / part)
    assert identity("image_folder", links) == there
    (tmp_path / "there" / "dogs" / "a.png").write_bytes(b"another")
    assert identity("image_folder", links) != there
    (tmp_path / "there" / "dogs" / "around").symlink_to(tmp_path / "there")
    assert identity("image_folder", links)["files"] == 2


def test_nothing_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data"):
        identity("image_folder", tmp_path)


def test_the_cache_is_believed_until_a_file_looks_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = folder(tmp_path / "a"), tmp_path / "cache.json"
    first = identity("image_folder", root, cache)
    read = []
    original = Path.open

    def opened(path: Path, mode: str = "r", *how: Any, **more: Any) -> Any:
        read.extend([path] if mode == "rb" else [])
        return original(path, mode, *how, **more)

    monkeypatch.setattr(Path, "open", opened)
    assert identity("image_folder", root, cache) == first
    assert not read
    file = root / "cats" / "a.png"
    file.write_bytes(b"3")
    os.utime(file, ns=(1, 1))
    assert identity("image_folder", root, cache) != first
    assert len(read) == 2
    right = identity("image_folder", root)
    for damaged in (
        "{damaged",
        "[]",
        "3",
        "[[1, 2]]",
        "null",
        cache.read_text().replace("sha256", "").replace("looks", ""),
    ):
        cache.write_text(damaged)
        assert identity("image_folder", root, cache) == right
        assert identity("image_folder", root, cache) == right


def test_pipes_and_links_to_nothing_are_no_data(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    before = identity("image_folder", root)
    os.mkfifo(root / "cats" / "pipe.png")
    (root / "cats" / "lost.png").symlink_to("nowhere")
    assert identity("image_folder", root) == before


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", name="\udcff.png")
    assert identity("image_folder", root, tmp_path / "cache.json")["files"] == 2


def test_the_home_of_nobody_is_no_place_for_data() -> None:
    for name in ("image_folder", "arrays"):
        with pytest.raises(DataError):
            identity(name, "~nobody-of-that-name/x")
        with pytest.raises(DataError):
            load_dataset(name, "~nobody-of-that-name/x")
