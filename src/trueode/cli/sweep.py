"""``trueode sweep``: its flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueode.cli.flags import Parser, add_flag, positive, training_options

DESCRIPTION = (
    "Carry out a plan: all combinations of the values of some options, as runs of one directory, and one table of what they "
    "found. `trueode sweep status DIR` tells where the plans of a directory stand. What is finished is never repeated, what "
    "was interrupted goes on, what fails is tried once more. Options of `trueode train` may follow; they win over the plan. "
    "Exit code: 0, 1 when runs have failed, 2 for a wrong request, 130 when interrupted."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, description=DESCRIPTION, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument(
        "plan", metavar="PLAN.yaml", help="a plan with `base:` and `axes:`, or the word status"
    )
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="for status: the directory of a sweep"
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", help="where runs and table go (default: experiments/PLAN)"
    )
    add_execution(parser)
    return parser


def add_execution(parser: argparse.ArgumentParser) -> None:
    """The flags that tell how a plan is carried out."""
    add_flag(
        parser,
        "--dry_run",
        "print the runs with their estimated evaluations and time; train nothing",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers do the runs: tcp://…"
    )


def run(argv: Sequence[str], prog: str) -> int:
    """Carry out, estimate, or tell where things stand; returns the exit code.

    Raises:
        TrueodeError: the request is wrong.
    """
    parser = make_parser(prog)
    arguments, rest = parser.parse_known_args(list(argv))
    overrides = training_options(rest, parser)
    from trueode.errors import UsageError
    from trueode.sweeps import SweepDirectory, read_plan

    if arguments.plan == "status":
        if arguments.directory is None or overrides:
            raise UsageError(f"{prog} status takes the directory of a sweep: {prog} status DIR.")
        from trueode.sweeps.status import status

        return status(SweepDirectory(arguments.directory))
    if arguments.directory is not None:
        raise UsageError(
            f"{arguments.directory} is too much: {prog} PLAN.yaml, or {prog} status DIR."
        )
    path = Path(arguments.plan)
    directory = SweepDirectory(arguments.output_dir or Path("experiments") / path.stem)
    plan = read_plan(path, overrides, directory.fingerprints)
    return carry_out(plan, directory, arguments)


def carry_out(plan: Any, directory: Any, arguments: argparse.Namespace) -> int:
    """Do what the flags of `add_execution` ask for."""
    if arguments.dry_run:
        from trueode.sweeps.estimate import print_estimate

        return print_estimate(plan, directory, arguments.workers)
    from trueode.sweeps import run_sweep

    return run_sweep(plan, directory, workers=arguments.workers, scheduler=arguments.scheduler)
