"""Shared by the commands of this folder: progress messages, argument types, exit codes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from math import isfinite
from typing import Any


def end_to_end(measure: Callable[[], str]) -> int:
    """Measure, print the result, and return the exit code.

    Ctrl-C and SIGTERM end it without a result, because half a table could be mistaken for all of
    it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        text = measure()
    except KeyboardInterrupt:
        tell("interrupted, nothing measured")
        return 130
    except (ChildProcessError, subprocess.CalledProcessError) as failure:
        tell(f"nothing measured: {failure}")
        return 1
    print(text, end="")
    return 0


def _interrupt(*_: Any) -> None:
    """Raise `KeyboardInterrupt` once; further signals must not disturb the clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def tell(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def short(x: float) -> str:
    """A number with three significant digits."""
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def seconds(word: str) -> float:
    """A positive time, as an argparse type."""
    value = float(word)
    if value <= 0 or not isfinite(value):
        raise argparse.ArgumentTypeError(f"a time above 0 is needed, not {word}")
    return value


def count(word: str) -> int:
    """A positive number of things, as an argparse type."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, not {word}")
    return value
