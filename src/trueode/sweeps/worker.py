"""A process that does one run after another, to import torch only once:
``python -m trueode.sweeps.worker``.

It reads jobs as lines of JSON and answers each with a line. It exits at once when the process that
started it ends; unsaved work is repeated when the run is continued.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trueode.errors import TrueodeError, told
from trueode.sweeps.directory import finished


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # output outside of runs must not look like an answer
    # line by line, for the log of a run that is killed
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    # before the first job, so the garbage collector can skip its objects
    from trueode import experiment  # noqa: F401

    gc.freeze()
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, jobs), daemon=True).start()
    while True:
        try:
            job = json.loads(jobs.get())
        except KeyboardInterrupt:  # between two runs, nothing needs saving
            os._exit(0)
        status, message = perform(job["options"], Path(job["log"]))
        print(json.dumps({"status": status, "message": message}), file=answers)


def _listen(source: IO[str], jobs: queue.Queue[str]) -> None:
    for line in source:
        jobs.put(line)
    os._exit(0)


def perform(values: Mapping[str, Any], log: Path) -> tuple[str, str]:
    """Do a run, or continue it, or skip it if it is finished. Errors become an answer.

    Args:
        values: all options, including name and folder.
        log: file to which output is appended.

    Returns:
        ``"finished"``, ``"interrupted"`` or ``"failed"``, and the reason of a failure.
    """
    try:
        with _into(log):
            return _said(values)
    except OSError as failure:  # the log cannot be written
        return "failed", told(failure)


def _said(values: Mapping[str, Any]) -> tuple[str, str]:
    """Carry out a run, and print its failure."""
    try:
        code = _run(values)
    except KeyboardInterrupt:
        return "interrupted", ""
    except TrueodeError as failure:
        print(failure)
        return "failed", str(failure)
    except BaseException as failure:  # a bug or a full disk: continue with other runs
        traceback.print_exc()
        return "failed", told(failure)
    return ("interrupted" if code else "finished"), ""


def _run(values: Mapping[str, Any]) -> int:
    from trueode import experiment
    from trueode.options import RESULT, make_options

    options = make_options(values)
    path = Path(options.output_dir) / options.name
    _await_lock(path)
    if finished(path):
        return 0
    again = (path / "config.yaml").is_file()
    if again:
        options = options.model_copy(update={"resume": True})
    # everything that the result depends on counts as given, so a different run is not continued
    code: int = experiment.run(
        options, RESULT | {"name", "output_dir", "data_dir", "torch_threads"}
    )
    return code


def _await_lock(path: Path) -> None:
    """Wait while another process locks a run, to look at it or to do it for a killed sweep."""
    from trueode.files import Lock

    while path.is_dir():
        lock = Lock.take(path)
        if lock is not None:
            lock.release()
            return
        time.sleep(0.1)


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """Append all output of this process to a file; a symbolic link is replaced by a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.is_symlink():
        log.unlink()
    handle = os.open(
        log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o644
    )
    kept = [os.dup(1), os.dup(2)]
    try:
        for descriptor in (1, 2):
            os.dup2(handle, descriptor)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(handle)


if __name__ == "__main__":
    main()
