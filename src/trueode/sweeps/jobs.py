"""Jobs for workers and their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

STATUSES = ("finished", "failed", "interrupted")


@dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
        hash: of the run.
        options: all options as plain values, including name and folder.
        log: the file to which its output is appended.
    """

    hash: str
    options: Mapping[str, Any]
    log: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        hash: of the run.
        status: ``"finished"``, ``"failed"`` or ``"interrupted"``.
        message: why it failed, in one line.
        archive: the run's directory as a tar file, if the worker does not share the directory.
    """

    hash: str
    status: str
    message: str = ""
    archive: bytes | None = None

    @classmethod
    def of(cls, run: str, answer: object) -> Result:
        """The result in a worker's answer; an invalid answer, perhaps of another version, is a
        failure.
        """
        if (
            isinstance(answer, dict)
            and answer.get("status") in STATUSES
            and isinstance(answer.get("message"), str)
            and isinstance(answer.get("archive"), bytes | None)
        ):
            return cls(run, answer["status"], answer["message"], answer.get("archive"))
        return cls(
            run,
            "failed",
            f"The worker's answer is invalid: {str(answer)[:80]!r}. Is it of this version?",
        )


class Workers(Protocol):
    """Processes that do jobs, here or elsewhere."""

    count: int

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def next(self, patience: float) -> Result | None:
        """The next result; None after ``patience`` seconds without one."""

    def interrupt(self) -> None:
        """Ask all jobs to save their state and end."""

    def close(self) -> None:
        """End all workers."""
