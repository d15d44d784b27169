"""``trueode audit``: its flags."""

from __future__ import annotations

import argparse
from typing import Any

from trueode.catalog import TASKS
from trueode.cli.flags import Parser, add_flag, numbers, positive, positive_number, share, whole

DESCRIPTION = (
    "Tell whether a model is an ODE or depends on its solver, with evidence. Exit code: 0 for an ODE, 3 for a model that "
    "depends on its solver, 4 where that was not decided, 2 for a wrong request, 1 for a failure."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, description=DESCRIPTION, formatter_class=formatter)
    add = parser.add_argument
    add(
        "target",
        metavar="TARGET",
        help="directory of a run, or module:name of a model or what makes one",
    )
    add(
        "--data",
        metavar="MODULE:NAME",
        help="the samples, or a function that makes them: a loader of batches (x, y)",
    )
    add(
        "--task",
        choices=("auto", *TASKS, "density"),
        default="auto",
        help="what is learned (auto: by targets)",
    )
    add(
        "--call",
        metavar="MODULE:NAME",
        help="function (model, batch) -> outputs (default: model(x))",
    )
    add("--metric", metavar="MODULE:NAME", help="function (outputs, y) -> a value for each sample")
    add(
        "--split",
        choices=("test", "train"),
        default="test",
        help="samples of a run (default: test)",
    )
    add("--data_dir", metavar="DIR", help="where the data of a run lies (default: where it was)")
    add(
        "--margin",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="share of predictions that may change (0.01)",
    )
    add(
        "--samples",
        type=positive,
        default=1000,
        metavar="N",
        help="look at the first N samples (default: 1000)",
    )
    add(
        "--methods",
        type=lambda text: tuple(filter(None, map(str.strip, text.split(",")))),
        default=("euler", "midpoint", "rk4", "bosh3", "dopri5"),
        metavar="LIST",
        help="methods to try, by commas",
    )
    add(
        "--decision",
        metavar="MODULE:NAME",
        help="function outputs -> what they decide (a sign, a threshold)",
    )
    add(
        "--tolerance",
        type=positive_number,
        metavar="SHARE",
        help="how far numbers may move, of their spread (0.01)",
    )
    add(
        "--absolute",
        type=positive_number,
        metavar="SIZE",
        help="the same in the units of the outputs",
    )
    add(
        "--ignore_index",
        type=whole,
        metavar="LABEL",
        help="label of predictions that do not count (default: -100)",
    )
    add(
        "--population",
        choices=("sample", "all"),
        default="sample",
        help="all: there are no other samples than these",
    )
    add(
        "--look",
        type=positive,
        metavar="K",
        help="the K-th look of several planned ones, which share 5 %% of error",
    )
    add(
        "--breaks",
        type=numbers,
        default=(),
        metavar="LIST",
        help="times at which the field jumps, by commas: 0.5,2.0",
    )
    add(
        "--max_step",
        type=positive_number,
        metavar="X",
        help="longest step of all solvers but the training solver",
    )
    add(
        "--seed",
        type=whole,
        metavar="N",
        help="seed of the random numbers of each call, for a model that draws some",
    )
    add(
        "--all",
        dest="everything",
        action="store_true",
        help="show every row of the table, and the reasons",
    )
    add(
        "--output_dir",
        metavar="DIR",
        help="folder of the results (default: RUN/audit, or experiments/audits/NAME)",
    )
    add_flag(parser, "--overwrite", "replace an audit there")
    add("--json", dest="as_json", action="store_true", help="print audit.json on standard output")
    return parser


def run(argv: list[str], prog: str) -> int:
    """Audit, and return the exit code of the verdict.

    Raises:
        TrueodeError: the request is wrong, or the model cannot be audited.
    """
    arguments = vars(make_parser(prog).parse_args(argv))
    from trueode.experiment.audited import audit_target

    return audit_target(**arguments)
