"""The command ``trueode reproduce``: its flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from trueode.cli.flags import Parser, training_options
from trueode.cli.sweep import add_execution
from trueode.errors import TrueodeError, UsageError, nearest

NAMES = {
    "fig1": "trajectories and accuracy with a fine and a coarse step",
    "fig2": "output of the coarse model over its classifier's regions",
    "fig3": "Lady Windermere's fan on XOR",
    "fig4a": "trained with Euler, tested with Euler, midpoint, rk4",
    "fig4b": "trained and tested with rk4",
    "fig4c": "CIFAR-10: trained with Fehlberg 2(1)",
    "fig4d": "CIFAR-10: trained with Dopri5",
    "fig5": "CIFAR-10: step adaptation",
    "table1": "grid search and adaptations, concentric spheres",
    "table1_cifar": "the same for CIFAR-10",
    "spheres": "critical step size of spheres in 3 and 10 dimensions",
    "sphere900": "critical step size of spheres in 900 dimensions",
    "minima": "critical step size of the three minima",
    "tolerances": "tolerances on the concentric spheres",
    "mnist": "critical step size of MNIST",
}
SCALES = ("small", "paper")

DESCRIPTION = (
    "Reproduce a figure or the table of the paper: do its runs, and write picture, numbers and "
    "caption to OUTPUT_DIR/results/. Finished runs are not repeated, interrupted ones continue. "
    "Names: "
    + "; ".join(f"{name}: {text}" for name, text in NAMES.items())
    + "; all. Options of `trueode train` override those of the runs, such as `--data_dir`, or "
    "`--dataset image_folder`."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, DESCRIPTION, formatter)
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(NAMES)}, or all")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: minutes on two cores (default); paper: as published",
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="experiments/reproduction",
        help="folder of runs and results (default: experiments/reproduction)",
    )
    add_execution(parser)
    return parser


def run(argv: Sequence[str], prog: str) -> int:
    """Reproduce a figure, the table, or all; return the exit code.

    Raises:
        TrueodeError: the request is wrong.
    """
    parser = make_parser(prog)
    arguments, rest = parser.parse_known_args(list(argv))
    overrides = training_options(rest, parser)
    if arguments.name not in (*NAMES, "all"):
        hint = nearest(arguments.name, NAMES)
        raise UsageError(
            f"Unknown name {arguments.name!r}: known are {', '.join(NAMES)}, all.{hint}"
        )
    if arguments.name != "all":
        return _one(arguments.name, arguments, overrides)
    worst = 0
    for name in NAMES:
        try:
            code = _one(name, arguments, overrides)
        except TrueodeError as failure:  # missing images: continue with the others
            print(f"{prog}: {name}: {failure}", file=sys.stderr)
            code = 1
        if code == 130:
            return code
        worst = max(worst, code)
    return worst


def _one(name: str, arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from trueode.reproduction.results import planned, reproduce
    from trueode.sweeps import SweepDirectory

    if arguments.dry_run:
        from trueode.sweeps.estimate import print_estimate

        directory = SweepDirectory(arguments.output_dir)
        return print_estimate(
            planned(name, arguments.scale, overrides, directory), directory, arguments.workers
        )
    how = {
        "workers": arguments.workers,
        "scheduler": arguments.scheduler,
        "report": arguments.report,
    }
    return reproduce(
        name, arguments.scale, output_dir=arguments.output_dir, overrides=overrides, **how
    )
