"""Any YAML text gives plain values or an `OptionError`, quickly."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.cli.flags import training_options
from trueode.cli.sweep import make_parser
from trueode.errors import OptionError
from trueode.options import load_options, make_options
from trueode.options.yaml_text import LARGEST, parse_yaml, read_yaml
from trueode.sweeps import SweepDirectory, read_plan

LAUGHS = "a0: &a0 [1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 40)
)
IMPOSSIBLE = {
    "float": "lr: !!float abc",
    "empty int": "niter: !!int ''",
    "int": "niter: !!int x",
    "hexadecimal": "niter: 0x_",
    "binary": "niter: 0b_",
    "long hexadecimal": "niter: 0x" + "f" * 5000,
    "long": "niter: " + "9" * 5000,
    "long key": "9" * 5000 + ": 1",
    "date": "lr: !!timestamp foo",
    "tag": "lr: !!python/object/apply:os.getcwd []",
    "own tag": "lr: !x 1",
    "bytes": "name: !!binary aGVsbG8=",
    "set": "name: !!set {a, b}",
    "deep list": "lr: " + "[\n " * 1500 + "]" * 1500,
    "deep mapping": "lr: " + "{a: " * 1500 + "1" + "}" * 1500,
    "aliases": LAUGHS,
    "merges": MERGES,
    "alias of itself": "lr: &a [*a]",
    "unknown alias": "lr: *a",
    "surrogate": 'name: "\\ud800"',
    "twice": "lr: 1\nniter: 3\nlr: 2",
    "two documents": "lr: 1\n---\nlr: 2",
    "list as key": "[1, 2]: 3",
    "no mapping": "[1, 2]",
    "false": "false",
    "control character": "name: a\x07",
    "too large": "lr: 1 #" + "x" * LARGEST,
}


@pytest.mark.parametrize("text", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plans" / "o.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    for read in (
        lambda: load_options(["--options_file", str(path)]),
        lambda: read_plan(path),
        SweepDirectory(tmp_path).read_plans,
    ):
        with pytest.raises(OptionError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000
        str(caught.value).encode()


def test_flags_of_a_sweep_are_read_the_same_way() -> None:
    for word in ("*a", "!!int x", "9" * 5000, "[\n" * 500, "2001-99-99: ["):
        with pytest.raises(OptionError, match="--niter"):
            training_options(["--niter", word], make_parser("sweep"))
    assert training_options(["--niter", "5", "--name", "9"], make_parser("sweep")) == {
        "niter": 5,
        "name": "9",
    }


@pytest.mark.parametrize("content", [b"name: \xff", "lr: 1".encode("utf-16"), b"\x00\x01"])
def test_other_encodings(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_bytes(content)
    with pytest.raises(OptionError):
        read_yaml(tmp_path / "o.yaml", "The file")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (
        tmp_path,
        tmp_path / "pipe",
        "/dev/zero",
        tmp_path / "none",
        tmp_path / "loop",
        "a\0b",
        "a" * 9999,
    ):
        with pytest.raises(OptionError, match=r"not a regular file|cannot be read"):
            read_yaml(path, "The file")


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "o.yaml").open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(OptionError, match="holds more than"):
        read_yaml(tmp_path / "o.yaml", "The file")


def test_dates_are_names() -> None:
    for text in ("2001-02-03", "2001-99-99", "2001-02-03 04:05:06"):
        assert parse_yaml(f"name: {text}", "") == {"name": text}
        assert make_options(parse_yaml(f"name: {text}", "")).name == text


def test_aliases_and_merges_of_usual_size() -> None:
    text = "base: &b {lr: 0.1, act: relu}\nruns: [*b, {<<: *b, lr: 0.2}]"
    assert parse_yaml(text, "")["runs"] == [{"lr": 0.1, "act": "relu"}, {"lr": 0.2, "act": "relu"}]
    assert parse_yaml("", "") is None


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), parts, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=25)
@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value), "") == value


@given(st.text("ab01.:-_*&!<>[]{}|,#'\"\\ \n\tx~", max_size=30))
def test_any_text_gives_values_or_an_error(text: str) -> None:
    with suppress(OptionError):
        found = parse_yaml(text, "")
        make_options(found if isinstance(found, dict) else {"lr": found})
