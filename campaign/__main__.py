"""Attack trueode, and report the outcomes.

    python -m campaign                           all attacks; writes docs/campaign.md
    python -m campaign --short                   a few cases of each
    python -m campaign --seed 3 --only kills:17  one case, to reproduce its fault

Outcomes: equal (bit for bit the result of an undisturbed run), told (a message, exit code 1 or 2),
done (success, but the damage left nothing to compare with); or a fault: traceback, hang, different,
outside (a file outside the run was touched), exit code (an undocumented one, or no message). Exit
code: 0, or 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from campaign.cases import ATTACKS, SHORT, WHOLE, Tried, attempt, carry_out, plan, table

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = _parser().parse_args(argv)
    seed, short = arguments.seed, arguments.short
    numbers = {
        name: (SHORT if short else WHOLE)[name] if (n := getattr(arguments, name)) is None else n
        for name in ATTACKS
    }
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        if arguments.only:
            name, number = arguments.only
            return _tell([attempt(name, number, seed, Path(folder))], seed)
        until, cases, tried = time.monotonic() + 60 * arguments.minutes, plan(numbers), []
        for case in carry_out(cases, seed, Path(folder), arguments.processes, until):
            tried.append(case)
            if case.fault:
                _tell([case], seed)
            if sys.stderr.isatty():
                print(f"\r{len(tried)} of {len(cases)} cases", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if len(tried) < len(cases):
        print(f"{len(cases) - len(tried)} of {len(cases)} cases were not tried: the time is over.")
    print(table(tried))
    if len(tried) == len(cases) and numbers == WHOLE:
        _write(tried, seed)
    return int(any(case.fault for case in tried))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="seed of all cases (default: random)",
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="start no case later (default: 20)"
    )
    for name, number in WHOLE.items():
        parser.add_argument(
            f"--{name}", type=_count, metavar="N", help=f"number of attacks (default: {number})"
        )
    parser.add_argument("--short", action="store_true", help="a few cases of each attack")
    parser.add_argument("--only", type=_case, metavar="ATTACK:NUMBER", help="run one case")
    parser.add_argument(
        "--processes",
        type=_count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of simultaneous cases",
    )
    return parser


def _count(word: str) -> int:
    if int(word) < 0:
        raise ValueError
    return int(word)


def _case(word: str) -> tuple[str, int]:
    name, _, number = word.partition(":")
    if name not in ATTACKS:
        raise argparse.ArgumentTypeError(f"attacks are {', '.join(ATTACKS)}, not {name}")
    return name, _count(number)


def _tell(cases: list[Tried], seed: int) -> int:
    for case in cases:
        again = f"python -m campaign --seed {seed} --only {case.attack}:{case.number}"
        print(
            f"{case.outcome}: {case.what}\n    {again}\n    {case.told.strip()}"
            if case.fault
            else f"{case.outcome}: {case.what}"
        )
    sys.stdout.flush()
    return int(any(case.fault for case in cases))


def _write(tried: list[Tried], seed: int) -> None:
    """Write the table to the documentation."""
    from trueode import __version__

    command = shlex.join(["python", "-m", "campaign", "--seed", str(seed)])
    outcomes = (__doc__ or "").split("\n\n")[2]
    seconds = sum(case.seconds for case in tried)
    text = f"""# The campaign

Runs and sweeps are killed, options and plans are nonsense, run directories are damaged, data is
hostile, and the disk becomes full. Written by `{command}` (`make campaign`) with trueode
{__version__}; {seconds / 60:.0f} minutes of cases.

{outcomes}

{table(tried)}
"""
    (DOCS / "campaign.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
