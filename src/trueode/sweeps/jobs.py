"""What workers are asked and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

STATUSES = ("finished", "failed", "interrupted")


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        hash: of the run.
        options: all of them as plain values, its name and place among them.
        log: the file that what it says is added to.
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
        archive: the run's directory as a tar file, where the worker does not share a directory.
    """

    hash: str
    status: str
    message: str = ""
    archive: bytes | None = None

    @classmethod
    def of(cls, run: str, answer: object) -> Result:
        """What a worker has answered for a run; something else than an answer is a failure: it may
        be of another version.
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
            f"The worker's answer is not understood: {str(answer)[:80]!r}. Is it of this version?",
        )


class Workers(Protocol):
    """Processes that do jobs, here or elsewhere."""

    count: int

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def next(self, patience: float) -> Result | None:
        """The next result; None if there is none for so many seconds."""

    def interrupt(self) -> None:
        """Ask all jobs to save what they have and to end."""

    def close(self) -> None:
        """End all workers."""
