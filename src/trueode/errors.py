"""The exceptions that trueode raises on purpose.

A command exits with the ``exit_code`` of its error: 2 for usage (the request was wrong), 1 for a
failed run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends and lone surrogates, which files and terminals do not preserve."""


class TrueodeError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class UsageError(TrueodeError, ValueError):
    """The request cannot be carried out as stated; the message says what to change."""

    exit_code = 2


class OptionError(UsageError):
    """An option is unknown, out of range, of the wrong type or in conflict with another one."""


class DataError(UsageError):
    """Data is missing, unreadable or of the wrong shape."""


class DeviceError(UsageError):
    """A requested device does not exist on this machine."""


class RunExistsError(UsageError):
    """Results of an earlier run exist; they are overwritten only on request."""


class RunNotFoundError(UsageError):
    """The requested run does not exist."""


class SolveError(TrueodeError):
    """A solve failed.

    Args:
        message: describes the failure, with its time, step and error.
        status: ``"max_steps"``, ``"step_underflow"`` or ``"non_finite"``.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class DivergenceError(TrueodeError):
    """Training produced a loss that is not finite."""


class OutOfMemoryError(TrueodeError):
    """The memory of a device does not suffice; the message says what to change."""


class CheckpointError(TrueodeError):
    """No usable checkpoint was found; the message names the damaged ones."""


class RunDamagedError(TrueodeError):
    """A file in a run's directory is damaged, or the directory was removed or replaced during the
    run.
    """


class WorkersLostError(TrueodeError):
    """No worker is left to do the runs of a sweep."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or ``""``."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def printable(value: object, most: int = 300) -> str:
    """Any value as printable text, cut after ``most`` characters."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # thousands of digits, or nested too deeply
        return f"{type(value).__name__} too large to be shown"
    text = UNWRITABLE.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if len(text) <= most else f"{text[:most]}…"


def told(failure: BaseException) -> str:
    """Format a third-party exception as one line."""
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0].rstrip('.') if text else 'no message'}"


@contextmanager
def calling(what: str, advice: str = "") -> Iterator[None]:
    """Run third-party code in this block: an exception becomes a `UsageError` that names it."""
    try:
        yield
    except TrueodeError:
        raise
    except Exception as failure:
        raise UsageError(f"{what}: {told(failure)}.{advice}") from failure
