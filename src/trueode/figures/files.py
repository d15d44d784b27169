"""Write a figure to a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trueode.figures.theme import style
from trueode.files import write_atomic

UNDATED: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
"""File formats, each with the metadata that leaves out the date."""


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` to ``path`` atomically; missing folders are made.

    A path with the suffix ``.pdf`` or ``.svg`` gets that format, any other path PNG. Equal figures
    give equal bytes: the size is fixed and no date is written.

    Returns:
        The path written.
    """
    path = Path(path)
    form = path.suffix.lower().removeprefix(".")
    form = form if form in UNDATED else "png"
    with style():
        write_atomic(path, lambda file: figure.savefig(file, format=form, metadata=UNDATED[form]))
    return path
