"""The progress of a run: a bar on a terminal, or a line from time to time."""

from __future__ import annotations

from typing import Any

from rich.console import Console


class Progress:
    """Shows iterations with their loss, metric, NFE and steps.

    Args:
        total: iterations of the whole run.
        done: iterations already done.
        console: the console; None: show nothing.
    """

    def __init__(self, total: int, done: int, console: Console | None) -> None:
        self._total, self._done = total, done
        self._console = console
        self._bar: Any = None
        self._task: Any = None
        self._next_line = 0.0

    def __enter__(self) -> Progress:
        if self._console is not None and self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.table import Column

            self._bar = Progress(
                BarColumn(12),
                MofNCompleteColumn(
                    table_column=Column(no_wrap=True, min_width=2 * len(str(self._total)) + 1)
                ),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def doing(self, text: str) -> None:
        """Show a long operation other than training."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif self._console is not None:
            self._console.print(text, highlight=False)

    def update(self, iteration: int, values: dict[str, str], total: int | None = None) -> None:
        """Show the iteration and its values.

        Without a terminal, about ten lines are printed in a run.
        """
        self._total = total or self._total
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration, total=self._total, description=text)
        elif self._console is not None and (
            iteration >= self._next_line or iteration == self._total
        ):
            self._console.print(f"iteration {iteration}/{self._total}: {text}", highlight=False)
            self._next_line = iteration + self._total / 10
