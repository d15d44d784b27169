"""The command ``trueode report``: its flags, and which page a path asks for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueode.cli.flags import Parser, flag
from trueode.errors import UsageError

DESCRIPTION = (
    "Write a page to look at, report.html, which opens without a network: the answer, a slider "
    "over the solver's steps that moves trajectories, regions and numbers, and everything that is "
    "known of a run, an audit, a sweep or a figure of the paper. Exit code: 0, 1 for a failure, 2 "
    "for a wrong request."
)
KINDS = (
    "Give the directory of a run (with config.yaml), of an audit (with audit.json), of a sweep "
    "(with plans/), or of `trueode reproduce` (with results/, or one result: results/NAME-SCALE)."
)


def make_parser(prog: str, formatter: Any = argparse.HelpFormatter) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog, DESCRIPTION, formatter)
    parser.add_argument(
        "path", metavar="DIR", help="directory of a run, audit, sweep or reproduction, or a result"
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="folder of the data of a run (default: as in the run)"
    )
    parser.add_argument(
        "--open",
        dest="opens",
        type=flag,
        default=True,
        metavar="BOOL",
        help="open the page in the browser, where there is a screen (default: true)",
    )
    return parser


def run(argv: Sequence[str], prog: str) -> int:
    """Write the page, print its path, and open it; return the exit code.

    Raises:
        TrueodeError: the directory is none that has a page, or something in it is damaged.
    """
    arguments = make_parser(prog).parse_args(list(argv))
    pages = write_pages(Path(arguments.path), arguments.data_dir)
    for page in pages:
        print(f"report: {page}")
    if arguments.opens and len(pages) == 1 and _has_screen():
        import webbrowser

        webbrowser.open(pages[0].resolve().as_uri())
    return 0


def write_pages(path: Path, data_dir: str | None = None) -> list[Path]:
    """Write the page of a run, an audit or a sweep, or a page for each result of a reproduction.

    Raises:
        TrueodeError: the path is none of these, or something in it is damaged.
    """
    named = path if path.name not in ("", "..") else path.resolve()
    if (path / "config.yaml").is_file():
        from trueode.experiment import page as runs
        from trueode.runs import RunDirectory

        return [runs.write_page(RunDirectory(named), data_dir=data_dir)]
    if data_dir is not None and path.exists():
        raise UsageError(f"--data_dir is only for runs, and {path} is none.")
    if (path / "audit.json").is_file():
        from trueode.auditing import page as audits

        return [audits.write_page(named)]
    from trueode.reproduction import page as results

    if found := results.results_in(path):
        return [results.write_page(stem) for stem in found]
    if next((path / "plans").glob("*.yaml"), None):
        from trueode.sweeps import SweepDirectory
        from trueode.sweeps import page as sweeps

        return [sweeps.write_page(SweepDirectory(path))]
    what = "holds nothing that has a page" if path.exists() else "does not exist"
    raise UsageError(f"{path} {what}. {KINDS}")


def _has_screen() -> bool:
    """Whether a person may be looking: a terminal on a machine with a display."""
    display = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return display and sys.stdout.isatty()
