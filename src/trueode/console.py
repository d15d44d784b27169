"""Where commands speak."""

from __future__ import annotations

from rich.console import Console


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints texts as they are: names that users chose hold brackets, colons and numbers."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr, quiet=quiet)
    if not console.is_terminal:
        console.width = 140  # tables in a log are not squeezed
    return console
