"""The command ``trueode audit``: its flags."""

from __future__ import annotations

import argparse
from typing import Any

from trueode.catalog import AUDITED
from trueode.cli.flags import Parser, add_flag, numbers, positive, positive_number, share, whole

DESCRIPTION = (
    "Check whether a model is an ODE or depends on its solver. Exit code: 0 for an ODE, 3 for a "
    "model that depends on its solver, 4 if that is undecided, 2 for a wrong request, 1 for a "
    "failure."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, DESCRIPTION, formatter)
    add = parser.add_argument
    add(
        "target",
        metavar="TARGET",
        help="directory of a run, or module:name of a model or of a function that makes one",
    )
    add(
        "--data",
        metavar="MODULE:NAME",
        help="data of a model, such as a loader of batches (x, y), or a function that makes it",
    )
    add(
        "--task",
        choices=("auto", *AUDITED),
        default="auto",
        help="task of a model (default: auto, by its targets)",
    )
    add(
        "--call",
        metavar="MODULE:NAME",
        help="function (model, batch) -> outputs (default: model(x))",
    )
    add("--metric", metavar="MODULE:NAME", help="function (outputs, y) -> a value for each sample")
    add(
        "--loss",
        metavar="MODULE:NAME",
        help="function (outputs, y) -> the loss of a batch, whose gradient is compared",
    )
    add(
        "--split",
        choices=("test", "train"),
        default="test",
        help="data of a run (default: test)",
    )
    add("--data_dir", metavar="DIR", help="folder of the data of a run (default: as in the run)")
    add(
        "--margin",
        type=share,
        metavar="SHARE",
        help="share of predictions that may change; for densities, bits per dimension (default: "
        "0.01; of a run with the fidelity rule, its --fidelity)",
    )
    add(
        "--samples",
        type=positive,
        default=1000,
        metavar="N",
        help="number of samples, the first ones (default: 1000)",
    )
    add(
        "--methods",
        type=lambda text: tuple(filter(None, map(str.strip, text.split(",")))),
        default=("euler", "midpoint", "rk4", "bosh3", "dopri5"),
        metavar="LIST",
        help="methods of the table, separated by commas (default: euler,midpoint,rk4,bosh3,dopri5)",
    )
    add(
        "--decision",
        metavar="MODULE:NAME",
        help="function outputs -> decisions, such as signs",
    )
    add(
        "--tolerance",
        type=positive_number,
        metavar="SHARE",
        help="how far an output may move, as a share of the spread (default: 0.01); for samplers, "
        "their RMS error",
    )
    add(
        "--absolute",
        type=positive_number,
        metavar="SIZE",
        help="how far an output may move, in its units; for densities, the margin in nats",
    )
    add(
        "--dimensions",
        type=positive,
        metavar="D",
        help="dimensions of a density (default: the numbers of a sample)",
    )
    add(
        "--sample",
        metavar="MODULE:NAME",
        help="function (model, n) -> n samples of a density (default: its method sample)",
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
        help="all: these samples are the whole population, such as the nodes of one graph",
    )
    add(
        "--look",
        type=positive,
        metavar="K",
        help="number of this look, if several are planned on the same samples",
    )
    add(
        "--breaks",
        type=numbers,
        default=(),
        metavar="LIST",
        help="times at which the field jumps, separated by commas: 0.5,2.0",
    )
    add(
        "--max_step",
        type=positive_number,
        metavar="X",
        help="longest step of all solvers except the training solver",
    )
    add(
        "--seed",
        type=whole,
        metavar="N",
        help="seed of each call, for a model that draws random numbers",
    )
    add_flag(parser, "--use_gpu", "audit on a GPU; a model given as module:name is moved to it")
    add("--gpu_ids", default="0", metavar="N", help="number of the GPU (default: 0)")
    add(
        "--all",
        dest="everything",
        action="store_true",
        help="show all rows of the table, and the reasons",
    )
    add(
        "--output_dir",
        metavar="DIR",
        help="folder of the results (default: RUN/audit, or experiments/audits/NAME)",
    )
    add_flag(parser, "--report", "also write report.html, a page to look at")
    add_flag(parser, "--overwrite", "replace an earlier audit in that folder")
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
