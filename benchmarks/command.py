"""What the commands of this folder have in common: words for the terminal, and an orderly end."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from math import isfinite
from typing import Any


def end_to_end(measure: Callable[[], str]) -> int:
    """Print what was measured, when all of it was; return the exit code.

    Ctrl-C and SIGTERM end it without a result: half of a table would be taken for the whole one.
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
    """Once: processes that were started are ended on the way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def tell(text: str) -> None:
    """Say how far it is, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def short(x: float) -> str:
    """Three digits."""
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def seconds(word: str) -> float:
    """A time, for argparse."""
    value = float(word)
    if value <= 0 or not isfinite(value):
        raise argparse.ArgumentTypeError(f"a time above 0 is needed, not {word}")
    return value


def count(word: str) -> int:
    """A number of things, for argparse."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, not {word}")
    return value
