"""The history of a run: a CSV file with a row for each logged iteration."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueode.errors import RunDamagedError
from trueode.files import sync, write_atomic

ADVICE = "Repair the file, or move it away: the run then continues without its earlier rows."


class History:
    """Appends rows to a CSV file, several at a time.

    Args:
        path: of the file; created with a header if it does not exist.
        columns: names in their order; a row may lack some.
        buffer: number of rows that are written together.

    Raises:
        RunDamagedError: the file exists with other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], buffer: int = 100) -> None:
        self._columns = list(columns)
        self._pending: list[Mapping[str, Any]] = []
        self._buffer = buffer
        known = _read(path)[0] if path.exists() else []
        if known and known != self._columns:
            raise RunDamagedError(
                f"{path} has the columns {', '.join(known)}, expected {', '.join(columns)}. "
                f"{ADVICE}"
            )
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self._columns, restval="")
        if not known:
            self._writer.writeheader()
            self.sync()
            sync(path.parent)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row; values keep their full precision."""
        self._pending.append(row)
        if len(self._pending) >= self._buffer:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows."""
        self._writer.writerows(self._pending)
        self._pending.clear()
        self._file.flush()

    def sync(self) -> None:
        """Write the buffered rows, and wait until they are on disk."""
        self.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of a history; NaN for missing values. An incomplete last line is left out.

    Raises:
        RunDamagedError: another line does not consist of numbers.
    """
    columns, rows, _ = _read(path)
    return {name: [values[place] for _, values in rows] for place, name in enumerate(columns)}


def cut_history(path: Path, iteration: int) -> None:
    """Remove the rows after an iteration, and an incomplete last line.

    Raises:
        RunDamagedError: another line does not consist of numbers.
    """
    if not path.exists():
        return
    columns, rows, torn = _read(path)
    kept = [line for line, values in rows if values[0] <= iteration]
    if torn or len(kept) < len(rows):
        lines = [",".join(columns), *kept] if columns else []
        write_atomic(
            path, lambda file: file.write("".join(f"{line}\r\n" for line in lines).encode())
        )


def _read(path: Path) -> tuple[list[str], list[tuple[str, list[float]]], bool]:
    """The columns, the rows as lines and as numbers, and whether the last line is incomplete."""
    lines = path.read_bytes().splitlines(keepends=True)
    torn = bool(lines) and not lines[-1].endswith((b"\r", b"\n"))
    texts = [line.decode(errors="replace").rstrip("\r\n") for line in lines[: -1 if torn else None]]
    if not texts:
        return [], [], torn
    columns, rows = texts[0].split(","), []
    for number, text in enumerate(texts[1:], 2):
        try:
            values = [float(value or "nan") for value in text.split(",")]
        except ValueError:
            values = []
        if len(values) != len(columns) or values[0] % 1 != 0:
            raise RunDamagedError(
                f"{path} is damaged: its line {number} is {text[:80]!r}, expected the number of an "
                f"iteration and numbers or nothing for {', '.join(columns[1:])}. {ADVICE}"
            )
        rows.append((text, values))
    return columns, rows, torn
