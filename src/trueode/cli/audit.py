"""``trueode audit``: its flags."""

from __future__ import annotations

import argparse
from typing import Any

from trueode.catalog import METHODS, TASKS
from trueode.errors import OptionError, nearest

DESCRIPTION = (
    "Tell whether a model is an ODE or depends on its solver, with evidence. Exit code: 0 for an ODE, 3 for a model that "
    "depends on its solver, 4 where that was not decided, 2 for a wrong request, 1 for a failure."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise OptionError(f"{message.rstrip('.')}{'' if message.endswith('?') else '.'} See --help for all options.")


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = _Parser(prog, description=DESCRIPTION, formatter_class=formatter)
    add = parser.add_argument
    add(
        "target",
        metavar="TARGET",
        help="the directory of a run, or module:name of a model or of a function that makes one",
    )
    add("--data", metavar="MODULE:NAME", help="the samples, or a function that makes them: a loader of batches (x, y)")
    add("--task", choices=("auto", *TASKS), default="auto", help="what a model has learned (auto: by its targets)")
    add("--call", metavar="MODULE:NAME", help="function (model, batch) -> outputs (default: model(x))")
    add("--metric", metavar="MODULE:NAME", help="function (outputs, y) -> a value for each sample")
    add("--split", choices=("test", "train"), default="test", help="samples of a run (default: test)")
    add("--data_dir", metavar="DIR", help="where the data of a run lies (default: where it was)")
    add(
        "--margin",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="share of predictions that may change (default: 0.01)",
    )
    add("--samples", type=_positive, default=1000, metavar="N", help="look at the first N samples (default: 1000)")
    add(
        "--methods",
        type=_methods,
        default=("euler", "midpoint", "rk4", "bosh3", "dopri5"),
        metavar="LIST",
        help="methods to try, by commas (default: euler,midpoint,rk4,bosh3,dopri5)",
    )
    add("--output_dir", metavar="DIR", help="folder of the results (default: RUN/audit, or experiments/audits/NAME)")
    add("--overwrite", type=_flag, nargs="?", const=True, default=False, metavar="BOOL", help="replace an audit there")
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


def _share(text: str) -> float:
    return _number(text, "a share between 0 and 1, such as 0.01", lambda value: 0 < value < 1)


def _positive(text: str) -> int:
    return int(_number(text, "a whole number of at least 1", lambda value: value >= 1 and value == int(value)))


def _number(text: str, expected: str, good: Any) -> float:
    try:
        value = float(text)
        valid = good(value)
    except (ValueError, OverflowError):
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return value


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text}")
    return text.lower() == "true"


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METHODS:
            hint = nearest(name, METHODS)
            raise argparse.ArgumentTypeError(f"unknown method {name}; known are {', '.join(METHODS)}.{hint}")
    return names
