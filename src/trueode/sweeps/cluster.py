"""Workers of a Dask cluster: the same jobs in the same worker processes, on other machines."""

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
PULSE = 1.0  # seconds between looks at the mark
_OF_THREAD = threading.local()


class ClusterWorkers:
    """The workers of a Dask scheduler.

    A worker that sees the sweep's directory works in it: a run whose worker is lost goes on
    elsewhere from its last checkpoint. One that does not works in a folder of its own and returns
    the run when it is finished.

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
        self._lost = f"The connection to the Dask scheduler at {address} is lost: start it and its workers again."
        self._stopping = False
        self._futures: dict[str, Any] = {}
        self._ended: queue.Queue[Any] = queue.Queue()
        self._mark = (
            real(directory.path) / f"{MARK}{uuid.uuid4().hex}"
        )  # who sees it shares the directory
        self._mark.touch()
        self.count = max(1, sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            WorkersLostError: the scheduler has gone.
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
        """The next result; None if there is none for so many seconds.

        Raises:
            WorkersLostError: the scheduler has gone.
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
        except CancelledError:  # by us, or by a client that has lost its scheduler
            if not self._stopping:
                raise WorkersLostError(self._lost) from None
            return Result(job.hash, "interrupted")
        except (
            Exception
        ) as failure:  # the worker was lost too often or lacks this package; its archive is broken
            return Result(job.hash, "failed", told(failure))

    def interrupt(self) -> None:
        """Cancel what has not begun; workers see that the mark has gone, and let their runs save
        what they have.
        """
        self._stopping = True
        self._mark.unlink(missing_ok=True)
        for _, future in self._futures.values():
            future.cancel()

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._mark.unlink(missing_ok=True)
        log = logging.getLogger("distributed.client")
        log.disabled = (
            self._client.status != "running"
        )  # it would show the traceback of what is told already
        self._client.close()
        log.disabled = False

    def _check(self) -> None:
        if not self._stopping and self._client.status != "running":
            raise WorkersLostError(self._lost)

    def _unpacked(self, job: Job, result: Result) -> Result:
        """Put the run that a worker has returned into its place, and nothing else that it may have
        returned.
        """
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
                if here.is_dir():  # begun here, unfinished: it starts anew
                    begun = RunDirectory(here)
                    begun.lock()
                    begun.clear()
                    begun.release()
                run.rename(here)
        return Result(result.hash, result.status, result.message)


def _by_value() -> Any:
    """`do` in a function that is sent as code: the scheduler looks at what it passes on, and a name
    of this module would make it import the package, and torch with it.
    """

    def on_worker(job: dict[str, Any], mark: str) -> Any:
        from trueode.sweeps.cluster import do

        return do(job, mark)

    return on_worker


def do(job: dict[str, Any], mark: str) -> dict[str, Any]:
    """Do a job on a worker of the cluster, in a process that the next job of this thread will use
    again.

    Args:
        job: as `Job.to_dict` gives it, with absolute paths.
        mark: a file in the sweep's directory; who sees it shares the directory.

    Returns:
        ``status``, ``message`` and, where nothing is shared, ``archive``, of a `Result`.
    """
    asked = Job(**job)
    if Path(mark).exists():
        return _do_in_place(asked, Path(mark))
    with tempfile.TemporaryDirectory(prefix="trueode-") as scratch:
        options = {**asked.options, "output_dir": scratch}
        if (
            DATA_SETS[options["dataset"]].shape == "signal"
        ):  # generated: there is no need of the other side's folder
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
