"""Ctrl-C and SIGTERM as a question that whoever works asks between two pieces of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code of a command that the user interrupted."""


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """A block in which these signals are remembered: what it is handed tells whether there was one;
    a second one stops at once.
    """
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    main = (
        threading.current_thread() is threading.main_thread()
    )  # in others, signals are not ours to handle
    before = {
        number: signal.signal(number, remember)
        for number in (signal.SIGINT, signal.SIGTERM)
        if main
    }
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
