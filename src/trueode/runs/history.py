"""The history of a run: a CSV file that rows are appended to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueode.runs.files import write_text


class History:
    """Appends rows to a CSV file, several at a time.

    Args:
        path: of the file; made with a header if it is not there.
        columns: in their order; a row leaves out what it has not.
        buffer: rows that are gathered before they are written.
    """

    def __init__(self, path: Path, columns: Sequence[str], buffer: int = 100) -> None:
        self._columns = list(columns)
        self._pending: list[Mapping[str, Any]] = []
        self._buffer = buffer
        new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self._columns, restval="")
        if new:
            self._writer.writeheader()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; values keep their full precision."""
        self._pending.append(row)
        if len(self._pending) >= self._buffer:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        self._writer.writerows(self._pending)
        self._pending.clear()
        self._file.flush()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of a history; NaN where a row has no value. A torn last line is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    columns: dict[str, list[float]] = {name: [] for name in reader.fieldnames or []}
    for row in reader:
        if None in row or None in row.values():
            continue
        for name in columns:
            columns[name].append(float(row[name]) if row[name] else float("nan"))
    return columns


def cut_history(path: Path, iteration: int) -> None:
    """Drop the rows after an iteration, and a torn last line."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header, *rows = lines or [""]
    width = header.count(",")
    whole = (row for row in rows if row.endswith("\n") and row.count(",") == width)
    kept = [row for row in whole if int(row.split(",")[0]) <= iteration]
    if kept != rows:
        write_text(path, header + "".join(kept))
