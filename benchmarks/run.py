"""Compare speed and memory with torchdiffeq, torchode and diffrax; print Markdown (`make bench`).

    python benchmarks/run.py                     all rows: minutes
    python benchmarks/run.py --rows euler cifar  these rows alone
    python benchmarks/run.py --write             all rows, also written to benchmarks/README.md

Times are medians of steps. Each side uses one or two threads, whichever is faster, and diffrax the
faster of its two gradients. `turns.py` describes how the sides are kept from disturbing each other.
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
    """Measure the rows and return them as Markdown."""
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
        "| work | against | theirs | trueode | ratio | wanted | met |\n"
        "|---|---|---|---|---|---|---|",
        *(str(row) for each in found for row in each.rows),
        "",
        *(f"* {remark}." for each in found for remark in each.remarks),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(text: str) -> None:
    """Replace the result in benchmarks/README.md."""
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
        help="time per row, side and number of threads (default: 4)",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--write", action="store_true", help="also write the result to benchmarks/README.md"
    )
    arguments = parser.parse_args()
    if arguments.write and set(arguments.rows) != set(ROWS):
        parser.error("--write needs all rows, because the table there is measured in one run")

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
