"""Workers of a Dask cluster, which do jobs in worker processes on other machines."""

from __future__ import annotations

import io
import logging
import queue
import shutil
import tarfile
import tempfile
import threading
import uuid
from concurrent.futures import CancelledError
from os.path import expanduser
from pathlib import Path
from typing import Any

from distributed import Client

from trueode.catalog import DATA_SETS
from trueode.errors import UsageError, WorkersLostError, told
from trueode.files import real
from trueode.runs import RunDirectory
from trueode.sweeps.directory import MARK, SweepDirectory
from trueode.sweeps.jobs import Job, Result
from trueode.sweeps.local import WorkerProcess

TIMEOUT = "10s"
PULSE = 1.0  # seconds between checks of the mark
_OF_THREAD = threading.local()


class ClusterWorkers:
    """The workers of a Dask scheduler.

    A worker that shares the sweep's directory works in it; if the worker is lost, another one
    continues its run from the last checkpoint. Other workers use a temporary folder, and return
    the finished run.

    Args:
        address: of the scheduler.
        directory: of the sweep.

    Raises:
        UsageError: there is no scheduler at that address.
    """

    def __init__(self, address: str, directory: SweepDirectory) -> None:
        try:
            connect: Any = Client
            self._client = connect(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError, ImportError) as failure:
            raise UsageError(
                f"There is no Dask scheduler at {address} ({told(failure)})."
            ) from None
        self._directory = directory
        self._lost = (
            f"The connection to the Dask scheduler at {address} is lost: start it and its workers "
            "again."
        )
        self._stopping = False
        self._futures: dict[str, Any] = {}
        self._ended: queue.Queue[Any] = queue.Queue()
        # a worker that sees this file shares the directory
        self._mark = real(directory.path) / f"{MARK}{uuid.uuid4().hex}"
        self._mark.touch()
        self.count = max(1, sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            WorkersLostError: the connection to the scheduler is lost.
        """
        self._check()
        options = {**job.options}
        for place in ("output_dir", "data_dir"):
            options[place] = str(real(expanduser(options[place])))
        plain = Job(job.hash, options, str(real(job.log))).to_dict()
        future = self._client.submit(
            _by_value(),
            plain,
            str(self._mark),
            pure=False,
            key=f"{job.hash}-{uuid.uuid4().hex[:8]}",
        )
        self._futures[future.key] = (job, future)
        future.add_done_callback(self._ended.put)

    def next(self, patience: float) -> Result | None:
        """The next result; None after ``patience`` seconds without one.

        Raises:
            WorkersLostError: the connection to the scheduler is lost.
        """
        try:
            ended = self._ended.get(timeout=patience)
        except queue.Empty:
            self._check()
            return None
        job, future = self._futures.pop(ended.key)
        try:
            result = Result.of(job.hash, future.result())
            return result if result.archive is None else self._unpacked(job, result)
        except CancelledError:  # by `interrupt`, or by a client that has lost its scheduler
            if not self._stopping:
                raise WorkersLostError(self._lost) from None
            return Result(job.hash, "interrupted")
        # the worker was lost too often, it lacks this package, or its archive is broken
        except Exception as failure:
            return Result(job.hash, "failed", told(failure))

    def interrupt(self) -> None:
        """Cancel waiting jobs, and remove the mark, so that workers save and end their runs."""
        self._stopping = True
        self._mark.unlink(missing_ok=True)
        for _, future in self._futures.values():
            future.cancel()

    def close(self) -> None:
        """Leave the cluster, which keeps running."""
        self._mark.unlink(missing_ok=True)
        log = logging.getLogger("distributed.client")
        # it would print the traceback of an error that is already reported
        log.disabled = self._client.status != "running"
        self._client.close()
        log.disabled = False

    def _check(self) -> None:
        if not self._stopping and self._client.status != "running":
            raise WorkersLostError(self._lost)

    def _unpacked(self, job: Job, result: Result) -> Result:
        """Move the run and the log that a worker returned into the directory, and nothing else."""
        assert result.archive is not None
        name = str(job.options["name"])
        with tempfile.TemporaryDirectory(dir=self._directory.path) as scratch:
            with tarfile.open(fileobj=io.BytesIO(result.archive)) as archive:
                archive.extractall(scratch, filter="data")
            run, log, here = (
                Path(scratch) / name,
                Path(scratch) / f"{name}.txt",
                self._directory.runs / name,
            )
            if log.is_file():
                shutil.move(log, self._directory.logs / log.name)
            if run.is_dir():
                if here.is_dir():  # an unfinished run is replaced
                    begun = RunDirectory(here)
                    begun.lock()
                    begun.clear()
                    begun.release()
                run.rename(here)
        return Result(result.hash, result.status, result.message)


def _by_value() -> Any:
    """Wrap `do` in a function that is sent as code.

    The scheduler inspects what it passes on: a name of this module would make it import torch.
    """

    def on_worker(job: dict[str, Any], mark: str) -> Any:
        from trueode.sweeps.cluster import do

        return do(job, mark)

    return on_worker


def do(job: dict[str, Any], mark: str) -> dict[str, Any]:
    """Do a job on a worker of the cluster, in a process that later jobs of this thread reuse.

    Args:
        job: from `Job.to_dict`, with absolute paths.
        mark: a file in the sweep's directory; a worker that sees it shares the directory.

    Returns:
        ``status`` and ``message`` of a `Result`, and ``archive`` without a shared directory.
    """
    asked = Job(**job)
    if Path(mark).exists():
        return _do_in_place(asked, Path(mark))
    with tempfile.TemporaryDirectory(prefix="trueode-") as scratch:
        options = {**asked.options, "output_dir": scratch}
        if DATA_SETS[options["dataset"]].shape == "signal":  # generated data needs no shared folder
            options["data_dir"] = str(Path(scratch) / "data")
        log = Path(scratch) / Path(asked.log).name
        result = _process().do(Job(asked.hash, options, str(log)))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path in (
                log,
                *([Path(scratch) / options["name"]] if result.status == "finished" else []),
            ):
                if path.exists():
                    archive.add(path, path.name)
        return {"status": result.status, "message": result.message, "archive": packed.getvalue()}


def _do_in_place(job: Job, mark: Path) -> dict[str, Any]:
    process, ended = _process(), threading.Event()

    def watch() -> None:
        while not ended.wait(PULSE):
            if not mark.exists():  # the sweep was interrupted
                process.interrupt()
                return

    threading.Thread(target=watch, daemon=True).start()
    result = process.do(job)
    ended.set()
    return {"status": result.status, "message": result.message}


def _process() -> WorkerProcess:
    known: WorkerProcess | None = getattr(_OF_THREAD, "process", None)
    if known is None or known.stopping:
        known = _OF_THREAD.process = WorkerProcess()
    return known
