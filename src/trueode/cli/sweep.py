"""The command ``trueode sweep``: its flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueode.cli.flags import Parser, add_flag, positive, training_options
from trueode.interrupts import INTERRUPTED

DESCRIPTION = (
    "Run all combinations of the values of some options, and write one table of their results. "
    "Finished runs are never repeated, interrupted ones continue, failed ones are tried once more. "
    "`trueode sweep status DIR` shows the progress of the plans in a directory. Options of "
    "`trueode train` override the plan. Exit code: 0, 1 if runs have failed, 2 for a wrong "
    "request, 130 if interrupted."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, DESCRIPTION, formatter)
    parser.add_argument(
        "plan", metavar="PLAN.yaml", help="a plan with `base:` and `axes:`, or the word `status`"
    )
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="with `status`: the directory of a sweep"
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", help="folder of runs and table (default: experiments/PLAN)"
    )
    add_execution(parser)
    return parser


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the flags that determine how a plan is carried out."""
    add_flag(
        parser,
        "--dry_run",
        "print the runs with estimated field evaluations and times, without training",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="number of processes (default: one per core, or per GPU)",
    )
    add_flag(parser, "--report", "also write a page to look at; see `trueode report`")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do the runs: tcp://…"
    )


def run(argv: Sequence[str], prog: str) -> int:
    """Carry out a plan, estimate its cost, or show its progress; return the exit code.

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
            f"Unexpected argument {arguments.directory}: use {prog} PLAN.yaml or {prog} status DIR."
        )
    path = Path(arguments.plan)
    directory = SweepDirectory(arguments.output_dir or Path("experiments") / path.stem)
    plan = read_plan(path, overrides, directory.fingerprints)
    return carry_out(plan, directory, arguments)


def carry_out(plan: Any, directory: Any, arguments: argparse.Namespace) -> int:
    """Carry out a plan, or print its estimate, as the flags of `add_execution` say."""
    if arguments.dry_run:
        from trueode.sweeps.estimate import print_estimate

        return print_estimate(plan, directory, arguments.workers)
    from trueode.sweeps import run_sweep

    code = run_sweep(plan, directory, workers=arguments.workers, scheduler=arguments.scheduler)
    if arguments.report and code != INTERRUPTED:
        from trueode.sweeps.page import write_page

        print(f"report: {write_page(directory)}")
    return code
