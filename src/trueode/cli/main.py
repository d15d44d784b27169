"""The commands ``trueode train | audit | report | sweep | reproduce | config | info``.

Each command imports heavy libraries itself.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from trueode.errors import UNWRITABLE, TrueodeError, UsageError, nearest, printable, told
from trueode.options import Options, dump_yaml, load_options, make_parser

COMMANDS = {
    "train": "train a Neural ODE and judge whether it is an ODE; `--phase infer` evaluates a run",
    "audit": "check whether a trained model, yours or that of a run, depends on its solver",
    "report": "write a page to look at, for a run, an audit, a sweep or a figure of the paper",
    "sweep": "run a grid of options, here or on a cluster; `sweep status DIR` shows its progress",
    "reproduce": "make a figure or the table of the paper: its runs, numbers and picture",
    "config": "print the options in effect as a complete options file",
    "info": "print versions, devices, threads, and whether the compiled kernel is in use",
}

TRY = {
    "trueode train": "train a small model in seconds, and check whether it is an ODE",
    "trueode audit experiments/neural_ode": "see which solvers that model works with",
    "trueode reproduce fig3": "draw a figure of the paper",
}

DESCRIPTION = (
    "Train a Neural ODE, check whether it is an ODE, and adapt its step size or tolerance if asked "
    "to. Without options, a model with one Euler step is trained on two-dimensional spheres; this "
    "takes at most a minute on a CPU."
)


def main(argv: Sequence[str] | None = None, prog: str = "trueode") -> int:
    """Run a command and return its exit code: 0, 1 for a failed run, 2 for a wrong request, 130
    when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(prog, words, lambda: _command(words, prog))


def _command(words: list[str], prog: str) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage() if words else _first_steps())
        return 0 if words else 2
    if words[0] == "--version":
        from trueode import __version__

        print(f"trueode {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        raise UsageError(f"Unknown command {command!r}: known are {', '.join(COMMANDS)}.{hint}")
    if command in ("audit", "report", "sweep", "reproduce"):
        return _with_own_flags(command, rest, f"{prog} {command}")
    if command == "info":
        return _info(rest)
    return _run(command, rest, f"{prog} {command}")


def _guarded(prog: str, words: Sequence[str], work: Callable[[], int]) -> int:
    """Turn failures that users can cause into a message and an exit code, and our warnings into
    notes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escape what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        for word in words:
            if UNWRITABLE.search(word):
                raise UsageError(
                    f"{printable(word)} is not one line of valid UTF-8, which files of results "
                    "need: rename it."
                )
        with warnings.catch_warnings():
            warnings.showwarning = _note_or(warnings.showwarning)
            return work()
    except TrueodeError as failure:
        print(f"{prog}: {failure}", file=sys.stderr)
        return failure.exit_code
    except BrokenPipeError:  # the reader of our output has closed it
        return 1
    except OSError as failure:  # a full disk, a folder without permission
        print(f"{prog}: {failure}", file=sys.stderr)
        return 1
    except (MemoryError, OverflowError, RuntimeError) as failure:
        if isinstance(failure, RuntimeError) and not re.search(
            r"memory|overflow|primitive", str(failure)
        ):
            raise
        what = "There is not enough memory, or a number is too large. Reduce the request"
        print(f"{prog}: {what} ({told(failure)}).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _note_or(show: Callable[..., None]) -> Callable[..., None]:
    """Show warnings of this package as notes without a source line, and others with ``show``."""
    ours = str(Path(__file__).resolve().parents[1])

    def shown(message: Any, category: Any, filename: str, *place: Any) -> None:
        if filename.startswith(ours):
            print(f"note: {message}", file=sys.stderr)
        else:
            show(message, category, filename, *place)

    return shown


def train_script() -> int:
    """``python train.py``: the same as ``trueode train``."""
    return _guarded("train.py", sys.argv[1:], lambda: _run("train", sys.argv[1:], "train.py"))


def _run(command: str, argv: list[str], prog: str) -> int:
    if any(word in ("-h", "--help") for word in argv):
        parser = make_parser(
            prog, DESCRIPTION if command == "train" else COMMANDS[command], _formatter()
        )
        parser.print_help()
        return 0
    options, given = load_options(argv, make_parser(prog))
    if command == "config":
        print(dump_yaml(options), end="")
        return 0
    for notice in notices(options, given):
        print(f"note: {notice}", file=sys.stderr)
    # imports create a million permanent objects: scanning them for garbage is slow, now and later
    gc.disable()
    from trueode import experiment

    gc.freeze()
    gc.enable()
    if options.phase == "infer":
        code: int = experiment.infer(options, given)
        if options.report:
            from trueode.cli.report import write_pages

            (page,) = write_pages(Path(options.output_dir) / options.name)
            print(f"report: {page}")
    else:
        code = experiment.run(options, given)
    return code


def _with_own_flags(command: str, argv: list[str], prog: str) -> int:
    module = import_module(f"trueode.cli.{command}")
    if any(word in ("-h", "--help") for word in argv):
        module.make_parser(prog, _formatter()).print_help()
        return 0
    code: int = module.run(argv, prog)
    return code


def _info(argv: list[str]) -> int:
    if argv and argv != ["-h"] and argv != ["--help"]:
        raise UsageError(f"info takes no options, got {' '.join(argv)}.")
    from trueode.cli import info

    print(COMMANDS["info"] if argv else info.text())
    return 0


def notices(options: Options, given: frozenset[str]) -> list[str]:
    """Notices about options that are allowed but have little or no effect."""
    found = []
    adaptive = not options.fixed_step
    if (
        adaptive
        and options.tol < 1e-6
        and options.precision == "float32"
        and not options.use_step_adaption_algo
    ):
        found.append(
            f"--tol {options.tol:g} cannot be met in float32 (about 1e-6 can): add "
            "--precision float64."
        )
    if "tol" in given and not adaptive and not options.evaluate_with_dif_solver:
        found.append(f"--tol has no effect: {options.solver} takes fixed steps.")
    if "initial_tol" in given and not options.use_step_adaption_algo and adaptive:
        found.append("--initial_tol has no effect without --use_step_adaption_algo true.")
    if "step_size" in given and (adaptive or options.use_step_adaption_algo):
        why = (
            "the adaptation chooses the step"
            if options.use_step_adaption_algo
            else f"{options.solver} is adaptive"
        )
        found.append(f"--step_size has no effect on training: {why}.")
    return found


def _formatter() -> Any:
    if not sys.stdout.isatty():
        return argparse.HelpFormatter
    from rich_argparse import RichHelpFormatter

    return RichHelpFormatter


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "usage: trueode COMMAND [OPTIONS]\n\n"
        + "\n".join(lines)
        + "\n\n`trueode COMMAND --help` lists the options."
    )


def _first_steps() -> str:
    width = max(map(len, TRY))
    lines = [f"  {command:<{width}}  {text}" for command, text in TRY.items()]
    return (
        "Three things to try:\n\n" + "\n".join(lines) + "\n\n`trueode --help` lists all commands."
    )


if __name__ == "__main__":
    sys.exit(main())
