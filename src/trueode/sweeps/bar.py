"""Progress of a sweep: a bar with the remaining time on a terminal, otherwise a line per run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console


class Bar:
    """Progress over runs of different weights.

    Args:
        console: the console.
        weights: work of each run, by hash.
        begin: share of each run that was done before.
    """

    def __init__(
        self, console: Console, weights: Mapping[str, float], begin: Mapping[str, float]
    ) -> None:
        self._console = console
        self._weights = dict(weights)
        self._begin = dict(begin)
        self._shares = dict(begin)
        self._ended: set[str] = set()
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    @property
    def visible(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                BarColumn(30), TextColumn("{task.description}", markup=False), console=self._console
            )
            self._bar.start()
            self._task = self._bar.add_task(self._text(), total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def look(self, shares: Mapping[str, float]) -> None:
        """Show new shares of the running runs."""
        self._shares |= shares
        self._show()

    def ended(self, run: str, text: str) -> None:
        """Show that a run has ended."""
        self._ended.add(run)
        self._shares[run] = 1.0
        self._show()
        self._console.print(
            text if self._bar is not None else f"{self._text()}: {text}", markup=False
        )

    def time_left(self) -> float | None:
        """Remaining seconds at the average speed so far; None before any progress."""
        done = sum(
            self._weights[run] * (self._shares[run] - self._begin[run]) for run in self._weights
        )
        left = sum(self._weights[run] * (1 - self._shares[run]) for run in self._weights)
        return (time.monotonic() - self._start) * left / done if done > 0 else None

    def _text(self) -> str:
        left = self.time_left()
        text = f"{len(self._ended)}/{len(self._weights)} runs"
        return text if left is None or not left else f"{text}, {shown_time(left)} left"

    def _show(self) -> None:
        if self._bar is not None:
            total = sum(self._weights.values())
            done = sum(weight * self._shares[run] for run, weight in self._weights.items())
            self._bar.update(self._task, completed=done / total, description=self._text())


def shown_time(seconds: float) -> str:
    """Seconds in words: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
