"""A process that does one run after another, so that torch is imported once:
``python -m trueode.sweeps.worker``.

It reads jobs as lines of JSON and answers each with a line. When the process that asks is gone, in
whatever way, it ends at once: what it has not saved is done again by whoever goes on.
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
    os.dup2(2, 1)  # what is printed outside of runs must not look like an answer
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - line by line, for the log of a run that is killed
    from trueode import experiment  # noqa: F401 - before the first job: its objects live on, and are not looked at again

    gc.freeze()
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, jobs), daemon=True).start()
    while True:
        try:
            job = json.loads(jobs.get())
        except KeyboardInterrupt:  # between two runs: there is nothing to save
            os._exit(0)
        status, message = perform(job["options"], Path(job["log"]))
        print(json.dumps({"status": status, "message": message}), file=answers)


def _listen(source: IO[str], jobs: queue.Queue[str]) -> None:
    for line in source:
        jobs.put(line)
    os._exit(0)


def perform(values: Mapping[str, Any], log: Path) -> tuple[str, str]:
    """Do a run, or go on with it, or leave it if it is finished; whatever happens is an answer.

    Args:
        values: all options, name and place among them.
        log: file that output is added to.

    Returns:
        ``"finished"``, ``"interrupted"`` or ``"failed"``, and why it failed.
    """
    try:
        with _into(log):
            return _said(values)
    except OSError as failure:  # the log cannot be written
        return "failed", told(failure)


def _said(values: Mapping[str, Any]) -> tuple[str, str]:
    """Carry out a run, and print how it failed."""
    try:
        code = _run(values)
    except KeyboardInterrupt:
        return "interrupted", ""
    except TrueodeError as failure:
        print(failure)
        return "failed", str(failure)
    except BaseException as failure:  # a defect, a full disk: other runs go on
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
    # all that the result depends on is given: a run that was begun with something else is not gone
    # on with
    code: int = experiment.run(
        options, RESULT | {"name", "output_dir", "data_dir", "torch_threads"}
    )
    return code


def _await_lock(path: Path) -> None:
    """Wait while another process holds a run: it looks at it, or does it for a sweep that was
    killed.
    """
    from trueode.files import Lock

    while path.is_dir():
        lock = Lock.take(path)
        if lock is not None:
            lock.release()
            return
        time.sleep(0.1)


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """Add all output of this process to a file; a symbolic link in its place, which may lead
    anywhere, is replaced.
    """
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
