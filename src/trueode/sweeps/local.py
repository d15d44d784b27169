"""Workers on this machine: a process with one thread for each core, or for each GPU."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from trueode.sweeps.jobs import Job, Result

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkerProcess:
    """A process that does one job at a time, and is replaced when it dies.

    Args:
        gpu: the only GPU that it sees, as ``CUDA_VISIBLE_DEVICES`` names it; None: all of them.
    """

    def __init__(self, gpu: str | None = None) -> None:
        self._environment = ONE_THREAD | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        self._child: subprocess.Popen[str] | None = None
        self.stopping = False

    def do(self, job: Job) -> Result:
        """Do a job. If the process dies, only this job has failed."""
        try:
            child = self._alive()
        except OSError as failure:  # not enough memory for another process
            return Result(job.hash, "failed", f"No process can be started: {failure}")
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(job.to_dict()) + "\n")
            child.stdin.flush()
            if self.stopping:  # the interrupt came before the process existed
                child.send_signal(signal.SIGINT)
            line = child.stdout.readline()
        except (OSError, ValueError):  # it has ended, or its pipe was closed
            line = ""
        if line.endswith("\n"):
            try:
                return Result.of(job.hash, json.loads(line))
            except ValueError:
                return Result.of(job.hash, line)
        code = child.wait()
        self._child = None
        child.stdout.close()
        with suppress(OSError):
            child.stdin.close()
        if self.stopping:
            return Result(job.hash, "interrupted")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Result(job.hash, "failed", f"The process of the run ended by {how}.")

    def interrupt(self) -> None:
        """Let the current run save its state, and end the process."""
        self.stopping = True
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGINT)

    def hang_up(self) -> None:
        """End the process by closing its input."""
        self.stopping = True
        child = self._child
        if child is not None and child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()

    def reap(self) -> None:
        """Wait for the process to end."""
        child = self._child
        if child is None:
            return
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
        self._child = None

    def _alive(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "trueode.sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, **self._environment},
                start_new_session=True,  # only the sweep receives Ctrl-C, and passes it on once
            )
        return self._child


class LocalWorkers:
    """Worker processes, each driven by a thread that waits for it.

    Args:
        count: number of processes.
        gpus: GPUs that they take in turn, one each; without any, they see what this process sees.
    """

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        self.count = count
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._results: queue.Queue[Result] = queue.Queue()
        self._workers = [WorkerProcess(gpus[i % len(gpus)] if gpus else None) for i in range(count)]
        self._threads = [
            threading.Thread(target=self._drive, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def _drive(self, worker: WorkerProcess) -> None:
        while (job := self._jobs.get()) is not None and not worker.stopping:
            self._results.put(worker.do(job))

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def next(self, patience: float) -> Result | None:
        """The next result; None after ``patience`` seconds without one."""
        try:
            return self._results.get(timeout=patience)
        except queue.Empty:
            return None

    def interrupt(self) -> None:
        """Ask all jobs to save their state and end."""
        for worker in self._workers:
            worker.interrupt()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.hang_up()
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.reap()


def cores() -> int:
    """The number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not available on every system
        return os.cpu_count() or 1
