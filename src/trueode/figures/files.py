"""Writing a figure to files."""

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
"""Forms, each with what keeps the date out of it."""


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` to ``path``, whole or not at all; missing folders are made.

    The ending of the path tells the form: ``.pdf`` and ``.svg`` are drawings, everything else
    becomes PNG. Equal figures give equal bytes: the size is fixed and no date is written.

    Returns:
        The path written.
    """
    path = Path(path)
    form = path.suffix.lower().removeprefix(".")
    form = form if form in UNDATED else "png"
    with style():
        write_atomic(path, lambda file: figure.savefig(file, format=form, metadata=UNDATED[form]))
    return path
