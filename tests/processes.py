"""Commands in child processes that start warm: forked from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["trueode.experiment", "trueode.auditing", "torch._dynamo", "trueode.figures", "torchvision"]
)


def start(
    arguments: str | Sequence[str],
    folder: Path,
    *,
    command: str = "train",
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``trueode COMMAND ARGUMENTS`` in a folder. Its output is appended to ``output.txt``;
    figures are not drawn.

    Args:
        arguments: flags.
        folder: the working directory.
        command: a command of trueode.
        environment: environment variables of the child, besides those of this process.
        before: a function at the top of a module, which the child calls first.
    """
    words = shlex.split(arguments) if isinstance(arguments, str) else list(arguments)
    return start_work(partial(_command, [command, *words], before), folder, environment=environment)


def start_work(
    work: Callable[[], int], folder: Path, *, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start a module-level function, or a partial of one, in a child; it returns the exit code.

    See `start`.
    """
    # of this process now, not when the server started
    variables = {**os.environ, **(environment or {})}
    child = _CONTEXT.Process(target=_work, args=(work, str(folder), variables))
    child.start()
    return child


def run(arguments: str, folder: Path) -> tuple[int, str]:
    """Run ``trueode train ARGUMENTS`` to its end; return exit code and output."""
    return ended(start(arguments, folder), folder)


def run_line(
    words: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run ``trueode …`` or ``python SCRIPT …`` to its end; return exit code and output."""
    return ended(start_work(partial(_line, list(words)), folder, environment=environment), folder)


def ended(child: BaseProcess, folder: Path) -> tuple[int, str]:
    """Wait for a child that works in a folder; return exit code and output."""
    child.join(600)
    assert child.exitcode is not None, "the command hangs"
    output = (folder / "output.txt").read_text()
    (folder / "output.txt").unlink()
    return child.exitcode, output


def run_ranks(arguments: str, folder: Path, world_size: int = 2, code: int = 0) -> str:
    """Run a training as several processes, as torchrun does; all must end with the given code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    ranks = [
        start(arguments, folder, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]
    for child in ranks:
        child.join(300)
    output = (folder / "output.txt").read_text()
    assert [child.exitcode for child in ranks] == [code] * world_size, output
    return output


def draw_nothing(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let figures write a mark into their file in place of a picture."""
    from matplotlib.figure import Figure

    replace(Figure, "savefig", lambda figure, file, **how: file.write(b"a figure"))


def _command(words: list[str], before: Callable[[], None] | None) -> int:
    from trueode.cli.main import main

    draw_nothing()
    if before is not None:
        before()
    return main(words)


def _line(words: list[str]) -> int:
    if words[0] == "trueode":
        from trueode.cli.main import main

        return main(words[1:])
    sys.argv = words[1:]
    runpy.run_path(words[1], run_name="__main__")
    return 0


def _work(work: Callable[[], int], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    torch.set_num_threads(1)
    sys.exit(work())
