"""The output of commands."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints text verbatim, because names chosen by users may contain brackets,
    colons and numbers.
    """
    console = Console(
        highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr, quiet=quiet
    )
    if not console.is_terminal:
        console.width = 140  # room for tables in logs
    return console


def print_answer(
    console: Console, answer: str, lines: Iterable[str] = (), *, title: str, colour: str
) -> None:
    """Print an answer and its notes, in a frame on a terminal, as plain lines elsewhere."""
    if not console.is_terminal:
        console.print(answer, style="bold")
        for line in lines:
            console.print(f"* {line}")
        return
    from rich.panel import Panel
    from rich.text import Text

    text = Text(answer, style="bold")
    for line in lines:
        text.append(f"\n• {line}", style="not bold")
    console.print(
        Panel(text, title=title, title_align="left", border_style=colour), soft_wrap=False
    )
