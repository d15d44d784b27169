"""Speed and memory against torchdiffeq, torchode and diffrax, as ratios in one run: ``make bench``
prints Markdown.

    python benchmarks/run.py                         all rows: minutes
    python benchmarks/run.py --rows euler cifar      these alone
    python benchmarks/run.py --write                 all rows, also into benchmarks/README.md

Times are medians of steps, each side at its best of one and two threads, and of diffrax's ways to
take gradients at the better one. `turns.py` tells how sides are kept from disturbing each other.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from command import end_to_end, seconds, tell
from machine import describe
from rows import ROWS
from turns import HERE

LIBRARIES = ("torch", "torchdiffeq", "torchode", "diffrax", "jax")
MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"


def report(names: Sequence[str], time: float, command: str) -> str:
    """Measure the rows and write them down as Markdown."""
    machine = describe(LIBRARIES)
    found = []
    for name in names:
        tell(f"measuring {name}")
        found.append(ROWS[name](time))
        for row in found[-1].rows:
            tell(str(row))
    lines = [
        f"`{command}` on {machine}",
        "\nMedians; in brackets the number of threads that was best.\n",
        "| work | against | theirs | trueode | ratio | wanted | met |\n|---|---|---|---|---|---|---|",
        *(str(row) for each in found for row in each.rows),
        "",
        *(f"* {remark}." for each in found for remark in each.remarks),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(text: str) -> None:
    """Put the result into the documentation, between its marks."""
    path = HERE / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    path.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=4.0,
        help="time for each side and number of threads of a row (default: 4)",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--write", action="store_true", help="write the result into benchmarks/README.md as well"
    )
    arguments = parser.parse_args()
    if arguments.write and set(arguments.rows) != set(ROWS):
        parser.error("--write needs all rows: what stands there was measured in one run")

    def measure() -> str:
        text = report(
            arguments.rows,
            arguments.seconds,
            shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        )
        if arguments.write:
            write(text)
        return text

    return end_to_end(measure)


if __name__ == "__main__":
    sys.exit(main())
