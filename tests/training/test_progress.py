"""Progress of a run: a bar on a terminal, about ten lines elsewhere, nothing without console."""

from __future__ import annotations

import itertools
import re
from io import StringIO

import pytest
from rich.console import Console

from trueode.training.progress import Progress


def shown(total: int, every: int = 1, done: int = 0, terminal: bool = False) -> str:
    """The output of a run that reports its first, every ``every``-th and last iteration."""
    text = StringIO()
    console = Console(file=text, width=200, force_terminal=terminal, highlight=False)
    with Progress(total, done, console) as progress:
        for i in range(done + 1, total + 1):
            if i in (1, total) or i % every == 0:
                progress.update(i, {"loss": f"{1 / i:.4g}", "NFE": "4"})
    return text.getvalue()


def numbers(text: str, total: int) -> list[int]:
    lines = text.splitlines()
    found = [re.fullmatch(rf"iteration (\d+)/{total}: loss \S+, NFE 4", line) for line in lines]
    assert all(found), text
    return [int(match[1]) for match in found if match]


@pytest.mark.parametrize("total", [1, 2, 9, 10, 11, 57, 100, 101, 1000, 3001])
@pytest.mark.parametrize("every", [1, 7, 10])
def test_about_ten_lines_and_always_the_last(total: int, every: int) -> None:
    iterations = numbers(shown(total, every), total)
    assert iterations[-1] == total
    assert iterations[0] == 1
    assert iterations == sorted(set(iterations))
    assert len(iterations) <= 12
    if total >= 100:
        assert len(iterations) >= 6
        assert max(b - a for a, b in itertools.pairwise(iterations)) < total / 10 + 2 * every


def test_a_resumed_run_shows_its_rest() -> None:
    iterations = numbers(shown(1000, 10, done=700), 1000)
    assert min(iterations) > 700
    assert iterations[-1] == 1000
    assert 3 <= len(iterations) <= 5


def test_nothing_without_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 0, None) as progress:
        for i in range(1, 11):
            progress.update(i, {"loss": "1"})
    assert capsys.readouterr() == ("", "")


def test_nothing_on_a_quiet_console() -> None:
    text = StringIO()
    with Progress(2, 0, Console(file=text, quiet=True)) as progress:
        progress.update(2, {"loss": "1"})
    assert text.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = shown(30, done=10, terminal=True)
    assert "iteration" not in text  # no further lines
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "30/30" in plain
    assert "loss 0.03333, NFE 4" in plain


def test_a_bar_is_taken_away_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = StringIO()
    console = Console(file=text, width=80, force_terminal=True)

    def fail() -> None:
        with Progress(5, 0, console) as progress:
            progress.update(1, {"loss": "1"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (
        text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1
    )  # the cursor is back
    with Progress(5, 0, console):  # and another bar may be shown
        pass
