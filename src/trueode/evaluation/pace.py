"""Progress of an evaluation: what is done now, and how much longer it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

WORTH_TELLING = 2.0  # seconds


class Pace:
    """Reports each piece of work, with the time that it takes at the average speed so far.

    Args:
        report: called with a short text for each piece.
        clock: returns seconds.
    """

    def __init__(
        self,
        report: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report, self._clock, self._last = report, clock, clock()
        self._running = self._evaluations = self._seconds = 0.0

    def __call__(self, text: str, evaluations: float = 0.0) -> None:
        """Report a piece of work that begins.

        Args:
            text: the piece, in words.
            evaluations: field evaluations that it takes, counted in samples; 0: unknown.
        """
        now = self._clock()
        if self._running:
            self._seconds += now - self._last
            self._evaluations += self._running
        self._last, self._running = now, evaluations
        if self._evaluations and evaluations:
            seconds = self._seconds / self._evaluations * evaluations
            if seconds >= WORTH_TELLING:
                text += f", about {seconds:.0f} s"
        self._report(text)
