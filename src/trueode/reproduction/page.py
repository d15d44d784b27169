"""The page of a figure or table of the paper: its picture, numbers, caption and command."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from trueode.errors import UsageError
from trueode.report.contents import Contents, fact, missing, page, stills, table
from trueode.report.page import write_report

MOST = 1000  # most rows of numbers that are shown


def results_in(path: Path) -> list[Path]:
    """The results of ``trueode reproduce`` that a path names, each as ``results/NAME-SCALE``: all
    in a directory, or the one of a file.
    """
    if path.is_dir():
        folder = path / "results" if (path / "results").is_dir() else path
        return [
            found.with_suffix("")
            for found in sorted(folder.glob("*.csv"))
            if found.with_suffix(".md").is_file()
        ]
    stem = path.with_suffix("") if path.is_file() else path
    return [stem] if all(_beside(stem, end).is_file() for end in ("csv", "md")) else []


def write_page(stem: Path) -> Path:
    """Write ``results/NAME-SCALE.html`` beside the other files of a result.

    Raises:
        UsageError: its numbers or its caption cannot be read.
    """
    path = _beside(stem, "html")
    write_report(contents_of(stem), path)
    return path


def contents_of(stem: Path) -> Contents:
    """The contents of the page of a result; see `write_page`."""
    try:
        caption = _beside(stem, "md").read_text(encoding="utf-8")
        with _beside(stem, "csv").open(encoding="utf-8", newline="") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as failure:
        raise UsageError(
            f"{stem}.csv or {stem}.md cannot be read ({failure}). Make them again with "
            "`trueode reproduce`."
        ) from None
    title, *parts = [_unmarked(part) for part in re.split(r"\n\s*\n", caption.strip())]
    command = next((part for part in parts if part.startswith("Command:")), "")
    made = page("figure", stem.name, title.rstrip("."))
    whole = [row for row in rows if len(row) == len(columns)]
    values = [[_value(cell) for cell in row] for row in whole[:MOST]]
    made["tables"] = [table("numbers", "Numbers", columns, values)]
    made["facts"] = [
        fact("Caption", [part for part in parts if part != command]),
        fact("How it was made", [], command.removeprefix("Command:").strip() or None),
    ]
    if len(rows) > MOST:
        text = f"The page shows {MOST} of {len(rows)} rows."
        made["facts"].append(missing(text, f"{stem}.csv"))
    picture = _beside(stem, "png")
    if picture.is_file():
        made["stills"], left = stills([picture])
        made["stills"] = [{**each, "alt": title} for each in made["stills"]]
        if left:
            made["facts"].append(fact("More pictures", left))
    return made


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}.{ending}")


def _unmarked(text: str) -> str:
    """Markdown without the marks of bold text, code and lines of one paragraph."""
    return re.sub(r"\*\*|`", "", text).strip()


def _value(cell: str) -> Any:
    try:
        number = float(cell)
    except ValueError:
        return cell or None
    return number if number - number == 0 else cell
