"""Ctrl-C and SIGTERM as a flag that long computations poll between two pieces of work."""

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
    """Remember these signals within the block; a second signal raises KeyboardInterrupt.

    Yields:
        A function that returns whether a signal has arrived.
    """
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    # other threads cannot set signal handlers
    main = threading.current_thread() is threading.main_thread()
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
