"""Every request ends with a message and exit code 0, 1 or 2, never with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from campaign.options import WORDS
from trueode.cli import main as module
from trueode.cli.main import main
from trueode.console import open_console
from trueode.errors import OptionError
from trueode.options import describe, dump_yaml, load_options, make_options
from trueode.options.combinations import LEAST_SIZE, MOST, MOST_SIZE
from trueode.options.yaml_text import parse_yaml

MORE = (
    "1e-320",
    "inf",
)


@given(
    st.sampled_from([item.name for item in describe()]),
    st.sampled_from((*WORDS, *MORE)) | st.text(max_size=20),
)
def test_any_value_of_any_option_is_refused_or_comes_back(name: str, word: str) -> None:
    options = None
    with suppress(OptionError):
        options, _ = load_options([f"--{name}={word}"])
    if options is None:
        return
    assert make_options(parse_yaml(dump_yaml(options), "")) == options
    for item in describe():
        values = getattr(options, item.name)
        for value in values if item.several else [values]:
            if item.kind == "int":
                assert value is None or value <= MOST
            if item.kind == "float":
                assert not value or LEAST_SIZE <= abs(value) <= MOST_SIZE


@given(
    st.sampled_from([item.name for item in describe()]),
    st.integers(-(10**400), 10**400) | st.just(10**5000),
)
def test_numbers_of_any_length(name: str, number: int) -> None:
    with suppress(OptionError):
        make_options({name: number})
    with suppress(OptionError):
        make_options({name: [number]})


def test_so_many_steps_that_nothing_counts_them() -> None:
    for length in (1e300, sys.float_info.max):
        with pytest.raises(OptionError, match="--max_steps"):
            make_options(
                {"step_size": LEAST_SIZE, "dataset": "pendulum", "network": "linear_odenet"}
            ).check_times(length)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: torch.empty(2**62, dtype=torch.uint8), "memory"),
        (lambda: torch.empty(2**40, 2**40), "overflow"),
        (lambda: int(float("inf")), "infinity"),
        (lambda: bytearray(2**62), "memory"),
    ],
)
def test_too_much_for_the_machine_ends_with_1(
    work: Callable[[], int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module._guarded("trueode", [], work) == 1
    told = capsys.readouterr().err
    assert "not enough memory" in told
    assert said in told.lower()
    assert len(told.splitlines()) == 1


def test_errors_of_ours_are_not_hidden() -> None:
    def work() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        module._guarded("trueode", [], work)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--output_dir", "out/\udcff"],
        ["train", "--\udcff", "1"],
        ["audit", "\udcff"],
        ["audit", "a\nb"],
        ["train", "--output_dir", "a\x1b[31m"],
        ["sweep", "\udcff.yaml"],
        ["sweep", "status", "\udcff"],
        ["reproduce", "\udcff"],
        ["\udcff"],
        ["info", "\udcff"],
        ["audit", "x:y", "--seed", "9" * 5000],
        ["audit", "x:y", "--seed", "1e30"],
        ["audit", "x:y", "--margin", "1e-320"],
        ["audit", "x:y", "--samples", "1e308"],
        ["audit", "x:y", "--breaks", "0.5,1e308"],
        ["audit", "x:y", "--max_step", "1e-320"],
        ["sweep", "p.yaml", "--workers", "1e30"],
    ],
)
def test_words_that_no_command_can_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "x"},
        {"WORLD_SIZE": "-2"},
        {"WORLD_SIZE": "9" * 5000},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
        {
            "WORLD_SIZE": "2",
            "RANK": "0",
            "LOCAL_RANK": "x",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1",
        },
    ],
)
def test_variables_of_torchrun_that_are_wrong(
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--niter", "1"]) == 2
    assert "unset" in capsys.readouterr().err


def test_names_are_printed_as_they_are_and_where_a_terminal_cannot_spelt_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(printed, encoding="ascii"))
    assert (
        main(
            [
                "train",
                "--output_dir",
                "o[",
                "--name",
                "x]:x:☃",
                "--niter",
                "1",
                "--verdict_budget",
                "0",
            ]
        )
        == 0
    )
    assert main(["train", "--help"]) == 0
    sys.stdout.flush()
    shown = printed.getvalue().decode("ascii")
    assert "o[/x]:x:\\u2603" in shown
    assert "--option value \\u2026" in shown


def test_a_console_takes_no_text_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    for text in ("a[/b]", "[bold]a", ":x: [1]", "[link=x]", "\\[a]"):
        open_console().print(text)
        assert capsys.readouterr().out == f"{text}\n"
        table = Table(text, title=text)
        table.add_row(text)
        open_console().print(table)
        assert capsys.readouterr().out.count(text) == 3
